"""The certificate that a VM makes or is given."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from runtime.agent.files import Access
from runtime.agent.identity import Keeper, Pair, make_pair, read_own, read_ssh_host_key
from runtime.agent.status import PhaseError

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
NAMES = ("203.0.113.7", "10.0.0.4", "llm.example.org")


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path / "tls", Access(0o640, 0o750))


def secret(pair: Pair) -> bytes:
    return msgspec.json.encode({"certificate": pair.certificate.decode(), "key": pair.key.decode()})


def test_the_certificate_names_every_address_and_host_name() -> None:
    certificate = x509.load_pem_x509_certificate(make_pair(NAMES, NOW).certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == list(NAMES[:2])
    assert names.get_values_for_type(x509.DNSName) == [NAMES[2]]


def test_an_instance_keeps_its_certificate_over_restarts(keeper: Keeper) -> None:
    assert keeper.ensure_pinned("i-1", NAMES, NOW)
    before = keeper.certificate()
    assert not keeper.ensure_pinned("i-1", NAMES, NOW + timedelta(days=365))
    assert keeper.certificate() == before


@pytest.mark.parametrize(
    ("instance", "names", "later"),
    [
        ("i-2", NAMES, timedelta(0)),
        ("i-1", (*NAMES, "198.51.100.9"), timedelta(0)),
        ("i-1", NAMES, timedelta(days=800)),
    ],
    ids=["another instance, from an image of this one", "another address", "nearly over"],
)
def test_a_certificate_that_does_not_fit_any_more_is_made_anew(
    keeper: Keeper, instance: str, names: tuple[str, ...], later: timedelta
) -> None:
    keeper.ensure_pinned("i-1", NAMES, NOW)
    before = keeper.certificate()
    assert keeper.ensure_pinned(instance, names, NOW + later)
    assert keeper.certificate() != before


def test_a_pair_that_was_cut_off_while_it_was_written_is_made_anew(keeper: Keeper) -> None:
    keeper.ensure_pinned("i-1", NAMES, NOW)
    keeper.certificate_file.with_name("key.pem").unlink()
    assert keeper.ensure_pinned("i-1", NAMES, NOW)


def test_key_and_certificate_can_be_read_by_the_servers_group_and_nobody_else(keeper: Keeper) -> None:
    keeper.ensure_pinned("i-1", NAMES, NOW)
    for name in ("key.pem", "certificate.pem"):
        assert stat.S_IMODE(keeper.certificate_file.with_name(name).stat().st_mode) == 0o640


def test_the_users_own_chain_is_served_and_its_first_certificate_is_the_machines(keeper: Keeper) -> None:
    own, other = make_pair(("own.example.org",), NOW), make_pair(("authority",), NOW)
    chain = Pair(own.certificate + other.certificate, own.key)
    assert keeper.ensure_own(secret(chain), NOW)
    assert keeper.leaf() == ssl.PEM_cert_to_DER_cert(own.certificate.decode())
    assert not keeper.ensure_own(secret(chain), NOW)


def test_a_change_from_own_to_pinned_makes_a_new_certificate(keeper: Keeper) -> None:
    keeper.ensure_pinned("i-1", NAMES, NOW)
    keeper.ensure_own(secret(make_pair(("own.example.org",), NOW)), NOW)
    assert keeper.ensure_pinned("i-1", NAMES, NOW)


def test_a_key_of_another_certificate_is_refused() -> None:
    mixed = Pair(make_pair(NAMES, NOW).certificate, make_pair(NAMES, NOW).key)
    with pytest.raises(PhaseError, match="tls_key does not belong"):
        read_own(secret(mixed), NOW)


@pytest.mark.parametrize("days", [-10, 900])
def test_a_certificate_that_is_not_valid_today_is_refused_with_its_dates(days: int) -> None:
    with pytest.raises(PhaseError, match=r"valid from 2026-06-30 to 2028-10-02, today is") as caught:
        read_own(secret(make_pair(NAMES, NOW)), NOW + timedelta(days=days))
    assert "renew" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [None, b"{}", b'{"certificate": "x", "key": "y"}', b'{"certificate": "", "key": "", "more": 1}'],
    ids=["missing", "empty", "no PEM", "unknown field"],
)
def test_a_secret_that_is_no_pair_is_refused_with_what_to_set(content: bytes | None) -> None:
    with pytest.raises(PhaseError, match=r"secrets/tls\.json") as caught:
        read_own(content, NOW)
    assert "tls_cert and tls_key" in caught.value.hint


def test_the_ssh_host_key_is_told_without_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_text("ssh-ed25519 AAAAC3Nz root@ip-10-0-0-4\n")
    assert read_ssh_host_key(path) == "ssh-ed25519 AAAAC3Nz"
    assert read_ssh_host_key(tmp_path / "absent") is None
