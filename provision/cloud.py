"""The targets `aws` and `alicloud`: one VM of a cloud, made by the Pulumi program, watched through its mailbox.

    stack config ──► pulumi up ──► outputs: endpoint, key, mailbox, instance      (provision.automation)
    mailbox      ──► status.json: phase, percent, error · identity.json: certificate of this very instance

Both are read anew where they are needed, so that every command works from another laptop with the same backend.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from provision import mailboxes
from provision.agreement import agreed_file, asked_text, decide, differences, note_agreed, read_agreed
from provision.automation import CloudStack, Report, UpdateError
from provision.config import resolve
from provision.costs import CostItem
from provision.errors import CloudError, NotRunningError, UsageError, not_up
from provision.mailbox_logs import read_mailbox_logs
from provision.planning import MIN_LEN
from provision.spec import DeploymentSpec
from provision.stack_settings import PROJECT, WEIGHTS_DISK, StackSettings, read_keys, split_config
from provision.sweep import Sweep, delete_leftovers, find_leftovers
from provision.target import Access, LogLine, LogQuery, Observation
from provision.trust import forget_files
from provision.waiting import with_status
from runtime.bucket import BucketError
from runtime.deployment import Deployment, decode_deployment
from runtime.mailbox import (
    CURRENT,
    IDENTITY,
    STATUS,
    Identity,
    Mailbox,
    Status,
    decode_current,
    decode_identity,
    decode_if_sound,
    decode_status,
)
from runtime.vm import Provider

PATIENCE_S = 300.0  # a cloud goes on deleting after it has said yes
SWEEPS = 3  # what a leftover holds can be deleted only after it
CLOUDS = ("aws", "alicloud")  # packages whose resources may cost money
DISKS = ("aws:ebs/volume:Volume", "alicloud:ecs/ecsDisk:EcsDisk")
FOLLOW_S = 3.0  # between two looks at the logs in the mailbox
WAIT = f"{PROJECT}:wait"
STOPPED = "it was stopped; its disks are kept and bill, computing does not"


class Exports(msgspec.Struct, frozen=True):
    """Outputs of the stack that are used here; empty before the first update has ended. Prices in USD per hour."""

    endpoint: str | None = None
    api_key: str | None = None
    instance_id: str | None = None
    public_ip: str | None = None
    private_ip: str | None = None
    region: str | None = None
    zone: str | None = None
    instance_type: str | None = None
    image: str | None = None
    mailbox: str | None = None
    ssh_user: str | None = None
    ssh_private_key: str | None = None
    release: str | None = None
    model: str | None = None
    allowed_cidrs: tuple[str, ...] = ()
    expires_at: int | None = None
    hourly_price: float | None = None
    bill: tuple[CostItem, ...] = ()
    disk_gib: int | None = None
    made_at: int | None = None
    stopped: bool = False
    woken_at: int = 0
    keys: str | None = None
    key_round: int | None = None
    asked: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CloudRemoval:
    """Proof of a `down`: what Pulumi deleted and what the cloud says is left."""

    name: str
    deleted: int
    sweep: Sweep

    @property
    def is_clean(self) -> bool:
        return self.sweep.is_clean


class CloudTarget:
    """One deployment on a cloud, by its stack."""

    def __init__(self, stack: CloudStack) -> None:
        self.stack = stack
        self.name = stack.name

    @functools.cached_property
    def config(self) -> Mapping[str, str]:
        return self.stack.config()

    @functools.cached_property
    def exports(self) -> Exports:
        return msgspec.convert(self.stack.outputs(), Exports, strict=False)

    @property
    def settings(self) -> StackSettings:
        """As the config has them; keys and power as the last update left them, whichever laptop that came from: a
        config that was read here before must not take back a key that was revoked elsewhere, or wake a machine."""
        settings, exports = split_config(self.config)[1], self.exports
        if exports.keys is None or exports.key_round is None:
            return settings
        return dataclasses.replace(
            settings,
            stopped=exports.stopped,
            woken_at=exports.woken_at or None,
            keys=read_keys(exports.keys),
            key_round=exports.key_round,
        )

    def spec(self) -> DeploymentSpec | None:
        """What was asked for last; None for a stack whose config says nothing. Raises SpecError.

        `wait` is how one run of a command behaves, not what the deployment is.
        """
        values = {key: value for key, value in split_config(self.config)[0].items() if key != WAIT}
        return resolve({"name": self.name}, pulumi=values, env={}).spec if values else None

    def agree(self) -> None:
        """Before a change: what another laptop has asked for since this one looked is taken over. Raises UsageError
        where both have changed something, CloudError."""
        here, there = asked_text(self.config), self.exports.asked
        counts = decide(here, there, read_agreed(self._agreed_file))
        if there is None or counts == "here":
            return
        if counts == "nobody knows":
            raise UsageError(
                f"the config of {self.name} here is not what its last update was asked, and both may be meant",
                why="\n".join(differences(here, there)),
                next_command=f"rm {self.stack.config_file}, to go on with what is there; or pulumi up --stack "
                f"{self.name}, for what is here",
            )
        if counts == "there":
            self.stack.project.report(f"{self.name} was changed elsewhere since; that counts:")
            for line in differences(here, there):
                self.stack.project.report(f"  {line}")
            self.stack.adopt_config()
            self.forget_config()
        self.note_agreed()

    def note_agreed(self) -> None:
        """The config here and the last update belong together."""
        note_agreed(self._agreed_file, asked_text(self.config), self.exports.asked)

    @property
    def _agreed_file(self) -> Path:
        return agreed_file(self.name, self.stack.project.folder)

    def forget(self) -> None:
        """What was read is read anew from now on."""
        for name in ("config", "exports", "mailbox"):
            self.__dict__.pop(name, None)

    def forget_config(self) -> None:
        """The config was written."""
        self.__dict__.pop("config", None)

    @functools.cached_property
    def mailbox(self) -> Mailbox:
        """Raises NotRunningError before it exists, BucketError."""
        exports, spec = self.exports, self.spec()
        if exports.mailbox is None or exports.region is None or spec is None or spec.cloud not in ("aws", "alicloud"):
            raise not_up(self.name)
        provider: Provider = "aws" if spec.cloud == "aws" else "alicloud"
        return mailboxes.open_mailbox(provider, exports.region, exports.mailbox)

    def observe(self) -> Observation:
        spec, exports = self.spec(), self.exports
        seen = Observation(
            name=self.name,
            target=spec.cloud if spec else "unknown",
            life="stopped",
            model=spec.api_model_name if spec else None,
            base_url=exports.endpoint,
            wanted_release=exports.release,
            age_s=time.time() - exports.made_at if exports.made_at and exports.instance_id else None,
            price_per_hour=exports.hourly_price if exports.instance_id else None,
            region=exports.region,
            zone=exports.zone,
            instance_type=exports.instance_type,
            instance_id=exports.instance_id,
            expires_at=exports.expires_at,
        )
        if exports.instance_id is None:
            return dataclasses.replace(seen, hint=self._half_made())
        if exports.expires_at is not None and exports.expires_at <= time.time():
            ended = "its time ended, and the cloud has deleted the machine"
            return dataclasses.replace(seen, error=ended, hint=f"what remains still bills: deployctl down {self.name}")
        if exports.stopped:
            return dataclasses.replace(seen, error=STOPPED, hint=f"deployctl wake {self.name}")
        try:
            status = self.status()
        except BucketError as error:
            if error.code == mailboxes.NOT_RUNNING:
                return dataclasses.replace(seen, error=str(error), hint=f"deployctl up --name {self.name}")
            hint = "the mailbox cannot be read from here; the endpoint may serve all the same"
            return dataclasses.replace(seen, life="unknown", error=str(error), hint=hint)
        if status is not None and status.phase == "stopped":
            return dataclasses.replace(seen, error=status.error, hint=status.hint, updated_at=status.updated_at)
        return with_status(seen, status)

    def _half_made(self) -> str | None:
        """What to say about resources of an `up` that did not come to its end."""
        made = self._made()
        if not made:
            return None
        return (
            f"an `up` was cut off: {made} resources exist and may cost money; "
            f"deployctl up --name {self.name} goes on, deployctl down {self.name} deletes them"
        )

    def _made(self) -> int:
        """Resources of the cloud that the stack knows."""
        kinds = (str(item["type"]).split(":")[0] for item in self.stack.resources() if item.get("custom"))
        return sum(kind in CLOUDS for kind in kinds)

    def is_there(self) -> bool:
        """Whether anything of it is in the cloud, a disk that was kept included: what is somewhere stays there."""
        return self._made() > 0 or self.settings.weights_disk is not None

    def status(self) -> Status | None:
        """What this instance reported last since it was switched on; None before its first word. Raises BucketError."""
        exports, status = self.exports, decode_if_sound(self.mailbox.get(STATUS), decode_status)
        if status is None or status.instance_id != exports.instance_id or status.updated_at < exports.woken_at:
            return None
        return status

    def certificate(self) -> str | None:
        """The certificate of this very instance, None before it has published one. Raises BucketError."""
        identity = self.identity()
        return identity.certificate if identity else None

    def identity(self) -> Identity | None:
        """What this very instance has published about itself; None before that. Raises BucketError."""
        identity = decode_if_sound(self.mailbox.get(IDENTITY), decode_identity)
        return identity if identity is not None and identity.instance_id == self.exports.instance_id else None

    def deployment(self) -> Deployment | None:
        """What the machine was told to serve. Raises BucketError."""
        current = decode_if_sound(self.mailbox.get(CURRENT), decode_current)
        return decode_if_sound(self.mailbox.get(current.deployment), decode_deployment) if current else None

    def access(self) -> Access:
        """Raises NotRunningError without an endpoint, and CloudError where its certificate cannot be known."""
        exports, spec = self.exports, self.spec()
        if exports.endpoint is None or exports.api_key is None or exports.instance_id is None or spec is None:
            raise not_up(self.name)
        try:
            certificate = self.certificate() if spec.tls == "pinned" else None
            deployment = self.deployment()
        except BucketError as error:
            raise unread(self.name, error, "certificate") from error
        if spec.tls == "pinned" and certificate is None:
            raise NotRunningError(
                f"{self.name} has not published its certificate yet", next_command=f"deployctl up --name {self.name}"
            )
        length = deployment.engine.max_model_len if deployment else spec.max_model_len or MIN_LEN
        return Access(exports.endpoint, exports.api_key, spec.api_model_name, length, certificate)

    def logs(self, query: LogQuery) -> Iterator[LogLine]:
        """What the machine has uploaded; it does so every half minute, and after a failure. Raises CloudError."""
        poll_s = max(FOLLOW_S, mailboxes.poll_s(self.exports.mailbox))
        try:
            yield from read_mailbox_logs(self.mailbox, query, poll_s=poll_s)
        except BucketError as error:
            raise CloudError(f"the logs of {self.name} cannot be read", why=str(error)) from error

    def remove(self, report: Report, *, keep_disk: bool = False) -> CloudRemoval:
        """Destroys the stack, then asks the cloud itself what is left, and deletes that too.

        May be called again after anything. With `keep_disk` the disk of weights stays, and the stack remembers it.
        """
        spec, resources = self.spec(), self.stack.resources()
        if spec is None and not resources:
            self.stack.delete()  # an `up` that was stopped before it had written its config has made nothing
            return CloudRemoval(self.name, 0, Sweep("no cloud", "no region", self.name))
        if spec is None or spec.region is None:
            raise CloudError(
                f"nobody knows on which cloud and in which region {self.name} was",
                why="its stack holds no config",
                next_command=f"deployctl down {self.name} --cloud aws --region us-east-1",
            )
        region = self.exports.region
        if keep_disk:
            self._keep_disk()
        deleted, failed = self._destroy(report) if resources else (0, False)
        # The config may ask for another region already, which `up` then refused.
        sweep = sweep_away(spec.cloud, region or spec.region, self.name, report, keep_disk=keep_disk)
        forget_files(self.name)
        self._agreed_file.unlink(missing_ok=True)
        if (sweep.is_clean or not failed) and not (keep_disk and self.settings.weights_disk):
            self.stack.delete(force=failed)
        return CloudRemoval(self.name, deleted, sweep)

    def _destroy(self, report: Report) -> tuple[int, bool]:
        """(resources that were deleted, whether some were not). The sweep that follows knows what that means."""
        try:
            return self.stack.destroy().changes.get("delete", 0), False
        except UpdateError as error:
            report(f"pulumi could not delete everything: {error.why}")
            return 0, True

    def _keep_disk(self) -> None:
        """Takes the disk of weights out of the stack and into its config; the next `up` attaches it again."""
        for item in self.stack.resources():
            if item["type"] in DISKS and str(item["urn"]).endswith("-weights"):
                self.stack.set_config({WEIGHTS_DISK: item["id"]}, secret={})
                self.stack.forget_resource(item["urn"])
                self.forget()


def sweep_away(cloud: str, region: str, name: str, report: Report, *, keep_disk: bool = False) -> Sweep:
    """Deletes what still carries the deployment's name, and says what could not be deleted. Needs no state."""
    sweep = find_leftovers(cloud, region, name, keep_weights=keep_disk, patience_s=PATIENCE_S)
    for _ in range(SWEEPS):
        if not sweep.found:
            break
        for item in sweep.found:
            report(f"  left over: {item}; it is deleted now")
        for what, why in delete_leftovers(sweep).items():
            report(f"  {what} stays: {why}")
        sweep = find_leftovers(cloud, region, name, keep_weights=keep_disk, patience_s=PATIENCE_S)
    return sweep


def unread(name: str, error: BucketError, what: str) -> CloudError:
    """For a mailbox that should have said which certificate or host key is the machine's."""
    return CloudError(
        f"the mailbox of {name} cannot be read, so nobody knows which {what} to trust",
        why=str(error),
        next_command=f"deployctl status {name}",
    )
