"""The machine as its own software knows it, a cloud's VM or a host: `vm.json`, and where things lie on its disk.

/etc/deployctl/vm.json          Vm, written by user-data (on a host by `up`), constant for the VM's life
/var/lib/deployctl/             the machine folder, laid out like the one of a local deployment
    releases/<id>/              deployment.json, weights.json, venv -> ../../venvs/<sha256[:12]>
    current -> releases/<id>
    venvs/<sha256[:12]>/        one virtual environment per wheel
    agent -> venvs/…            the one that the agent runs from
    spool/                      the mailbox, where it is no bucket: `Vm.spool`
    tls/                        certificate.pem, key.pem
    models/, hub/               weights (moved to the data disk where there is one)
/run/deployctl/                 engine.sock, status.json, keys.json: gone with a reboot, made anew by the agent
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from runtime.deployment import Struct

Provider = Literal["aws", "alicloud"]
Place = Literal["aws", "alicloud", "host"]  # "host": a machine of the user's own

# Units whose lines are one log, by its name for people; on a local deployment they are files.
LOG_UNITS: Mapping[str, tuple[str, ...]] = {
    "agent": ("deployctl-agent.service",),
    "server": ("deployctl-server.service", "caddy.service"),
    "engine": ("deployctl-engine.service",),
    "boot": (
        "cloud-init-local.service",
        "cloud-init-main.service",
        "cloud-init-network.service",
        "cloud-init.service",
        "cloud-config.service",
        "cloud-final.service",
        "deployctl-stage0.service",
    ),
}
VM_FILE = Path("/etc/deployctl/vm.json")
STATE_DIR = Path("/var/lib/deployctl")
SPOOL_DIR = STATE_DIR / "spool"
RUN_DIR = Path("/run/deployctl")
SERVER_USER = "deployctl-server"
ENGINE_USER = "deployctl-engine"
GROUP = "deployctl"
METADATA_ADDRESS: dict[Provider, str] = {"aws": "169.254.169.254", "alicloud": "100.100.100.200"}


class Vm(Struct, frozen=True, omit_defaults=True):
    """What user-data tells the VM: enough to find the mailbox, and nothing that may change.

    `endpoint` is the base URL below which the mailbox's keys lie, for example
    https://<bucket>.s3.<region>.amazonaws.com or https://<bucket>.oss-<region>-internal.aliyuncs.com. With `spool` the
    mailbox is that folder of the VM: `bucket` is empty, and `endpoint` the store's own, for weights. A host has a spool
    always, and `id`, because no metadata service says who it is.
    """

    name: str
    provider: Place
    region: str
    bucket: str
    endpoint: str
    spool: str | None = None
    id: str | None = None


def decode_vm(data: bytes) -> Vm:
    return msgspec.json.decode(data, type=Vm)
