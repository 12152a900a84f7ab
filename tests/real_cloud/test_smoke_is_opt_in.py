"""The smoke test itself: it begins only when asked twice, its commands exist, and its page says what it costs.

None of these asks a cloud.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from provision.catalog import INSTANCE_TYPES
from provision.cli.plan import plan_for
from provision.config import resolve
from tests.real_cloud.__main__ import main
from tests.real_cloud.plan import PLANS, REGION_VARIABLE, VARIABLE, Plan, choose

README = Path(__file__).with_name("README.md")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        pytest.param({}, ["--yes"], id="no cloud named"),
        pytest.param({VARIABLE: "aws"}, [], id="no consent"),
        pytest.param({VARIABLE: "1"}, ["--yes"], id="no such cloud"),
    ],
)
def test_nothing_is_begun_unless_it_is_asked_for_twice(
    environ: dict[str, str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words, environ) == 2
    assert capsys.readouterr().err.startswith("nothing was done")


def test_another_region_can_be_named() -> None:
    chosen = choose({VARIABLE: "aws", REGION_VARIABLE: "eu-west-1"}, consent=True)
    assert isinstance(chosen, Plan)
    assert chosen.region == "eu-west-1"


@pytest.mark.parametrize("cloud", PLANS)
def test_what_it_deploys_fits_and_ends_by_itself(cloud: str) -> None:
    words = dict(zip(PLANS[cloud].spec[::2], PLANS[cloud].spec[1::2], strict=True))
    flags = {key.removeprefix("--").replace("-", "_"): value for key, value in words.items()}
    spec = resolve({**flags, "ttl": PLANS[cloud].ttl}, env={}).spec
    assert plan_for(spec).fits
    assert 0 < spec.ttl_seconds <= 3600


@pytest.mark.parametrize("cloud", PLANS)
def test_the_page_names_its_machine_and_price(cloud: str) -> None:
    plan = PLANS[cloud]
    price = INSTANCE_TYPES[plan.instance_type].price
    assert price is not None
    row = re.search(rf"^\| {cloud} \|.*$", README.read_text(), flags=re.MULTILINE)
    assert row is not None
    assert all(word in row.group() for word in (plan.region, plan.instance_type, f"${price.usd_per_hour}/h"))
