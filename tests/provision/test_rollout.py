"""provision.rollout and provision.cloud: config, decisions, failover, with the Automation API and a small program."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision import backend as backends
from provision.automation import Project
from provision.cloud import CloudTarget, Exports
from provision.config import resolve
from provision.errors import CapacityError, CloudError, PlanError
from provision.rollout import anchored, bring_up, config_values, decide, write_config
from provision.spec import DeploymentSpec, SpecError, parse
from provision.stack_settings import Placement, StackSettings

MODEL = "Qwen/Qwen2.5-7B-Instruct"
VALUES: dict[str, Any] = {"name": "chat", "cloud": "aws", "model": MODEL, "instance_type": "g5.xlarge,p4d.24xlarge"}
A, B = Placement("g5.xlarge", "us-east-1a"), Placement("g5.xlarge", "us-east-1b")
P = Placement("p4d.24xlarge", "us-east-1a")

# A cloud in miniature: a machine is made where the file "refusals" has nothing for its place.
PROGRAM = """
    import pathlib, pulumi
    from pulumi_command import local
    config = pulumi.Config()
    pulumi.log.info("candidates: g5.xlarge/us-east-1a g5.xlarge/us-east-1b p4d.24xlarge/us-east-1a")
    place = config.get("placement") or "g5.xlarge/us-east-1a"
    kind, zone = place.split("/")
    script = f"text=$(sed -n 's|^{place} ||p' refusals | head -1); echo {place} >> tried;"
    script += ' if [ -n "$text" ]; then echo "$text" >&2; exit 1; fi; echo i-1'
    if config.get("mailbox") == "cloud_assistant":
        script = "echo i-1"
    if pathlib.Path(config.require("tags").removeprefix("folder=")).joinpath("refuse").exists():
        raise pulumi.RunError("this deployment cannot work: the disk is too small")
    machine = local.Command("machine", create=script, dir=config.require("tags").removeprefix("folder="),
                            triggers=[config.get("max_model_len")],
                            opts=pulumi.ResourceOptions(ignore_changes=["create"]))
    pulumi.export("instance_id", machine.stdout)
    pulumi.export("instance_type", kind)
    pulumi.export("zone", zone)
    pulumi.export("release", "r1")
"""


UNDECIDED = StackSettings()
RUNNING = Exports(instance_id="i-1")


def refusal(code: str) -> str:
    return f"api error {code}: said the cloud"


@dataclasses.dataclass
class Cloud:
    """The small cloud of one deployment."""

    target: CloudTarget
    folder: Path
    spec: DeploymentSpec
    lines: list[str] = dataclasses.field(default_factory=list)
    pauses: list[float] = dataclasses.field(default_factory=list)

    def refuse(self, *refusals: tuple[Placement, str]) -> None:
        (self.folder / "refusals").write_text("".join(f"{place} {refusal(code)}\n" for place, code in refusals))

    def up(self, settings: StackSettings = UNDECIDED, **changes: Any) -> None:
        spec = parse({**self.spec.public_values(), **changes})
        bring_up(self.target, spec, settings, self.lines.append, pause=self.pauses.append)

    def tried(self) -> list[str]:
        return (self.folder / "tried").read_text().split()


@pytest.fixture
def cloud(user: Path, pulumi: Path, program: Callable[[str], Path]) -> Cloud:
    folder = program(PROGRAM)
    backend = backends.choose_backend(os.environ)
    backends.prepare(backend)
    lines: list[str] = []
    project = Project(pulumi, backend, folder, lines.append)
    spec = parse({**VALUES, "tags": {"folder": str(folder)}})
    made = Cloud(CloudTarget(project.open_or_create("chat")), folder, spec, lines)
    made.refuse()
    return made


# ---- failover ----


def test_the_place_that_worked_is_kept_for_every_later_run(cloud: Cloud) -> None:
    cloud.up()
    assert cloud.target.settings.placement == A
    assert cloud.target.exports.instance_id == "i-1"


def test_without_capacity_the_next_zone_and_then_the_next_type_is_tried(cloud: Cloud) -> None:
    cloud.refuse((A, "InsufficientInstanceCapacity"), (B, "Unsupported: instance type in the Availability Zone"))
    cloud.up()
    assert cloud.tried() == [str(A), str(B), str(P)]
    told = [line for line in cloud.lines if "next:" in line]
    assert told[0] == "  us-east-1a  g5.xlarge  InsufficientInstanceCapacity  next: us-east-1b g5.xlarge"
    assert cloud.target.settings.placement == P


@pytest.mark.slow
def test_where_no_place_has_capacity_all_were_tried_and_the_next_run_begins_anew(cloud: Cloud) -> None:
    cloud.refuse(*((place, "InsufficientInstanceCapacity") for place in (A, B, P)))
    with pytest.raises(CapacityError) as caught:
        cloud.up()
    assert str(caught.value).count("InsufficientInstanceCapacity") == 3
    assert cloud.target.settings.placement is None


@pytest.mark.slow
def test_a_small_quota_goes_on_with_a_type_of_another_quota(cloud: Cloud) -> None:
    cloud.refuse((A, "VcpuLimitExceeded"))
    cloud.up()
    assert cloud.tried() == [str(A), str(P)]


@pytest.mark.slow
def test_a_small_quota_everywhere_stops_with_the_request_command(cloud: Cloud) -> None:
    cloud.refuse((A, "VcpuLimitExceeded"), (P, "VcpuLimitExceeded"))
    with pytest.raises(CloudError) as caught:
        cloud.up()
    assert "--quota-code L-417A185B --desired-value 96" in (caught.value.next_command or "")


@pytest.mark.parametrize(
    ("code", "fix"),
    [("UnauthorizedOperation", "deployctl permissions aws"), ("PendingVerification", "verification")],
)
def test_missing_rights_and_money_stop_at_once_with_what_to_do(cloud: Cloud, code: str, fix: str) -> None:
    cloud.refuse((A, code))
    with pytest.raises(CloudError) as caught:
        cloud.up()
    assert fix in (caught.value.next_command or "")
    assert cloud.tried() == [str(A)]


ALICLOUD = {"cloud": "alicloud", "region": "cn-hangzhou", "instance_type": "ecs.gn7i-c16g1.4xlarge"}


@pytest.mark.slow
def test_where_oss_may_not_be_used_from_outside_the_machines_spool_takes_its_place(cloud: Cloud) -> None:
    """The small cloud refuses the first place only while there is a bucket."""
    cloud.refuse((A, "PublicEndpointForbidden"))
    cloud.up(**ALICLOUD)
    assert "this account may not use OSS from outside: mailbox cloud_assistant, without a bucket" in cloud.lines
    asked = cloud.target.spec()
    assert asked is not None
    assert asked.mailbox == "cloud_assistant"
    assert cloud.target.exports.instance_id == "i-1"


@pytest.mark.slow
def test_no_spool_takes_the_place_of_a_bucket_that_was_asked_for_or_that_carries_a_secret(cloud: Cloud) -> None:
    cloud.refuse((A, "PublicEndpointForbidden"))
    with pytest.raises(SpecError, match="hub_token: is a secret"):
        cloud.up(**ALICLOUD, hub_token="hf_x")
    with pytest.raises(CloudError, match="PublicEndpointForbidden") as caught:
        cloud.up(**ALICLOUD, mailbox="bucket")
    assert "--mailbox cloud_assistant" in (caught.value.next_command or "")


def test_an_unknown_error_stops_and_is_shown_word_for_word(cloud: Cloud) -> None:
    cloud.refuse((A, "NobodyKnowsThis"))
    with pytest.raises(CloudError, match="NobodyKnowsThis: said the cloud"):
        cloud.up()


@pytest.mark.slow
def test_a_transient_error_is_tried_again_in_the_same_place(cloud: Cloud) -> None:
    cloud.refuse((A, "RequestLimitExceeded"))
    with pytest.raises(CloudError, match="RequestLimitExceeded"):
        cloud.up()
    assert cloud.tried() == [str(A)] * 3
    assert len(cloud.pauses) == 2


def test_a_refusal_of_the_preflight_is_a_plan_error_and_no_place_is_tried(cloud: Cloud) -> None:
    (cloud.folder / "refuse").touch()
    with pytest.raises(PlanError, match="the disk is too small"):
        cloud.up()
    assert not (cloud.folder / "tried").exists()


@pytest.mark.slow
def test_a_machine_that_exists_is_never_moved_in_silence(cloud: Cloud) -> None:
    cloud.up()
    cloud.refuse((A, "InsufficientInstanceCapacity"))
    with pytest.raises(CapacityError):
        cloud.up(cloud.target.settings, max_model_len=4096)
    assert set(cloud.tried()) == {str(A)}
    assert cloud.target.settings.placement == A


def test_what_was_stopped_before_it_began_goes_without_a_question(cloud: Cloud) -> None:
    removal = cloud.target.remove(cloud.lines.append)
    assert removal.is_clean
    assert cloud.target.stack.project.names() == []


# ---- config ----


def test_config_says_what_the_spec_says_and_old_keys_go(cloud: Cloud) -> None:
    target = cloud.target
    first = parse({**VALUES, "max_model_len": 4096, "api_key": "sk-of-this-test-0123456789"})
    write_config(target, first, StackSettings(expires_at=1_900_000_000, placement=B))
    assert target.spec() == first
    assert target.settings == StackSettings(1_900_000_000, B)
    write_config(target, parse(VALUES), StackSettings())
    assert target.spec() == parse(VALUES)
    assert target.settings == StackSettings()


specs = st.fixed_dictionaries(
    {},
    optional={
        "max_model_len": st.integers(16, 100_000),
        "kv_cache_gib": st.floats(0.5, 64),
        "spot": st.booleans(),
        "zones": st.lists(st.sampled_from(["us-east-1a", "us-east-1b"]), unique=True),
        "allowed_cidrs": st.lists(st.sampled_from(["10.0.0.0/8", "203.0.113.7/32"]), unique=True),
        "tags": st.dictionaries(st.sampled_from(["team", "env"]), st.sampled_from(["a", "b c"])),
        "ttl": st.sampled_from(["0", "90m", "8h", "2d"]),
        "rope_scaling": st.just({"rope_type": "yarn", "factor": 2.0}),
        "proxy": st.just("http://proxy.example.org:3128"),
    },
)


@given(specs)
def test_every_spec_survives_the_way_through_the_config(values: dict[str, Any]) -> None:
    spec = parse({**VALUES, **values})
    plain, secret = config_values(spec)
    found = resolve({"name": "chat"}, pulumi={**plain, **secret}, env={}).spec
    assert found.model_copy(update={"wait": spec.wait}) == spec


def test_paths_are_absolute_before_the_program_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = parse({**VALUES, "tls": "own", "tls_cert": "chain.pem", "tls_key": "key.pem", "ssh_public_key": "id.pub"})
    found = anchored(spec)
    assert (found.tls_cert, found.ssh_public_key) == (str(tmp_path / "chain.pem"), str(tmp_path / "id.pub"))


# ---- decisions ----


class Stored(CloudTarget):
    """What a stack holds, without a stack."""

    def __init__(self, config: dict[str, str], exports: Exports) -> None:
        self.name = "chat"
        self.__dict__["config"] = config
        self.__dict__["exports"] = exports


def stored(exports: Exports = RUNNING, **config: str) -> Stored:
    values = {"cloud": "aws", "model": MODEL, "ttl": "8h", **config}
    return Stored({f"deployctl:{key}": value for key, value in values.items()}, exports)


NOW = 1_800_000_030.0
LATER = 1_800_010_000


def test_the_time_runs_from_now_for_a_machine_that_is_new_and_in_whole_minutes() -> None:
    found = decide(parse(VALUES), stored(Exports()), NOW).expires_at
    assert found is not None
    assert found % 60 == 0
    assert 0 <= NOW + 8 * 3600 - found < 60


def test_a_running_machine_keeps_its_end_unless_the_ttl_changes() -> None:
    target = stored(expires_at=str(LATER))
    assert decide(parse(VALUES), target, NOW).expires_at == LATER
    longer = decide(parse({**VALUES, "ttl": "2d"}), target, NOW).expires_at
    assert longer is not None
    assert longer > LATER
    assert decide(parse({**VALUES, "ttl": "0"}), target, NOW).expires_at is None


def test_a_machine_whose_time_has_ended_gets_a_new_one() -> None:
    found = decide(parse(VALUES), stored(expires_at="1800000000"), NOW).expires_at
    assert found is not None
    assert found > NOW


def test_the_place_stays_while_its_type_and_zone_are_asked_for() -> None:
    target = stored(placement=str(A))
    assert decide(parse({"name": "chat", "cloud": "aws", "model": MODEL}), target, NOW).placement == A
    assert decide(parse(VALUES), target, NOW).placement == A
    other = {**VALUES, "instance_type": "g6.xlarge"}
    assert decide(parse(other), target, NOW).placement is None
    assert decide(parse({**VALUES, "zones": "us-east-1b"}), target, NOW).placement is None
