"""provision.caller: two services must agree, and nothing is guessed."""

from __future__ import annotations

import pytest

from provision.caller import SERVICES, caller_cidr
from provision.errors import UsageError

A, B, C = SERVICES


def ask(a: str, b: str, c: str) -> str:
    said = {A: a, B: b, C: c}

    def fetch(url: str) -> str:
        if said[url] == "down":
            raise OSError("no route to host")
        return said[url]

    return caller_cidr({}, fetch=fetch)


def test_the_address_that_services_agree_on_is_the_only_one_let_in() -> None:
    assert ask("8.8.4.4\n", "8.8.4.4", "8.8.4.4") == "8.8.4.4/32"


def test_one_service_may_be_down() -> None:
    assert ask("8.8.4.4", "down", "8.8.4.4") == "8.8.4.4/32"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (("8.8.4.4", "down", "down"), "no route to host"),
        (("8.8.4.4", "8.8.4.4", "8.8.8.8"), "8.8.8.8"),
        (("<html>login</html>",) * 3, "which is no address"),
        (("10.0.0.7",) * 3, "no public address"),
        (("2001:4860:4860::8888",) * 3, "IPv6"),
    ],
)
def test_an_address_that_is_not_certain_is_an_error_that_names_the_option(said: tuple[str, str, str], why: str) -> None:
    with pytest.raises(UsageError) as caught:
        ask(*said)
    assert why in (caught.value.why or "")
    assert "--allowed-cidrs" in (caught.value.next_command or "")


def test_in_ci_nobodys_address_is_taken() -> None:
    with pytest.raises(UsageError) as caught:
        caller_cidr({"CI": "true"}, fetch=lambda url: "8.8.4.4")
    assert "--allowed-cidrs" in (caught.value.next_command or "")
