"""The target `host`: a machine of the user's own, over SSH. The same phases, units and agent as on a cloud's VM.

    this machine                                         the host (root by sudo)
    state folder: spec, key, host.json, mailbox (copy) ─SFTP─► /var/lib/deployctl/spool/     the mailbox, a folder there
                                                       ─SSH──► stage 0, systemd units        the wheel does the rest
    status, identity, journal                          ◄─SSH── status/, journald

What is sent is kept here too, so that a command that was cut off can be repeated, and so that most commands need no
connection to know what was asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from provision.backend import certificate_file
from provision.errors import (
    ConnectionFailedError,
    NotRunningError,
    RemoteError,
    StateError,
    not_up,
)
from provision.host_report import parse_removal, parse_units
from provision.journal import read_journal
from provision.local import judge
from provision.ssh import Login
from provision.state import LocalState
from provision.target import Access, LogLine, LogQuery, Observation, ProcessView, Removal
from provision.trust import forget_files, pin_file
from runtime.deployment import Struct, encode
from runtime.mailbox import (
    CURRENT,
    IDENTITY,
    STATUS,
    decode_current,
    decode_identity,
    decode_if_sound,
    decode_status,
    spec_key,
    write_atomic,
)
from runtime.vm import LOG_UNITS, SPOOL_DIR, VM_FILE, Vm

if TYPE_CHECKING:
    from provision.host_facts import HostFacts
    from provision.remote import Remote
    from provision.render import Order

STAGE0 = "/etc/deployctl/stage0.py"
STAGE0_UNIT = "deployctl-stage0.service"
UNIT_DIR = "/etc/systemd/system"
SHOWN_UNITS = ("agent", "server", "engine")
SERVING = {"server", "engine"}
RELEASE = re.compile(r"r\d+")
PRICE_PER_HOUR = 0.0  # of deployctl's; what the machine itself costs is not known here
LARGE_BYTES = 64 * 2**20  # from here on an upload says how far it is
TOLD_PERCENT = 10
RECONNECTS = 5  # of an upload, in a row without one more byte
Report = Callable[[str], None]


class HostRecord(Struct, frozen=True):
    """`host.json`: the machine and who vouches for it. `identity`: a private key, None = the user's agent and keys."""

    user: str
    address: str
    port: int
    host_key: str
    identity: str | None = None


class HostTarget:
    """One deployment on a machine over SSH. Methods raise ConnectionFailedError where they need the machine."""

    def __init__(self, state: LocalState, report: Report = lambda _: None) -> None:
        self.state = state
        self.report = report
        self._remote: Remote | None = None

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def record_file(self) -> Path:
        return record_file(self.state)

    @functools.cached_property
    def record(self) -> HostRecord:
        """Raises StateError."""
        try:
            return msgspec.json.decode(self.record_file.read_bytes(), type=HostRecord)
        except (OSError, msgspec.DecodeError) as error:
            raise StateError(
                f"the state of deployment {self.name} is damaged",
                why=f"{self.record_file}: {error}",
                next_command=f"deployctl up --name {self.name} --host user@address",
            ) from error

    def write_record(self, record: HostRecord) -> None:
        write_atomic(self.record_file, encode(record))
        self.__dict__.pop("record", None)
        self.close()

    def login(self, identity: Path | None = None) -> Login:
        record = self.record
        key = identity or (Path(record.identity) if record.identity is not None else None)
        login = Login(
            name=self.name,
            user=record.user,
            host=record.address,
            port=record.port,
            host_key=record.host_key,
            known_hosts=self.state.root / "known_hosts",
            key=key,
        )
        if not login.known_hosts.exists() or login.known_hosts.read_text() != login.known_hosts_line:
            write_atomic(login.known_hosts, login.known_hosts_line.encode())
        return login

    def remote(self) -> Remote:
        """The open connection, opened anew when it broke."""
        from provision.remote import connect

        if self._remote is None or not self._remote.is_open:
            self._remote = connect(self.login())
        return self._remote

    def close(self) -> None:
        if self._remote is not None:
            self._remote.close()
        self._remote = None

    def facts(self) -> HostFacts:
        """What the machine is. Raises PlanError, RemoteError (no sudo)."""
        from provision.host_facts import parse_facts, probe_script

        done = self.remote().do(["sh", "-s"], probe_script(), what="looking at the machine")
        return parse_facts(done.text, self.record.address)

    def get(self, key: str) -> bytes | None:
        """An object of the machine's mailbox."""
        return self.remote().files.get(f"{SPOOL_DIR}/{key}")

    def put(self, key: str, data: bytes) -> None:
        self.remote().files.put(f"{SPOOL_DIR}/{key}", data)

    def start(self, order: Order) -> None:
        """Sends the release, installs stage 0 and starts it."""
        from provision.user_data import stage0, stage0_unit

        facts = self.facts()
        remote = self.remote()
        remote.files.remove(f"{SPOOL_DIR}/{STATUS}")  # what an earlier life reported says nothing about this one
        self._send(order)
        vm = Vm(
            name=self.name, provider="host", region="", bucket="", endpoint="", spool=str(SPOOL_DIR),
            id=facts.instance_id,
        )  # fmt: skip
        remote.files.make_folder(f"{SPOOL_DIR}/status", 0o700)
        remote.files.put(str(VM_FILE), msgspec.json.encode(vm), 0o644)
        remote.files.put(STAGE0, stage0().encode() + b"\n", 0o644)
        remote.files.put(f"{UNIT_DIR}/{STAGE0_UNIT}", stage0_unit().encode(), 0o644)
        remote.do(["systemctl", "daemon-reload"], what="systemctl daemon-reload")
        remote.do(["systemctl", "enable", "--quiet", STAGE0_UNIT], what="enabling stage 0")
        remote.do(["systemctl", "restart", STAGE0_UNIT], what="starting stage 0")

    def change(self, order: Order) -> None:
        self._send(order)

    def go_back(self, release: str) -> None:
        """Makes an earlier release the wanted one, with the spec that it was made from."""
        current = self.state.specs_dir / f"{release}.current.json"
        if not current.exists():
            raise StateError(f"release {release} of {self.name} is not known here", next_command="deployctl status")
        spec = self.state.specs_dir / f"{release}.json"
        if spec.exists():
            write_atomic(self.state.spec_file, spec.read_bytes())
        self.state.mailbox.put(CURRENT, current.read_bytes())
        self.put(CURRENT, current.read_bytes())

    def forget_releases(self, kept: Sequence[str]) -> list[str]:
        """Deletes what was sent of releases that are neither `kept` nor wanted, there and here; returns which."""
        gone = self.state.forget_releases(kept)
        folder = f"{SPOOL_DIR}/release"
        known = {*kept, *(key.split("/")[1] for key in self.state.mailbox.keys("release/"))}
        old = [name for name in self.remote().files.names(folder) if RELEASE.fullmatch(name) and name not in known]
        if old:
            argv = ["rm", "-r", "--", *(f"{folder}/{name}" for name in old)]
            self.remote().do(argv, what="deleting old releases")
        return sorted({*gone, *old})

    def observe(self) -> Observation:
        """A machine that cannot be reached is "unknown", never "stopped"."""
        wanted, deployment = self.state.current(), self.state.deployment()
        seen = Observation(
            name=self.name,
            target="host",
            life="unknown",
            model=deployment.model.served_name if deployment else None,
            base_url=self.base_url(),
            wanted_release=wanted.release if wanted else None,
            price_per_hour=PRICE_PER_HOUR,
        )
        try:
            return self._observed(seen)
        except (ConnectionFailedError, RemoteError) as error:
            # Connections break, and the next look opens another.
            self.close()
            hint = "the endpoint may serve all the same"
            return dataclasses.replace(seen, error=f"{error}".replace("\n", "; "), hint=hint)

    def _observed(self, seen: Observation) -> Observation:
        from provision.waiting import with_status

        status = decode_if_sound(self.get(STATUS), decode_status)
        wanted = decode_if_sound(self.get(CURRENT), decode_current)
        processes = self._processes()
        alive = bool(processes) or self._is_active(STAGE0_UNIT)
        seen = dataclasses.replace(seen, wanted_release=wanted.release if wanted else None, processes=processes)
        if not alive or wanted is None:
            return dataclasses.replace(seen, life="stopped", processes=())
        seen = with_status(seen, status)
        age = next((item.uptime_s for item in processes if item.unit == "agent"), None)
        life = judge(wanted.release, status, alive=True)
        if life == "ready" and SERVING - {item.unit for item in processes}:
            life = "starting"  # the report is from before a boot
        return dataclasses.replace(seen, life=life, age_s=age)

    def _processes(self) -> tuple[ProcessView, ...]:
        names = [f"deployctl-{unit}.service" for unit in SHOWN_UNITS]
        fields = "--property=Id,MainPID,ActiveEnterTimestampMonotonic"
        shown = self.remote().run(["sh", "-c", f"cat /proc/uptime; systemctl show {fields} {' '.join(names)}"])
        return parse_units(shown.text)

    def _is_active(self, unit: str) -> bool:
        return self.remote().run(["systemctl", "is-active", "--quiet", unit]).code == 0

    def base_url(self) -> str | None:
        deployment = self.state.deployment()
        if deployment is None:
            return None
        from provision.ssh import bracketed

        scheme = "http" if deployment.listen.tls == "off" else "https"
        host = deployment.listen.names[-1] if deployment.listen.tls == "own" else self.record.address
        return f"{scheme}://{bracketed(host)}:{deployment.listen.port}/v1"

    def certificate(self) -> str | None:
        identity = decode_if_sound(self.get(IDENTITY), decode_identity)
        return identity.certificate if identity else None

    def access(self) -> Access:
        """Raises NotRunningError, CloudError where the machine, which has the certificate, cannot be asked."""
        deployment, key, base_url = self.state.deployment(), self.state.api_key(), self.base_url()
        if deployment is None or key is None or base_url is None:
            raise not_up(self.name)
        certificate = None
        if deployment.listen.tls == "pinned":
            try:
                certificate = self.certificate()
            except (ConnectionFailedError, RemoteError):
                pem = certificate_file(self.name)
                if not pem.is_file():
                    raise
                certificate = pem.read_text()
            if certificate is None:
                raise NotRunningError(
                    f"{self.name} has not published its certificate yet",
                    next_command=f"deployctl up --name {self.name}",
                )
            pin_file(self.name, certificate)
        return Access(base_url, key, deployment.model.served_name, deployment.engine.max_model_len, certificate)

    def logs(self, query: LogQuery) -> Iterator[LogLine]:
        """The machine's journal. Raises RemoteError."""
        from provision.remote import connect

        known = tuple(unit for unit in query.units if unit in LOG_UNITS)
        if query.units and not known:
            return iter(())
        asked = dataclasses.replace(query, units=known)
        return read_journal(lambda: connect(self.login()), asked, _say)

    def stop(self) -> None:
        """Ends all units and keeps what lies on the machine, so that `start` may follow."""
        units = [STAGE0_UNIT, "deployctl-agent.service", "deployctl.socket", "deployctl-server.service"]
        self.remote().run(self.remote().as_root(["systemctl", "stop", *units, "deployctl-engine.service"]))

    def remove(self, *, keep_disk: bool = False) -> Removal:
        """Ends and deletes everything there, looks at what is left, and forgets the deployment here."""
        from provision.host_facts import removal_script

        port = deployment.listen.port if (deployment := self.state.deployment()) else None
        try:
            facts = self.facts()
        except ConnectionFailedError as error:
            gone = f"if that machine is gone for good, delete {self.state.root}"
            why = f"{error.why}\n{gone}"
            raise ConnectionFailedError(error.what, why=why, next_command=error.next_command) from error
        if facts.deployment not in (None, self.name):
            lines: list[str] = []
            self.report(f"{self.record.address} runs {facts.deployment}, not {self.name}: nothing is touched there")
        else:
            argv = ["sh", "-s", "--", "keep" if keep_disk else "all"]
            lines = self.remote().do(argv, removal_script(), what="removing deployctl").text.splitlines()
            facts = self.facts()
        own = facts.deployment is None
        proof = parse_removal(lines)
        removal = Removal(
            name=self.name,
            ended=proof.ended,
            processes_left=proof.processes_left,
            port=port,
            port_free=port is None or not own or port not in facts.listening,
            state_left=", ".join(proof.files_left) or None,
            price_per_hour=PRICE_PER_HOUR,
            kept=proof.kept,
        )
        self.close()
        if removal.is_clean:
            forget_files(self.name)
            with contextlib.suppress(FileNotFoundError):
                self.state.remove()
        return removal

    def _send(self, order: Order) -> None:
        """`current.json` comes last, there and here: until then either side sees the old release, whole."""
        self.state.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state.write_api_key(order.api_key)
        if order.wheel is not None:
            self.upload(order.wheel.path, f"{SPOOL_DIR}/{order.wheel.key}")
        for key, data in ((spec_key(order.release), order.spec), *order.objects):
            self.put(key, data)
        specs = self.state.specs_dir
        write_atomic(specs / f"{order.release}.json", order.spec)
        write_atomic(specs / f"{order.release}.current.json", dict(order.objects)[CURRENT])
        for key, data in order.objects:
            if not key.startswith("secrets/"):
                self.state.mailbox.put(key, data)
        write_atomic(self.state.spec_file, order.spec)

    def upload(self, local: Path, path: str) -> None:
        """A file of any size; a connection that breaks is opened again while each brings more bytes."""
        failures, most, told = 0, -1, 0

        def saw(at: int, size: int) -> None:
            nonlocal failures, most, told
            if at > most:
                failures, most = 0, at
            if size >= LARGE_BYTES and 100 * at // size >= told + TOLD_PERCENT:
                told = 100 * at // size // TOLD_PERCENT * TOLD_PERCENT
                self.report(f"  {local.name} {told} %")

        while True:
            try:
                self.remote().files.upload(local, path, saw)
                return
            except ConnectionFailedError as error:
                failures += 1
                if failures >= RECONNECTS:
                    raise
                self.report(f"  the connection broke ({(error.why or '').splitlines()[0]}); {local.name} goes on")
                self.close()


def record_file(state: LocalState) -> Path:
    return state.root / "host.json"


def is_host(state: LocalState) -> bool:
    """Whether a state folder is that of a deployment on a machine over SSH."""
    return record_file(state).exists()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
