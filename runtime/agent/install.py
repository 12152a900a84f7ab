"""What makes a machine one of deployctl's: users, folders, units, and no upgrades behind its back. Safe to repeat.

`install_agent` is stage 0's last step, `open_port` the agent's first. Both write only what has changed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from runtime.agent.units import EXIT_CONFIG
from runtime.mailbox import write_atomic
from runtime.vm import ENGINE_USER, GROUP, METADATA_ADDRESS, RUN_DIR, SERVER_USER, STATE_DIR, VM_FILE, decode_vm

ANY_ADDRESS = "0.0.0.0"
UNIT_DIR = Path("/etc/systemd/system")
SYSUSERS = Path("/etc/sysusers.d/deployctl.conf")
TMPFILES = Path("/etc/tmpfiles.d/deployctl.conf")
AGENT_UNIT = "deployctl-agent.service"
SOCKET_UNIT = "deployctl.socket"
SERVER_UNIT = "deployctl-server.service"
ENGINE_UNIT = "deployctl-engine.service"
# They replace a running GPU driver, after which nvidia-smi says "Driver/library version mismatch" until a reboot.
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "unattended-upgrades.service")
EC2_METADATA_IPV6 = "fd00:ec2::254"
_HELD = re.compile(r"(nvidia|libnvidia|cuda-drivers|libcuda\d*|linux-(image|headers|modules|generic|aws|cloud))\b.*")

Call = Callable[[tuple[str, ...]], str]
"""Runs a command and returns its output; raises InstallError when it fails."""


class InstallError(Exception):
    """A step of the installation failed. `hint` says what may help."""

    def __init__(self, error: str, hint: str) -> None:
        super().__init__(error)
        self.hint = hint


def install_agent(root: Path = Path("/"), call: Call | None = None, *, upgrades: bool = False) -> None:
    """Users, folders and the agent's unit; starts the agent, or leaves a running one alone. Raises InstallError.

    `root`: where files are written. `call` runs the commands of the machine. `upgrades`: they go on, as their owner
    wants, where the machine was not made by deployctl.
    """
    call = call or run_command
    place(root, SYSUSERS, render("sysusers.conf.j2"))
    place(root, TMPFILES, render("tmpfiles.conf.j2"))
    place(root, UNIT_DIR / AGENT_UNIT, render(f"{AGENT_UNIT}.j2"))
    call(("systemd-sysusers", str(SYSUSERS)))
    call(("systemd-tmpfiles", "--create", str(TMPFILES)))
    if not upgrades:
        stop_upgrades(call)
    call(("systemctl", "daemon-reload"))
    call(("systemctl", "enable", AGENT_UNIT))
    attempt(call, "systemctl", "reset-failed", AGENT_UNIT)  # else systemd does not start what it has given up
    call(("systemctl", "start", AGENT_UNIT))


def open_port(port: int, root: Path = Path("/"), call: Call | None = None, address: str = ANY_ADDRESS) -> bool:
    """Socket, server and engine as this version wants them, and the socket listens on `port` of `address`.

    True: something has changed, so that a server that runs must start again; when the socket has changed, both have
    been stopped. May be cut off anywhere and repeated. Raises InstallError.
    """
    call = call or run_command
    socket = render(f"{SOCKET_UNIT}.j2", port, address)
    moved = differs(root, UNIT_DIR / SOCKET_UNIT, socket)
    if moved:  # before the file: whoever comes after a cut finds them stopped, or the old file
        attempt(call, "systemctl", "stop", SERVER_UNIT, SOCKET_UNIT)
        place(root, UNIT_DIR / SOCKET_UNIT, socket)
    changed = [place(root, UNIT_DIR / unit, render(f"{unit}.j2")) for unit in (SERVER_UNIT, ENGINE_UNIT)]
    call(("systemctl", "daemon-reload"))
    attempt(call, "systemctl", "reset-failed", SOCKET_UNIT)
    call(("systemctl", "start", SOCKET_UNIT))
    return moved or any(changed)


def attempt(call: Call, *argv: str) -> None:
    """For what systemd refuses when there is nothing to do, as `stop` of a unit that it has not loaded."""
    with contextlib.suppress(InstallError):
        call(argv)


def stop_upgrades(call: Call) -> None:
    """No upgrade by itself, of driver and kernel not even one by hand without `apt-mark unhold`."""
    for unit in MASKED:
        attempt(call, "systemctl", "stop", unit)  # first: a timer that is masked while it waits counts as failed
    call(("systemctl", "mask", *MASKED))
    if shutil.which("dpkg-query") is None:
        return
    held = packages_to_hold(call(("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Package}\n")))
    if held:
        call(("apt-mark", "hold", *held))


def packages_to_hold(listing: str) -> tuple[str, ...]:
    """Installed packages of GPU driver and kernel. `listing`: lines "ii name" of dpkg-query."""
    found = (line.split() for line in listing.splitlines())
    return tuple(sorted({words[1] for words in found if words[:1] == ["ii"] and _HELD.fullmatch(words[1])}))


def render(template: str, port: int = 0, address: str = ANY_ADDRESS) -> str:
    """One of `templates/` for this machine. `port` and `address` are used by the socket only."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_read),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        port=port,
        address=address,
        state=STATE_DIR,
        run=RUN_DIR,
        vm_file=VM_FILE,
        server_user=SERVER_USER,
        engine_user=ENGINE_USER,
        group=GROUP,
        exit_config=EXIT_CONFIG,
        metadata=" ".join([*METADATA_ADDRESS.values(), EC2_METADATA_IPV6]),
    )


def differs(root: Path, path: Path, text: str) -> bool:
    """True when `path` below `root` is missing or holds something else."""
    target = root / path.relative_to("/")
    return not target.exists() or target.read_text() != text


def place(root: Path, path: Path, text: str) -> bool:
    """Writes `path` below `root`, mode 0644. True when its content has changed."""
    target = root / path.relative_to("/")
    if not differs(root, path, text):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    write_atomic(new, text.encode())
    os.chmod(new, 0o644)
    os.replace(new, target)
    return True


def run_command(argv: tuple[str, ...]) -> str:
    """Raises InstallError with the command's last words."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InstallError(f"{argv[0]}: {error.strerror}", "choose an image with systemd 247 or newer") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise InstallError(f"{' '.join(argv[:3])}: {said or f'exit {done.returncode}'}", "see `journalctl -b`")
    return done.stdout


def run(vm_file: Path) -> int:
    """`deployctl-runtime install`."""
    try:
        vm = decode_vm(vm_file.read_bytes())
        install_agent(upgrades=vm.provider == "host")
    except (OSError, ValueError) as error:
        print(f"error: {vm_file}: {error} | hint: this command is for a VM that deployctl has made", file=sys.stderr)
        return 1
    except InstallError as error:
        print(f"error: {error} | hint: {error.hint}", file=sys.stderr)
        return 1
    return 0


def _read(name: str) -> str:
    return resources.files("templates").joinpath(name).read_text("utf-8")
