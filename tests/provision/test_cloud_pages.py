"""The pages of the two clouds say what the code does: types, classes of errors, quota codes, prices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from provision.catalog import INSTANCE_TYPES
from provision.costs import GP3_USD_PER_GIB_MONTH, NAT_USD_PER_HOUR, PUBLIC_IPV4_USD_PER_HOUR
from provision.failover import FAMILIES, classify
from provision.preflight.quotas import (
    ALICLOUD_ADDRESSES,
    ALICLOUD_TYPES,
    ALICLOUD_VPCS,
    AWS_ADDRESSES,
    AWS_ON_DEMAND,
    AWS_SPOT,
    AWS_VPCS,
)
from provision.sweep import covers

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {"aws": covers.AWS, "alicloud": covers.ALICLOUD}
CLASSES = "money|auth|quota|capacity|transient|unknown"


def page(cloud: str) -> str:
    return (DOCS / f"{cloud}.md").read_text()


def errors(cloud: str) -> dict[str, str]:
    """What a cloud says, and the class that the page gives it."""
    rows = re.findall(rf"^\| `([^`]+)` \| ({CLASSES}) \|", page(cloud), flags=re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("cloud", PAGES)
def test_the_table_of_types_is_the_programs(cloud: str) -> None:
    rows = re.findall(rf"^\| `({cloud}:[^`]+)` \| [^|]+ \| ([^|]+) \|$", page(cloud), flags=re.MULTILINE)
    assert dict(rows) == PAGES[cloud]
    assert len(rows) == len(PAGES[cloud])


@pytest.mark.parametrize("cloud", PAGES)
def test_every_error_on_the_page_is_of_the_class_that_failover_gives_it(cloud: str) -> None:
    shown = errors(cloud)
    assert len(shown) > 20
    assert {code: classify([code]).kind for code in shown} == shown


def test_every_class_and_most_families_of_errors_are_on_the_pages() -> None:
    shown = {**errors("aws"), **errors("alicloud")}
    assert set(shown.values()) == set(CLASSES.split("|"))
    missing = [family.pattern for family in FAMILIES if not any(re.search(family.pattern, code) for code in shown)]
    assert missing == []


def test_the_quotas_on_the_pages_are_those_that_preflight_asks() -> None:
    codes = {*AWS_ON_DEMAND.values(), *AWS_SPOT.values(), AWS_VPCS, AWS_ADDRESSES}
    assert set(re.findall(r"L-[0-9A-F]{8}", page("aws"))) == codes
    assert all(f"`{name}`" in page("alicloud") for name in (ALICLOUD_TYPES, ALICLOUD_VPCS, ALICLOUD_ADDRESSES))


def test_the_prices_on_the_pages_are_the_catalogs() -> None:
    text = page("aws")
    assert f"${GP3_USD_PER_GIB_MONTH} per GiB" in text
    assert f"${PUBLIC_IPV4_USD_PER_HOUR}/h" in text
    assert f"${NAT_USD_PER_HOUR}/h" in text
    for cloud in PAGES:
        for name, price in re.findall(r"by type; (\S+) \$([\d.]+)/h", page(cloud)):
            known = INSTANCE_TYPES[name].price
            assert known is not None
            assert float(price) == known.usd_per_hour


@pytest.mark.parametrize("cloud", PAGES)
def test_a_page_says_that_it_was_not_yet_run_on_a_real_cloud(cloud: str) -> None:
    assert "Not yet run on a real cloud" in page(cloud)
