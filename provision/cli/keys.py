"""`deployctl keys list|add|rotate|revoke`."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli.names import NameArgument, NameOption, find_target
from provision.cli.output import JsonFlag, emit, emit_json, say
from provision.errors import DeployctlError, EndpointError, UsageError
from provision.keys import DEFAULT_KEY, add, digest, living, revoke, rotate

if TYPE_CHECKING:
    from provision.key_stores import KeyStore
    from provision.target import Deployed
    from provision.usage import Usage
    from runtime.deployment import ApiKey

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Who may ask the endpoint: named keys, without a restart."
)
SEEN_WITHIN_S = 60.0  # a machine of a cloud looks into its mailbox every few seconds
POLL_S = 0.2
COLUMNS = ("KEY", "STATE", "RPM", "TPM", "REQUESTS", "REFUSED", "TOKENS IN", "TOKENS OUT")

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The key's name.", show_default=False)]
RpmOption = Annotated[int | None, typer.Option("--rpm", min=1, help="Requests per minute. Default: no limit.")]
TpmOption = Annotated[
    int | None, typer.Option("--tpm", min=1, help="Tokens per minute, in and out. Default: no limit.")
]


@app.command("list")
def list_(name: NameArgument = None, name_option: NameOption = None, json: JsonFlag = False) -> None:
    """Show every key with its limits and its use since the server's start; never the key itself."""
    from provision.key_stores import key_store

    target = find_target(name, name_option)
    keys = living(key_store(target, say).read(), time.time())
    usage = known_usage(target)
    if json:
        emit_json([row_as_json(key, usage) for key in keys])
    else:
        from provision.cli.ps import table

        emit(table([COLUMNS, *(row(key, usage, time.time()) for key in keys)]))


@app.command("add")
def add_(
    key: KeyArgument,
    name: NameArgument = None,
    name_option: NameOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    json: JsonFlag = False,
) -> None:
    """Make a key. It is shown this once and kept nowhere; the machine knows its SHA-256 only."""
    from provision.state import make_api_key
    from runtime.deployment import ApiKey

    secret = make_api_key()
    with changing(name, name_option) as (target, store):
        made = ApiKey(name=key, sha256=digest(secret), rpm=rpm, tpm=tpm)
        store.write(add(store.read(), made, time.time()))
    show_secret(target, key, secret, json=json)


@app.command("rotate")
def rotate_(
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="The key's name.")] = DEFAULT_KEY,
    name: NameArgument = None,
    name_option: NameOption = None,
    grace: Annotated[str, typer.Option(help="How long the old key stays good: 10m, 1h; 0 = it ends at once.")] = "0",
    json: JsonFlag = False,
) -> None:
    """Give a key another secret; limits and use stay with the name. Without KEY it is deployctl's own."""
    from provision.state import make_api_key

    grace_s = seconds_of(grace)
    with changing(name, name_option) as (target, store):
        if key == DEFAULT_KEY:
            secret = store.renew_default(grace_s=grace_s)
        else:
            secret = make_api_key()
            store.write(rotate(store.read(), key, digest(secret), grace_s=grace_s, now=time.time()))
    say(f"the old key {'has ended' if grace_s == 0 else f'is good for {grace} more'}")
    show_secret(target, key, secret, json=json)


@app.command("revoke")
def revoke_(
    key: KeyArgument,
    name: NameArgument = None,
    name_option: NameOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """End a key at once. Requests that it has begun are answered to their end."""
    from provision.cli.ask import confirm_name

    with changing(name, name_option) as (target, store):
        left = revoke(store.read(), key, time.time())
        again = f"deployctl keys revoke {key} --name {target.name} --yes"
        confirm_name(f"the key {key} of {target.name} is revoked", key, yes=yes, command=again)
        store.write(left)
    if json:
        emit_json({"deployment": target.name, "revoked": key})
    else:
        emit(f"{key} is refused from now on")


@contextlib.contextmanager
def changing(argument: str | None, option: str | None) -> Iterator[tuple[Deployed, KeyStore]]:
    """The deployment and its keys, with its lock held."""
    from provision.key_stores import key_store

    target = find_target(argument, option)
    with lock_of(target):
        yield target, key_store(target, say)


@contextlib.contextmanager
def lock_of(target: Deployed) -> Iterator[None]:
    """The deployment's lock, wherever it is kept; a machine elsewhere is told who asks. Raises LockedError."""
    from provision import audit
    from provision.host import HostTarget
    from provision.local import LocalTarget
    from provision.state import locked, this_command

    command = this_command()
    if isinstance(target, LocalTarget | HostTarget):
        with locked(target.state, command):
            if isinstance(target, HostTarget):
                from provision.host_agreement import agree

                agree(target)
                audit.tell(target.put, command)
            yield
        return
    from provision.cloud import CloudTarget
    from provision.lease import leased

    if not isinstance(target, CloudTarget):
        raise TypeError(f"{type(target).__name__} has no lock")
    with leased(target, command, say):
        yield


def seconds_of(text: str) -> int:
    """Raises UsageError."""
    from provision.values import duration_seconds

    try:
        return duration_seconds(text)
    except ValueError as error:
        raise UsageError(f"--grace: {error}", next_command="deployctl keys rotate --grace 10m") from None


def show_secret(target: Deployed, key: str, secret: str, *, json: bool) -> None:
    """The one time that a key is seen; after the endpoint has let it in, where that can be asked from here."""
    seen = is_let_in(target, secret)
    if seen:
        say("the endpoint lets it in")
    else:
        say(f"the endpoint could not be asked from here; it counts as soon as the machine reads it: {target.name}")
    if json:
        emit_json({"deployment": target.name, "key": key, "secret": secret, "let_in": seen})
    else:
        say(f"{key}, shown this once:")
        emit(secret)


def is_let_in(target: Deployed, secret: str) -> bool:
    """Whether the endpoint takes `secret`, once it has had the time to hear of it. False where it cannot be asked."""
    from provision.client import OpenAIClient

    try:
        access = target.access()
        deadline = time.monotonic() + SEEN_WITHIN_S
        with OpenAIClient(access.base_url, secret, access.certificate) as client:
            while client.status_of("models") == 401:
                if time.monotonic() > deadline:
                    return False
                time.sleep(POLL_S)
    except DeployctlError:
        return False
    return True


def known_usage(target: Deployed) -> Usage | None:
    """None, and why on stderr, where the endpoint cannot be asked."""
    from provision.usage import fetch_usage

    try:
        return fetch_usage(target.access())
    except DeployctlError as error:
        why = str(error) if isinstance(error, EndpointError) else error.what
        say(f"use is not known: {why}")
        return None


def row(key: ApiKey, usage: Usage | None, now: float) -> tuple[str, ...]:
    """One line of the table. The key before a rotation shares its name's use, shown with the current one."""
    from provision.progress import format_seconds

    state = "current" if key.expires_at is None else f"old, ends in {format_seconds(key.expires_at - now)}"
    limits = tuple("-" if limit is None else str(limit) for limit in (key.rpm, key.tpm))
    if usage is None or key.expires_at is not None:
        return (key.name, state, *limits, "-", "-", "-", "-")
    seen = usage.of(key.name)
    counts = (seen.requests, seen.refused, seen.prompt_tokens, seen.completion_tokens)
    return (key.name, state, *limits, *map(str, counts))


def row_as_json(key: ApiKey, usage: Usage | None) -> dict[str, object]:
    seen = None if usage is None or key.expires_at is not None else dataclasses.asdict(usage.of(key.name))
    return {"key": key.name, "rpm": key.rpm, "tpm": key.tpm, "expires_at": key.expires_at, "usage": seen}
