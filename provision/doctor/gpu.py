"""GPU and driver. Xid numbers: NVIDIA, "XID Errors" (docs.nvidia.com/deploy/xid-errors)."""

from __future__ import annotations

from provision.doctor.evidence import KERNEL, NVIDIA_SMI, STATUS
from provision.doctor.rule import LOGS, Look, Rule, any_of, said, while_not_ready

ELSEWHERE = "deployctl stop {name} && deployctl wake {name}: another machine of the cloud, as a rule"
REBOOT = "deployctl exec {name} -- sudo reboot"


def xid(*numbers: int) -> Look:
    """One of these Xid events in the kernel's log: "NVRM: Xid (PCI:0000:00:1e): 79, …"."""
    choice = "|".join(map(str, numbers))
    return said(rf"NVRM: Xid \([^)]*\): (?:{choice})\b", KERNEL, *LOGS)


RULES = (
    Rule(
        "gpu-fell-off-the-bus",
        "kernel: Xid 79, or nvidia-smi: GPU is lost",
        "the GPU has fallen off the bus: hardware of this very machine",
        ELSEWHERE,
        any_of(xid(79), said(r"GPU is lost|fallen off the bus", NVIDIA_SMI, KERNEL)),
    ),
    Rule(
        "gpu-memory-broken",
        "kernel: Xid 48, 63, 64, 92, 94, 95, 171 or 172",
        "memory of the GPU has errors that cannot be corrected",
        ELSEWHERE,
        xid(48, 63, 64, 92, 94, 95, 171, 172),
    ),
    Rule(
        "gpu-link-broken",
        "kernel: Xid 74, 144 to 150",
        "the link between GPUs (NVLink) fails",
        ELSEWHERE,
        xid(74, *range(144, 151)),
    ),
    Rule(
        "gpu-firmware-hangs",
        "kernel: Xid 61, 62, 119, 120 or 154",
        "the GPU's own processor does not answer its driver",
        REBOOT + "; if it comes back: " + ELSEWHERE,
        xid(61, 62, 119, 120, 154),
    ),
    Rule(
        "gpu-kernel-fault",
        "kernel: Xid 13, 31 or 45",
        "a kernel of the engine has read or written where it must not: a fault of deployctl, rarely of the GPU",
        "deployctl logs {name} --engine, and report it with these lines; the engine starts again by itself",
        xid(13, 31, 45),
    ),
    Rule(
        "driver-changed-under-way",
        "nvidia-smi: Driver/library version mismatch",
        "the driver's files were upgraded while the old driver is loaded: automatic upgrades were on",
        REBOOT,
        said(r"Driver/library version mismatch", NVIDIA_SMI, STATUS, *LOGS),
    ),
    Rule(
        "driver-too-old",
        "status or engine: driver too old",
        "the image's NVIDIA driver is older than the CUDA that torch was built for",
        "deployctl down {name}, then up with --image <one with driver 580 or newer>; or redeploy with "
        "--pip-index for another torch",
        said(r"NVIDIA driver \S+ is too old|NVIDIA driver on your system is too old", STATUS, "agent", "engine"),
    ),
    Rule(
        "driver-not-signed",
        "kernel: module verification, Key was rejected",
        "Secure Boot keeps the NVIDIA driver out",
        "switch Secure Boot off for this machine, or sign the module (mokutil --import)",
        said(
            r"(?:nvidia|NVRM).*(?:Key was rejected|Required key not available)|Lockdown: modprobe.*nvidia",
            KERNEL,
            *LOGS,
        ),
    ),
    Rule(
        "driver-and-nouveau",
        "kernel: nouveau",
        "the open driver nouveau holds the GPU, so that NVIDIA's cannot",
        "deployctl exec {name} -- sudo sh -c 'echo blacklist nouveau > /etc/modprobe.d/nouveau.conf; reboot'",
        said(r"NVRM: .*nouveau|nouveau .*(?:NVIDIA|DRM: VRAM)", KERNEL),
    ),
    Rule(
        "driver-not-installed",
        "nvidia-smi: cannot talk to the driver, or is not there",
        "no NVIDIA driver is loaded",
        "deployctl logs {name} --agent; then deployctl down {name}, and up with --image <one that has the driver>",
        while_not_ready(
            said(
                r"couldn't communicate with the NVIDIA driver|nvidia-smi is not there|nvidia-smi fails"
                r"|installer has run \d+ times",
                NVIDIA_SMI,
                STATUS,
                "agent",
            )
        ),
    ),
    Rule(
        "gpu-missing",
        "nvidia-smi: No devices were found; status: fewer GPUs than tensor_parallel",
        "the machine shows fewer GPUs than the release needs",
        "deployctl plan --instance-type <this one>: choose a type with enough GPUs; on a host check "
        "CUDA_VISIBLE_DEVICES",
        while_not_ready(
            said(r"No devices were found|\d+ GPUs are visible, tensor_parallel is", NVIDIA_SMI, STATUS, *LOGS)
        ),
    ),
    Rule(
        "gpu-memory-full",
        "engine: CUDA out of memory, no room for a single request",
        "weights and KV cache do not fit the GPU's memory",
        "deployctl redeploy {name} --max-model-len <less>, --quantization fp8, or a type with more GPU memory "
        "(deployctl plan)",
        while_not_ready(
            said(
                r"CUDA out of memory|OutOfMemoryError|(?:leaves? no room|not enough (?:GPU )?memory) for",
                STATUS,
                "engine",
            )
        ),
    ),
)
