"""What the program makes on Alibaba Cloud is found, and deleted, by a sweep that knows no state."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.sweep import delete_leftovers, find_leftovers
from tests.lab.alicloud_api import AlicloudApi
from tests.lab.alicloud_cloud import AlicloudCloud
from tests.lab.alicloud_mirror import show
from tests.lab.alicloud_provider import AlicloudProvider
from tests.lab.pulumi_engine import Engine
from tests.lab.small_providers import small_providers
from tests.lab.small_wheel import make_small_wheel

REGION = "cn-hangzhou"
CONFIG = {
    "cloud": "alicloud",
    "region": REGION,
    "instance_type": "ecs.gn7i-c16g1.4xlarge",
    "model": "modelscope:Qwen/Qwen2.5-7B-Instruct",
    "wait": "false",
}


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "public", "allowed_cidrs": "198.51.100.0/24", "weights_disk_gib": "60"},
        {"endpoint": "intranet"},
    ],
)
def test_the_sweep_finds_and_deletes_all_that_the_program_makes(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = AlicloudCloud()
    values = {**CONFIG, "runtime_wheel": str(make_small_wheel(tmp_path)), **options}
    providers = {"alicloud": AlicloudProvider(cloud), **small_providers()}
    done = Engine(providers, stack="bot", config={f"deployctl:{key}": item for key, item in values.items()}).up()
    assert done.succeeded, done.explain()
    with AlicloudApi() as api:
        for name, value in api.environment.items():
            monkeypatch.setenv(name, value)
        made = show(cloud, api)
        found = find_leftovers("alicloud", REGION, "bot")
        assert {item.id for item in found.found} == made
        assert not found.unknown
        assert delete_leftovers(found) == {}
        assert find_leftovers("alicloud", REGION, "bot").is_clean
