"""A machine without any package index: every package comes from the mailbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision import bundle
from runtime.bucket import open_bucket
from tests.e2e.cloud_journey import BUCKET, REGION, ask, journey
from tests.lab.packages import stand_in_torch, wheelhouse
from tests.lab.rootfs import PYTHON, Suite

pytestmark = pytest.mark.timeout(600)  # the first guest ever must have its root file system built


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_an_intranet_machine_installs_everything_from_the_bundle(suite: Suite, tmp_path: Path) -> None:
    values: dict[str, object] = {"endpoint": "intranet", "egress": "bundle", "pip_index": None}
    with journey(suite, "aws", tmp_path, values=values) as made:
        wheels = tmp_path / "bundle"
        wheels.mkdir()
        stand_in_torch(wheels)
        for path in wheelhouse(PYTHON[suite]).glob("*.whl"):
            (wheels / path.name).symlink_to(path)
        with made.network.operator.network_entered():
            bundle.push(wheels, open_bucket("aws", REGION["aws"], BUCKET), "", lambda _: None)
        release = made.order()
        made.guest.boot()
        made.wait_ready(release)
        assert ask(made)
        assert made.index.fetched == []
