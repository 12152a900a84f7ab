"""What the cloud, Pulumi and the clock of the TTL say. Codes: the families of provision.failover."""

from __future__ import annotations

from provision.doctor.evidence import CLOUD, STATUS, Evidence
from provision.doctor.rule import Look, Rule, all_of, any_of, said
from provision.failover import Kind, classify
from provision.preflight.rules import STORE_FORBIDDEN

SOON_S = 1800.0


def refusal(kind: Kind) -> Look:
    """The cloud's refusals of one family."""

    def look(evidence: Evidence) -> str | None:
        if not evidence.cloud:
            return None
        verdict = classify(evidence.cloud)
        return f"{verdict.code}: {verdict.text}" if verdict.kind == kind else None

    return look


def ended(evidence: Evidence) -> str | None:
    left = evidence.expires_in_s
    return None if left is None or left > 0 else f"its time ended {-left / 60:.0f} min ago"


def ends_soon(evidence: Evidence) -> str | None:
    left = evidence.expires_in_s
    return f"{left / 60:.0f} min are left" if left is not None and 0 < left < SOON_S else None


RULES = (
    Rule(
        "time-ended",
        "expires_at: in the past",
        "the TTL came to its end, and the cloud has deleted the machine",
        "deployctl up --name {name} makes another one; deployctl down {name} deletes what still bills",
        ended,
    ),
    Rule(
        "spot-taken-back",
        "status or cloud: spot interruption",
        "the cloud has taken the spot machine back",
        "deployctl up --name {name}: another one where there is capacity; without --spot nobody takes it back",
        any_of(
            said(
                r"spot.*(?:interrupt|terminat|reclaim|taken back)|instance-action|Server\.SpotInstanceTermination",
                STATUS,
                CLOUD,
            ),
            all_of(said(r"spot", "boot", "agent"), said(r"interruption notice|instance-action", "boot", "agent")),
        ),
    ),
    Rule(
        "stopped-when-idle",
        "status: stopped after time without a request",
        "nobody asked for as long as idle_stop says, and the machine has stopped itself",
        "deployctl wake {name}; deployctl redeploy {name} --idle-stop 0 keeps it on",
        said(r"\bidle\b.*(?:stop|switched off)|(?:stop|switched off).*\bidle\b|without a request", STATUS),
    ),
    Rule(
        "stopped-by-hand",
        "status: it was stopped",
        "the machine is stopped: its disks are kept and bill, computing does not",
        "deployctl wake {name}",
        said(r"it was stopped", STATUS),
    ),
    Rule(
        "account-unpaid",
        "cloud: balance, verification, blocked account",
        "the cloud's account owes, is blocked or is not verified",
        "put the account in order in the cloud's console, then deployctl up --name {name}",
        refusal("money"),
    ),
    Rule(
        "store-forbidden",
        "cloud: PublicEndpointForbidden",
        "the account is too new to use OSS from outside mainland China's network",
        "deployctl up --name {name} --mailbox cloud_assistant (docs/alicloud.md)",
        said(STORE_FORBIDDEN, CLOUD, STATUS),
    ),
    Rule(
        "credentials-refused",
        "cloud: credentials or permissions",
        "the cloud does not accept the credentials here, or they lack a right",
        "renew them (aws sso login, aliyun configure), or give them what deployctl permissions prints; then "
        "deployctl up --name {name}",
        refusal("auth"),
    ),
    Rule(
        "quota-too-small",
        "cloud: VcpuLimitExceeded, QuotaExceed",
        "a quota of the account is too small: on-demand and spot, G and P types, VPCs and addresses each have "
        "their own",
        "deployctl preview {name} prints the request for the right quota; or another --instance-type or --region",
        refusal("quota"),
    ),
    Rule(
        "no-capacity",
        "cloud: InsufficientInstanceCapacity, NoStock",
        "the cloud has no machine of this type there now",
        "deployctl up --name {name} with more --zones, another --instance-type or --region, or later",
        refusal("capacity"),
    ),
    Rule(
        "update-cut-off",
        "status: an `up` was cut off",
        "an earlier command ended before the cloud was as asked; what it made may cost money",
        "deployctl up --name {name} goes on; deployctl down {name} deletes it",
        said(r"was cut off", STATUS),
    ),
    Rule(
        "passphrase-missing",
        "cloud: passphrase",
        "Pulumi cannot read the stack's secrets: this shell has another passphrase than the one that made them",
        "export PULUMI_CONFIG_PASSPHRASE_FILE=<the file with this stack's passphrase>",
        said(r"passphrase must be set|incorrect passphrase", CLOUD),
    ),
    Rule(
        "stack-locked",
        "cloud: the stack is locked",
        "another command works on the deployment, or died on another machine while it did",
        "deployctl status {name}; if nobody works on it: pulumi cancel --stack {name}",
        said(r"currently locked|another command works on", CLOUD),
    ),
    Rule(
        "cloud-hiccup",
        "cloud: throttling, timeouts, 5xx",
        "the cloud did not answer as it should; nothing is wrong with the deployment",
        "deployctl up --name {name}: it goes on where it was",
        refusal("transient"),
    ),
    Rule(
        "time-ends-soon",
        "expires_at: within 30 minutes",
        "the TTL ends soon, and the cloud will delete the machine",
        "deployctl extend {name} 4h",
        ends_soon,
    ),
)
