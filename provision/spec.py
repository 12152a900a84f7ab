"""The spec: everything that a user chooses about one deployment, and every way in which it can be wrong.

`DeploymentSpec` cannot exist with a wrong value or a combination that contradicts itself. `parse` reports
all errors at once, each with its path, the reason and the nearest valid value.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from provision import errors, fields
from provision.model_ref import ModelRef, is_bare, parse_model
from provision.values import (
    check_cidr,
    check_constraint,
    check_key,
    check_ssh_key,
    check_tags,
    check_url,
    duration_seconds,
    normal_duration,
    refuse_bool,
    split_list,
    split_tags,
)
from runtime.sizing import TP_SIZES

Cloud = Literal["local", "host", "aws", "alicloud"]
NAME_PATTERN = r"^[a-z][a-z0-9-]{1,24}$"
DEFAULT_REGION: dict[str, str] = {"aws": "us-east-1", "alicloud": "cn-hangzhou"}
DEFAULT_TTL = "8h"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `path` is the field (dotted inside), `nearest` a valid value close to it,
    `where` the place it was read from ("deploy.yaml:7"), `others` the fields a combination also involves."""

    path: str
    reason: str
    nearest: str | None = None
    where: str | None = None
    others: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        return f"{self.path}{place}: {self.reason}.{hint}"


class SpecError(errors.SpecError):
    """The spec is wrong. `problems` holds every error, in the order of the fields."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        count = len(self.problems)
        super().__init__(
            "the spec has an error" if count == 1 else f"the spec has {count} errors",
            why="\n".join(str(problem) for problem in self.problems),
            next_command="deployctl plan --help",
        )


def nearest(value: str, valid: Iterable[str]) -> str | None:
    """The valid value that reads most like `value`, or None when none is close. Swapped letters, the most
    common slip, win over other likeness."""
    found = difflib.get_close_matches(value, list(valid), n=5, cutoff=0.5)
    swapped = [item for item in found if sorted(item) == sorted(value)]
    return next(iter(swapped + found), None)


class RopeScalingOption(BaseModel):
    """Rotary scaling, with the key names of a Hugging Face `config.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rope_type: Literal["linear", "llama3", "yarn"]
    factor: float = Field(ge=1.0)
    original_max_position_embeddings: int | None = Field(default=None, ge=1)
    low_freq_factor: float | None = Field(default=None, gt=0)
    high_freq_factor: float | None = Field(default=None, gt=0)
    beta_fast: float | None = Field(default=None, gt=0)
    beta_slow: float | None = Field(default=None, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)

    def as_config(self) -> dict[str, str | float | int]:
        """As `rope_scaling` stands in config.json: only what was given."""
        return self.model_dump(exclude_none=True)


def _from_json(value: object) -> object:
    """A flag or Pulumi config carries a mapping as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg})") from None


def _doc(name: str) -> str:
    return fields.BY_NAME[name].help


def _model_text(value: str) -> str:
    return str(parse_model(value))


_LIST = BeforeValidator(split_list, json_schema_input_type=list[str] | str)
_TAGS = BeforeValidator(split_tags, json_schema_input_type=dict[str, str] | list[str] | str)

List = Annotated[tuple[str, ...], _LIST]
Cidrs = Annotated[tuple[Annotated[str, AfterValidator(check_cidr)], ...], _LIST]
Constraints = Annotated[tuple[Annotated[str, AfterValidator(check_constraint)], ...], _LIST]
Tags = Annotated[dict[str, str], _TAGS, AfterValidator(check_tags)]
Duration = Annotated[str, BeforeValidator(normal_duration, json_schema_input_type=str | int)]
Url = Annotated[str, AfterValidator(check_url)]
Key = Annotated[SecretStr, AfterValidator(check_key)]
SshKey = Annotated[str, AfterValidator(check_ssh_key)]
Rope = Annotated[RopeScalingOption, BeforeValidator(_from_json)]
Model = Annotated[str, AfterValidator(_model_text)]
Text = Annotated[str, Field(min_length=1, max_length=255)]
NotBool = BeforeValidator(refuse_bool)


class DeploymentSpec(BaseModel):
    """What the user chose. Frozen; unknown keys are refused; raises SpecError for combinations that
    contradict themselves and pydantic's ValidationError for single values: `parse` gives both at once.

    Defaults that depend on the target (region, ttl, tls, egress) are filled in before validation, so that
    every reader sees the value that counts. `None` means that plan or target decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(default="llm", description=_doc("name"))
    cloud: Cloud = Field(default="local", description=_doc("cloud"))
    host: Text | None = Field(default=None, description=_doc("host"))
    region: str | None = Field(default=None, description=_doc("region"))
    zones: List = Field(default=(), description=_doc("zones"))
    instance_type: List = Field(default=(), description=_doc("instance_type"))
    model: Model = Field(default="demo", description=_doc("model"))
    served_name: Text | None = Field(default=None, description=_doc("served_name"))
    hub_endpoint: Url | None = Field(default=None, description=_doc("hub_endpoint"))
    hub_token: SecretStr | None = Field(default=None, description=_doc("hub_token"))
    max_model_len: Annotated[int, Field(ge=16, le=10_000_000), NotBool] | None = Field(
        default=None, description=_doc("max_model_len")
    )
    rope_scaling: Rope | None = Field(default=None, description=_doc("rope_scaling"))
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(default="auto", description=_doc("dtype"))
    quantization: Literal["auto", "none", "fp8", "int8"] = Field(default="auto", description=_doc("quantization"))
    tensor_parallel: Annotated[int, Field(ge=1, le=max(TP_SIZES)), NotBool] | None = Field(
        default=None, description=_doc("tensor_parallel")
    )
    gpu_memory_utilization: Annotated[float, Field(ge=0.1, le=0.98), NotBool] = Field(
        default=0.92, description=_doc("gpu_memory_utilization")
    )
    max_num_seqs: Annotated[int, Field(ge=1, le=4096), NotBool] | None = Field(
        default=None, description=_doc("max_num_seqs")
    )
    kv_cache_gib: Annotated[float, Field(gt=0, le=4096), NotBool] | None = Field(
        default=None, description=_doc("kv_cache_gib")
    )
    engine: Literal["bundled", "vllm", "sglang"] = Field(default="bundled", description=_doc("engine"))
    api_key: Key | None = Field(default=None, description=_doc("api_key"))
    endpoint: Literal["public", "intranet"] = Field(default="public", description=_doc("endpoint"))
    egress: Literal["nat", "bundle", "none"] | None = Field(default=None, description=_doc("egress"))
    tls: Literal["pinned", "own", "acme", "off"] = Field(default="pinned", description=_doc("tls"))
    domain: Annotated[str, Field(pattern=r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}$")] | None = Field(
        default=None, description=_doc("domain")
    )
    tls_cert: Text | None = Field(default=None, description=_doc("tls_cert"))
    tls_key: Text | None = Field(default=None, description=_doc("tls_key"))
    allowed_cidrs: Cidrs = Field(default=(), description=_doc("allowed_cidrs"))
    vpc_id: Text | None = Field(default=None, description=_doc("vpc_id"))
    subnet_id: Text | None = Field(default=None, description=_doc("subnet_id"))
    security_group_id: Text | None = Field(default=None, description=_doc("security_group_id"))
    bandwidth_mbps: Annotated[int, Field(ge=1, le=200), NotBool] | None = Field(
        default=None, description=_doc("bandwidth_mbps")
    )
    port: Annotated[int, Field(ge=1, le=65535), NotBool] = Field(default=8000, description=_doc("port"))
    request_log: Literal["off", "redacted", "full"] = Field(default="off", description=_doc("request_log"))
    ssh_public_key: SshKey | None = Field(default=None, description=_doc("ssh_public_key"))
    image: Text | None = Field(default=None, description=_doc("image"))
    disk_gib: Annotated[int, Field(ge=40, le=32768), NotBool] | None = Field(default=None, description=_doc("disk_gib"))
    weights_disk_gib: Annotated[int, Field(ge=20, le=32768), NotBool] | None = Field(
        default=None, description=_doc("weights_disk_gib")
    )
    spot: bool = Field(default=False, description=_doc("spot"))
    capacity_reservation: Text | None = Field(default=None, description=_doc("capacity_reservation"))
    billing: Literal["hourly", "monthly"] = Field(default="hourly", description=_doc("billing"))
    ttl: Duration = Field(default="0", description=_doc("ttl"))
    idle_stop: Duration = Field(default="0", description=_doc("idle_stop"))
    pip_index: Url | None = Field(default=None, description=_doc("pip_index"))
    constraints: Constraints = Field(default=(), description=_doc("constraints"))
    proxy: Url | None = Field(default=None, description=_doc("proxy"))
    runtime_wheel: Text | None = Field(default=None, description=_doc("runtime_wheel"))
    mailbox: Literal["bucket", "cloud_assistant"] | None = Field(default=None, description=_doc("mailbox"))
    wait: bool = Field(default=True, description=_doc("wait"))
    tags: Tags = Field(default={}, description=_doc("tags"))

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return with_hub({**target_defaults(data), **data}) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _combine(self) -> DeploymentSpec:
        from provision.rules import contradictions

        if problems := list(contradictions(self)):
            raise SpecError(problems)
        return self

    @property
    def model_ref(self) -> ModelRef:
        return parse_model(self.model)

    @property
    def api_model_name(self) -> str:
        """The model's name in the API."""
        return self.served_name or self.model_ref.short_name

    @property
    def is_cloud(self) -> bool:
        return self.cloud in ("aws", "alicloud")

    @property
    def ttl_seconds(self) -> int:
        """Seconds until the cloud deletes the machine; 0 = never."""
        return duration_seconds(self.ttl)

    @property
    def idle_stop_seconds(self) -> int:
        """Seconds without a request until the machine stops; 0 = never."""
        return duration_seconds(self.idle_stop)

    def public_values(self) -> dict[str, Any]:
        """JSON-ready values that differ from the defaults, without secrets: what may be stored. `parse`
        reads it back."""
        found = self.model_dump(mode="json", exclude=set(fields.SECRETS), exclude_defaults=True)
        # `ttl: 0` is the field's default and not that of a cloud: without it, reading back would buy 8 hours.
        filled = target_defaults({"cloud": self.cloud, "endpoint": self.endpoint})
        return found | {name: getattr(self, name) for name, value in filled.items() if getattr(self, name) != value}


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of deploy.yaml, for editors. Lists may also be written as "a,b"."""
    schema = DeploymentSpec.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "deployctl deploy.yaml"
    schema["description"] = "One deployment of deployctl; see docs/configuration.md."
    return schema


def target_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that depend on other values; a key that the user gave is not in the answer."""
    # A machine that is named by its address is meant.
    cloud = data.get("cloud") or ("host" if data.get("host") else "local")
    found: dict[str, Any] = {"cloud": cloud} if cloud == "host" else {}
    if cloud in DEFAULT_REGION:
        found |= {"region": DEFAULT_REGION[cloud], "ttl": DEFAULT_TTL, "tls": "pinned"}
        if data.get("endpoint") == "intranet":
            found["egress"] = "nat"
    elif cloud == "local":
        found |= {"tls": "off"}
    return {key: value for key, value in found.items() if key not in data}


def in_mainland_china(cloud: object, region: object) -> bool:
    """Where Hugging Face cannot be relied on."""
    return cloud == "alicloud" and isinstance(region, str) and region.startswith("cn-") and region != "cn-hongkong"


def with_hub(data: Mapping[str, Any]) -> dict[str, Any]:
    """A bare org/name comes from ModelScope in mainland China, unless a mirror of Hugging Face is named."""
    found, model = dict(data), data.get("model")
    mainland = in_mainland_china(data.get("cloud"), data.get("region"))
    if mainland and not data.get("hub_endpoint") and isinstance(model, str) and is_bare(model):
        found["model"] = f"modelscope:{model.strip()}"
    return found


def parse(values: Mapping[str, Any]) -> DeploymentSpec:
    """Raises SpecError with every problem of names, types and combinations."""
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return DeploymentSpec.model_validate(given)
    except SpecError:
        raise
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors(include_url=False, include_context=False)]
    bad = {problem.path.split(".")[0] for problem in problems}
    try:
        DeploymentSpec.model_validate({key: value for key, value in given.items() if key not in bad})
    except SpecError as error:
        problems += [item for item in error.problems if not bad & {item.path, *item.others}]
    except ValidationError as error:
        # Cannot add anything new: what is left was valid a moment ago.
        raise SpecError(problems) from error
    order = list(DeploymentSpec.model_fields)
    rank = {name: position for position, name in enumerate(order)}
    problems.sort(key=lambda problem: rank.get(problem.path.split(".")[0], -1))
    raise SpecError(_unique(problems))


def _unique(problems: Iterable[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def _problem(item: Mapping[str, Any]) -> Problem:
    """One pydantic error in the words of this project."""
    location = [str(part) for part in item["loc"]]
    path = ".".join(location)
    value = item.get("input")
    kind = item["type"]
    if kind == "extra_forbidden":
        owner = RopeScalingOption if location[0] == "rope_scaling" else DeploymentSpec
        return Problem(path, "is not a field of the spec", nearest(location[-1], owner.model_fields))
    message = str(item["msg"])
    reason = message[0].lower() + message[1:]
    if kind == "value_error":
        reason = message.removeprefix("Value error, ")
    if kind == "literal_error":
        valid = _choices(location)
        near = nearest(str(value).lower(), valid)
        return Problem(path, f"{_shown(path, value)} is not one of {', '.join(valid)}", near)
    if path == "name" and kind == "string_pattern_mismatch":
        near = name_like(str(value))
        return Problem(path, f"{value!r} must start with a lower-case letter and hold 2 to 25 of a-z, 0-9, -", near)
    if kind in ("greater_than_equal", "less_than_equal", "greater_than"):
        bound = re.search(r"[-\d.]+$", message)
        near = bound.group() if bound and kind != "greater_than" else None
        return Problem(path, f"is {value}; {reason.replace('input should', 'it must')}", near)
    if kind == "missing":
        return Problem(path, "is missing")
    if kind != "value_error":
        reason = f"{_shown(path, value)} is not valid: {reason.replace('input should', 'it must')}"
    return Problem(path, reason, _nearest_model(path, value))


def _nearest_model(path: str, value: object) -> str | None:
    if path != "model" or not isinstance(value, str):
        return None
    from provision.catalog import MODELS

    return nearest(value, ["demo", *MODELS])


def _shown(path: str, value: object) -> str:
    """The value as it may be printed: never a secret."""
    return "the value" if path.split(".")[0] in fields.SECRETS else repr(value)


def _choices(location: list[str]) -> list[str]:
    schema = DeploymentSpec.model_json_schema()
    node: Any = schema["properties"].get(location[0], {})
    if location[0] == "rope_scaling":
        node = schema["$defs"]["RopeScalingOption"]["properties"].get(location[-1], {})
    options = node.get("enum") or [x for part in node.get("anyOf", []) for x in part.get("enum", [])]
    return [str(option) for option in options]


def name_like(text: str) -> str | None:
    """The nearest valid deployment name, for example "My Bot" → "my-bot"."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    cleaned = re.sub(r"^[^a-z]+", "", cleaned)[:25].rstrip("-")
    return cleaned if re.match(NAME_PATTERN, cleaned) else None
