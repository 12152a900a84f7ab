"""What the program makes on Alibaba Cloud is found, and deleted, by a sweep that knows no state."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.sweep import delete_leftovers, find_leftovers
from tests.lab.alicloud_api import AlicloudApi
from tests.lab.alicloud_mirror import show
from tests.lab.alicloud_stack import NAME, make_stack

REGION = "cn-hangzhou"


@pytest.mark.parametrize(
    "options",
    [{"weights_disk_gib": "60"}, pytest.param({"endpoint": "intranet", "allowed_cidrs": ""}, marks=pytest.mark.slow)],
)
def test_the_sweep_finds_and_deletes_all_that_the_program_makes(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = make_stack(tmp_path, **options)
    stack.up()
    with AlicloudApi() as api:
        for name, value in api.environment.items():
            monkeypatch.setenv(name, value)
        made = show(stack.cloud, api)
        found = find_leftovers("alicloud", REGION, NAME)
        assert {item.id for item in found.found} == made
        assert not found.unknown
        assert delete_leftovers(found) == {}
        assert find_leftovers("alicloud", REGION, NAME).is_clean
