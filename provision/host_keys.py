"""The first meeting with a machine of the user's own: its host key is confirmed by somebody, never taken silently.

By the user's own known_hosts, by `--host-key SHA256:…`, or by a person who compares fingerprints.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from provision.errors import ConnectionFailedError, DeclinedError, UsageError
from provision.ssh import PORT, Login, explain, fingerprint

ON_THE_MACHINE = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"

Ask = Callable[[str], bool]
"""Shows a question and returns whether the answer was yes."""


def lookup_argv(address: str, port: int, file: Path) -> list[str]:
    """Lines of a known_hosts file about a machine; hashed names are found too."""
    return ["ssh-keygen", "-F", address if port == PORT else f"[{address}]:{port}", "-f", str(file)]


def parse_known(text: str) -> tuple[str, ...]:
    """Host keys of the lookup's answer. Revoked keys and authorities are no keys of the machine."""
    rows = (line.split() for line in text.splitlines() if line.strip() and line[0] not in "#@")
    return tuple(f"{row[1]} {row[2]}" for row in rows if len(row) >= 3)


def known_keys(address: str, port: int, file: Path | None = None) -> tuple[str, ...]:
    """What the user's own known_hosts says about a machine; nothing without ssh-keygen or the file."""
    path = file or Path.home() / ".ssh" / "known_hosts"
    if not path.is_file():
        return ()
    try:
        done = subprocess.run(lookup_argv(address, port, path), capture_output=True, text=True, check=False)
    except OSError:
        return ()
    return parse_known(done.stdout)


def confirm_key(login: Login, *, wanted: str | None, ask: Ask | None, file: Path | None = None) -> str:
    """The machine's host key, "ssh-ed25519 AAAA…", once somebody vouches for it. `login.host_key` is not used.

    `wanted`: "SHA256:…" or the key itself. `ask`: None where nobody can be asked. Raises ConnectionFailedError,
    UsageError, DeclinedError.
    """
    if wanted is not None:
        return _matching(login, wanted.strip())
    known = known_keys(login.host, login.port, file)
    shown = _read(login, tuple(key.split()[0] for key in known))
    if known:
        if shown in known:
            return shown
        raise explain(login, f"host key of {login.host} does not match your known_hosts: it shows {fingerprint(shown)}")
    if ask is None:
        raise UsageError(
            f"nobody has confirmed the host key of {login.host}: {fingerprint(shown)}",
            why=f"it is in no known_hosts of yours, and there is no terminal to ask; on that machine,\n"
            f"`{ON_THE_MACHINE}` prints the right one",
            next_command="the same command with --host-key SHA256:…",
        )
    question = (
        f"{login.host} shows the host key {fingerprint(shown)} ({shown.split()[0]}).\n"
        f"On that machine, `{ON_THE_MACHINE}` prints the right one. Are they the same?"
    )
    if not ask(question):
        raise DeclinedError("stopped: the host key was not confirmed", why="nothing was sent to that machine")
    return shown


def _matching(login: Login, wanted: str) -> str:
    """The one of the machine's keys that was named: it has one of each kind."""
    from provision.remote import KEY_KINDS

    seen: list[str] = []
    for kind in KEY_KINDS:
        try:
            shown = _read(login, (kind,))
        except ConnectionFailedError:
            if not seen and kind == list(KEY_KINDS)[-1]:
                raise
            continue  # the machine has no key of this kind
        seen.append(shown)
        if wanted in (fingerprint(shown), shown):
            return shown
    raise explain(
        login, f"host key of {login.host} does not match --host-key: it shows {', '.join(map(fingerprint, seen))}"
    )


def _read(login: Login, kinds: tuple[str, ...]) -> str:
    """Raises ConnectionFailedError."""
    from provision.remote import failures, read_host_key

    with failures(login):
        return read_host_key(login.host, login.port, kinds)
