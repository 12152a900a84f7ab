"""Where Pulumi keeps the stacks: the backend that the user is logged in to, else a folder of this tool.

$XDG_STATE_HOME/deployctl/.pulumi/
    backend/       the file backend, used where nobody is logged in
    passphrase     what encrypts its secrets: random, mode 0600
    project/       Pulumi.yaml and __main__.py, for deployctl that does not run from a checkout; Pulumi.<stack>.yaml
    certificates/  what endpoints' clients pin, one PEM file per deployment
    ssh/<name>/    key and host key of a deployment's machine

`deployctl config pulumi` prints the variables with which a plain `pulumi` works on the same stacks. Nothing here
imports Pulumi: `deployctl ps` asks whether there may be stacks at all before it waits for that.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provision.errors import MissingPartError
from provision.state import cache_root, state_root
from runtime.mailbox import write_atomic

PROJECT = "deployctl"
PASSPHRASE_BYTES = 32
_PULUMI_MODULES = ("pulumi", "pulumi_command", "pulumi_random", "pulumi_tls")
CLOUD_MODULES = {
    "aws": (*_PULUMI_MODULES, "pulumi_aws", "boto3"),
    "alicloud": (*_PULUMI_MODULES, "pulumi_alicloud", "alibabacloud_oss_v2", "alibabacloud_tea_openapi"),
}
PROJECTS_VARIABLE = "DEPLOYCTL_PROJECTS"
_PASSPHRASE_VARIABLES = ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE")
_PROGRAM = '''"""Written by deployctl: runs the Pulumi program of the installed version."""

import runpy

runpy.run_module("stacks", run_name="__main__", alter_sys=True)
'''


@dataclass(frozen=True, slots=True)
class Backend:
    """A place for stacks. `variables` is what pulumi needs in its environment; `own`: it is our folder."""

    own: bool
    variables: tuple[tuple[str, str], ...]


def check_parts(cloud: str) -> None:
    """Raises MissingPartError when this installation cannot deploy to `cloud`."""
    missing = [name for name in CLOUD_MODULES[cloud] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPartError(
            f"this installation of deployctl cannot deploy to {cloud}",
            why=f"not installed: {', '.join(missing)}",
            next_command=f"pip install 'deployctl[{cloud}]'",
        )


def has_pulumi() -> bool:
    """Whether Pulumi's Python SDK is installed; without it this user has made no stacks from here."""
    return importlib.util.find_spec("pulumi") is not None


def pulumi_root() -> Path:
    """Folder of everything that concerns Pulumi; its name is none that a deployment may have."""
    return state_root() / ".pulumi"


def choose_backend(environ: Mapping[str, str]) -> Backend:
    """The user's backend and secrets provider where there are any, else our folder with our passphrase.

    Writes nothing; `prepare` does.
    """
    if is_logged_in(environ):
        return Backend(own=False, variables=())
    root = pulumi_root()
    variables = [("PULUMI_BACKEND_URL", (root / "backend").as_uri())]
    if not any(environ.get(name) for name in _PASSPHRASE_VARIABLES):
        variables.append(("PULUMI_CONFIG_PASSPHRASE_FILE", str(root / "passphrase")))
    return Backend(own=True, variables=tuple(variables))


def is_logged_in(environ: Mapping[str, str]) -> bool:
    """Whether a plain `pulumi` would know its backend."""
    if environ.get("PULUMI_BACKEND_URL") or environ.get("PULUMI_ACCESS_TOKEN"):
        return True
    home = Path(environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    folder = Path(environ.get("PULUMI_CREDENTIALS_PATH") or home)
    try:
        return bool(json.loads((folder / "credentials.json").read_bytes()).get("current"))
    except (OSError, ValueError, AttributeError):
        return False


def may_hold_stacks(environ: Mapping[str, str]) -> bool:
    """False when there can be no stack, so that nobody need wait for the pulumi command to say so."""
    return is_logged_in(environ) or (pulumi_root() / "backend").is_dir()


def prepare(backend: Backend) -> Path:
    """Makes what the backend needs and returns the folder of the project. Raises OSError."""
    if backend.own:
        (pulumi_root() / "backend").mkdir(mode=0o700, parents=True, exist_ok=True)
    passphrase = pulumi_root() / "passphrase"
    if str(passphrase) in dict(backend.variables).values() and not passphrase.exists():
        write_atomic(passphrase, secrets.token_urlsafe(PASSPHRASE_BYTES).encode())
    return project_folder()


def project_folder() -> Path:
    """The checkout's root where a plain `pulumi up` there would run this very Python, else a folder of ours: below
    $DEPLOYCTL_PROJECTS where that is set, else below the state folder.

    Stack config (Pulumi.<stack>.yaml) lies in it, so it must stay the same from run to run.
    """
    chosen = os.environ.get(PROJECTS_VARIABLE)
    root = Path(__file__).resolve().parent.parent
    if not chosen and (root / "Pulumi.yaml").is_file() and Path(sys.prefix).resolve() == root / ".venv":
        return root
    folder = (Path(chosen) if chosen else pulumi_root()) / "project"
    for name, text in (("Pulumi.yaml", project_text(sys.prefix, sys.base_prefix)), ("__main__.py", _PROGRAM)):
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text.encode())
    return folder


def project_text(prefix: str, base_prefix: str) -> str:
    """A Pulumi.yaml whose program runs in the virtual environment `prefix`, where it is one. JSON is YAML."""
    options = {"virtualenv": prefix} if prefix != base_prefix else {}
    settings = {"name": PROJECT, "runtime": {"name": "python", "options": options}, "main": "."}
    return json.dumps(settings, indent=2) + "\n"


def find_pulumi(environ: Mapping[str, str]) -> Path | None:
    """The pulumi command: the one on PATH, else our own copy, else where Pulumi's installer puts it."""
    on_path = shutil.which("pulumi", path=environ.get("PATH"))
    if on_path is not None:
        return Path(on_path)
    home = Path(environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    for root in (own_copy(), home):
        command = root / "bin" / "pulumi"
        if os.access(command, os.X_OK):
            return command
    return None


def own_copy() -> Path:
    """Where deployctl installs the pulumi command, with the user's consent."""
    return cache_root() / "pulumi"


def certificate_file(name: str) -> Path:
    """The PEM that clients of deployment `name` trust."""
    return pulumi_root() / "certificates" / f"{name}.pem"


def ssh_folder(name: str) -> Path:
    """Where the key and the host key of deployment `name` on a cloud lie."""
    return pulumi_root() / "ssh" / name


def shell_lines(backend: Backend) -> str:
    """Lines to eval, after which a plain `pulumi` works on the same stacks."""
    import shlex

    folder = project_folder()
    values = {**dict(backend.variables), "PULUMI_PYTHON_CMD": sys.executable}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    return "\n".join([*exports, f"cd {shlex.quote(str(folder))}"])
