"""What is decided once and then stays in the stack's state: API key, SSH key, caller's address, birth and end.

Each is a resource of its own, so that a second run finds the value of the first one.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pulumi
import pulumi_random as random
import pulumi_tls as tls
from pulumi_command import local

import provision
from provision.spec import DeploymentSpec, Problem, SpecError
from provision.stack_settings import StackSettings

KEY_BYTES = 32
RSA_BITS = 3072
PRIVATE_RANGES = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")  # RFC 1918
CODE_DIR = str(Path(provision.__file__).resolve().parents[1])  # where `python -m provision…` finds this version
_CALLER = "import os; from provision.caller import caller_cidr; print(caller_cidr(os.environ))"


@dataclass(frozen=True, slots=True)
class SshKey:
    """`public` in OpenSSH's form; `private` is a secret, None where the user keeps it."""

    public: pulumi.Output[str]
    private: pulumi.Output[str | None]


def pin_region(spec: DeploymentSpec) -> local.Command:
    """What everything of the cloud waits for: it fails when a stack that exists is asked for in another region.

    There it would be made anew beside what is left here, under names that an account has only once. A preview cannot
    see it: it shows this command as one to update.
    """
    refusal = (
        f"the region of {spec.name} cannot change: `deployctl down {spec.name}` (or `pulumi destroy`) comes first, "
        "or another name for the other region"
    )
    return local.Command(
        f"{spec.name}-region",
        create=f"echo {shlex.quote(spec.region or '')}",
        update=f"echo {shlex.quote(refusal)} >&2; exit 1",
    )


def make_api_key(spec: DeploymentSpec, settings: StackSettings, parent: pulumi.Resource) -> pulumi.Output[str]:
    """The user's own key, else a random one of 256 bits, and another one for each round. Secret."""
    if spec.api_key is not None:
        return pulumi.Output.secret(spec.api_key.get_secret_value())
    keepers = {"round": str(settings.key_round)} if settings.key_round else None
    options = pulumi.ResourceOptions(parent=parent)
    made = random.RandomBytes(f"{spec.name}-api-key", length=KEY_BYTES, keepers=keepers, opts=options)
    return made.base64.apply(_as_api_key)


def make_ssh_key(spec: DeploymentSpec, parent: pulumi.Resource) -> SshKey:
    """The user's public key, else a new pair: ed25519, and RSA for Alibaba Cloud, which imports no other new kind.

    Raises SpecError for a file that cannot be read, and for a key that the cloud does not take.
    """
    ed25519 = spec.cloud != "alicloud"
    if spec.ssh_public_key is not None:
        text = spec.ssh_public_key
        public = read_file("ssh_public_key", text).strip() if text.endswith(".pub") else text
        if not ed25519 and "ssh-ed25519" in public:
            reason = "Alibaba Cloud takes RSA and ECDSA keys only: make one with `ssh-keygen -t rsa -b 4096`"
            raise SpecError([Problem("ssh_public_key", reason)])
        return SshKey(pulumi.Output.from_input(public), pulumi.Output.from_input(None))
    pair = tls.PrivateKey(
        f"{spec.name}-ssh",
        algorithm="ED25519" if ed25519 else "RSA",
        rsa_bits=None if ed25519 else RSA_BITS,
        opts=pulumi.ResourceOptions(parent=parent),
    )
    return SshKey(pair.public_key_openssh.apply(str.strip), pair.private_key_openssh.apply(lambda text: text))


def decide_expiry(spec: DeploymentSpec, settings: StackSettings, parent: pulumi.Resource) -> pulumi.Output[int | None]:
    """Seconds since the epoch when the cloud ends the machine, None = never. Without a stored time the TTL counts
    from the first run, and anew when it changes."""
    if spec.ttl_seconds == 0:
        return pulumi.Output.from_input(None)
    if settings.expires_at is not None:
        return pulumi.Output.from_input(settings.expires_at)
    counted = local.Command(
        f"{spec.name}-expiry",
        create=f"echo $(( $(date +%s) + {spec.ttl_seconds} ))",
        triggers=[spec.ttl],
        opts=pulumi.ResourceOptions(parent=parent),
    )
    return counted.stdout.apply(int)


def note_birth(spec: DeploymentSpec, instance_id: pulumi.Output[str], parent: pulumi.Resource) -> pulumi.Output[int]:
    """Seconds since the epoch when this machine was made: what it has cost is counted from there."""
    noted = local.Command(
        f"{spec.name}-birth",
        create="date +%s",
        triggers=[instance_id],
        opts=pulumi.ResourceOptions(parent=parent),
    )
    return noted.stdout.apply(int)


def allowed_cidrs(spec: DeploymentSpec, parent: pulumi.Resource) -> list[pulumi.Output[str]]:
    """Who may connect: as the spec says; else the private ranges (intranet) or the caller's own address (public),
    looked up at the first run."""
    if spec.allowed_cidrs or spec.endpoint == "intranet":
        return [pulumi.Output.from_input(cidr) for cidr in spec.allowed_cidrs or PRIVATE_RANGES]
    asked = local.Command(
        f"{spec.name}-caller",
        create=shlex.join([sys.executable, "-c", _CALLER]),
        dir=CODE_DIR,
        # The same program on another laptop has other paths; the caller's address is not asked for again.
        opts=pulumi.ResourceOptions(parent=parent, ignore_changes=["create", "dir"]),
    )
    return [asked.stdout]


def read_file(field: str, path: str) -> str:
    """A file that the spec names, relative to the project's folder. Raises SpecError."""
    found = absolute(path)
    try:
        return found.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([Problem(field, f"{found} cannot be read ({error})")]) from None


def absolute(path: str) -> Path:
    """`path` from the folder of Pulumi.yaml: the program itself runs in a folder below it."""
    return Path(pulumi.get_root_directory()) / Path(path).expanduser()


def _as_api_key(base64: str) -> str:
    return "sk-" + base64.translate(str.maketrans("+/", "-_")).rstrip("=")
