"""The words of the spec: what each field of `DeploymentSpec` is called and means, for flags, schema and docs.

Types and rules stand in `provision.spec`. This table is apart from it because every command's flags are
made from it, and `deployctl --help` must not wait for pydantic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["text", "list", "flag"]


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """`name` is the snake_case key; `shape` says how a flag reads it: one text, repeatable, or --x/--no-x."""

    name: str
    group: str
    help: str
    example: str
    shape: Shape = "text"

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


_WHERE = "Where"
_MODEL = "Model"
_ENGINE = "Engine"
_REACH = "Endpoint and network"
_MACHINE = "Machine"
_MONEY = "Money and time"
_SETUP = "Set-up"

FIELDS: tuple[FieldDoc, ...] = (
    FieldDoc("name", _WHERE, "Name of the deployment: lower-case letters, digits, hyphens; 2 to 25.", "chat"),
    FieldDoc("cloud", _WHERE, "Where it runs: local, host, aws or alicloud.", "aws"),
    FieldDoc("host", _WHERE, "Machine to reach over SSH (cloud: host).", "ubuntu@10.0.0.5"),
    FieldDoc("region", _WHERE, "Region. Default: us-east-1 (aws), cn-hangzhou (alicloud).", "eu-west-1"),
    FieldDoc("zones", _WHERE, "Zones to try, in order. Default: all of the region.", "eu-west-1a", "list"),
    FieldDoc(
        "instance_type",
        _MACHINE,
        "Instance types to try, in order. Default: the cheapest that fits.",
        "g6e.xlarge",
        "list",
    ),
    FieldDoc(
        "model",
        _MODEL,
        "hf:org/name@revision, modelscope:org/name, s3://bucket/prefix, oss://bucket/prefix, a local folder, or demo. "
        "A bare org/name is hf:, and modelscope: on alicloud in mainland China unless hub_endpoint is set.",
        "Qwen/Qwen2.5-7B-Instruct",
    ),
    FieldDoc("served_name", _MODEL, "Model name in the API. Default: the model's own.", "qwen"),
    FieldDoc("hub_endpoint", _MODEL, "Base URL of a Hugging Face mirror (hf: models).", "https://hub.example.org"),
    FieldDoc("hub_token", _MODEL, "Token for gated models. Also read from HF_TOKEN.", "hf_…"),
    FieldDoc(
        "max_model_len",
        _ENGINE,
        "Longest request in tokens, prompt and output together. Default: what the model and the memory "
        "allow, at most 32768.",
        "8192",
    ),
    FieldDoc(
        "rope_scaling",
        _ENGINE,
        "Rotary scaling in place of the checkpoint's own: a mapping in deploy.yaml, JSON in a flag.",
        '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}',
    ),
    FieldDoc("dtype", _ENGINE, "auto, bfloat16, float16 or float32.", "bfloat16"),
    FieldDoc(
        "quantization",
        _ENGINE,
        "auto (GPUs: as the checkpoint; CPUs: int8), none, fp8 (GPUs) or int8 (CPUs); quantizes at load what is not.",
        "fp8",
    ),
    FieldDoc(
        "tensor_parallel",
        _ENGINE,
        "GPUs that share the model. Default: all that it can be cut for (on local and host: one, where it fits).",
        "2",
    ),
    FieldDoc("gpu_memory_utilization", _ENGINE, "Share of GPU memory to use, 0.1 to 0.98.", "0.9"),
    FieldDoc("max_num_seqs", _ENGINE, "Requests that run at once. Default: 64; 256 on GPUs from 40 GiB.", "128"),
    FieldDoc(
        "kv_cache_gib",
        _ENGINE,
        "Size of the KV cache per GPU, or of the CPU's. Default: what is left (GPU), a quarter of free "
        "RAM and at most 4 (CPU).",
        "8",
    ),
    FieldDoc("engine", _ENGINE, "bundled. (vllm and sglang: not yet.)", "bundled"),
    FieldDoc("api_key", _REACH, "Your own API key, 20 or more characters. Default: a random one.", "…"),
    FieldDoc("endpoint", _REACH, "public or intranet (inside the VPC only).", "intranet"),
    FieldDoc(
        "egress",
        _REACH,
        "How an intranet machine fetches software and weights: nat (default), bundle, none.",
        "nat",
    ),
    FieldDoc(
        "tls",
        _REACH,
        "pinned (own certificate, pinned by deployctl), own, acme or off. Default: pinned; off on local.",
        "pinned",
    ),
    FieldDoc("domain", _REACH, "Domain name of the certificate (tls: acme or own).", "llm.example.org"),
    FieldDoc("tls_cert", _REACH, "Certificate chain in PEM, a path (tls: own).", "./chain.pem"),
    FieldDoc("tls_key", _REACH, "Private key in PEM, a path (tls: own).", "./key.pem"),
    FieldDoc(
        "allowed_cidrs",
        _REACH,
        "Who may connect. Default: your own address (public), private ranges (intranet).",
        "203.0.113.7/32",
        "list",
    ),
    FieldDoc("vpc_id", _REACH, "An existing VPC. Default: a new one.", "vpc-0a1b2c3d"),
    FieldDoc("subnet_id", _REACH, "A subnet (vswitch on alicloud) of that VPC.", "subnet-0a1b2c3d"),
    FieldDoc("security_group_id", _REACH, "A security group of that VPC.", "sg-0a1b2c3d"),
    FieldDoc("bandwidth_mbps", _REACH, "Bandwidth of the public address, 1 to 200 Mbit/s (alicloud).", "100"),
    FieldDoc(
        "request_log",
        _REACH,
        "One line of JSON per request in the server's log: off, redacted (who, how much, how long; nothing of what was "
        "said), or full (prompts and outputs too).",
        "redacted",
    ),
    FieldDoc("port", _REACH, "TCP port of the endpoint.", "8000"),
    FieldDoc(
        "ssh_public_key",
        _MACHINE,
        "Public key for SSH: its text, or a path to a .pub file.",
        "~/.ssh/id_ed25519.pub",
    ),
    FieldDoc("image", _MACHINE, "Machine image id. Default: the cloud's GPU or Ubuntu image.", "ami-0a1b2c3d"),
    FieldDoc("disk_gib", _MACHINE, "Size of the system disk. Default: from the plan.", "200"),
    FieldDoc(
        "weights_disk_gib",
        _MACHINE,
        "Size of a disk of its own for the weights; it outlives the machine, and `down` deletes it unless --keep-disk.",
        "500",
    ),
    FieldDoc("spot", _MONEY, "Spot instance: cheaper, may be taken back.", "true", "flag"),
    FieldDoc("capacity_reservation", _MONEY, "Id of a capacity reservation to start in.", "cr-0a1b2c3d"),
    FieldDoc("billing", _MONEY, "hourly. (monthly: not yet.)", "hourly"),
    FieldDoc(
        "ttl",
        _MONEY,
        "Time until the cloud itself deletes the machine: 90m, 8h, 2d; 0 = never. Default: 8h; 0 on local and host.",
        "4h",
    ),
    FieldDoc("idle_stop", _MONEY, "Stop the machine after this long without a request; 0 = never.", "30m"),
    FieldDoc("pip_index", _SETUP, "Python package index that the machine uses.", "https://pypi.example.org/simple"),
    FieldDoc(
        "constraints",
        _SETUP,
        "Exact versions that pip keeps to on the machine. deploy.lock fills them in.",
        "torch==2.11.0",
        "list",
    ),
    FieldDoc("proxy", _SETUP, "HTTP proxy that the machine uses for downloads.", "http://proxy.example.org:3128"),
    FieldDoc(
        "runtime_wheel",
        _SETUP,
        "The deployctl wheel to install on the machine, a path. Default: built from this checkout, or this version's.",
        "./dist/deployctl-0.1.0-py3-none-any.whl",
    ),
    FieldDoc(
        "mailbox",
        _SETUP,
        "How deployctl and the machine talk on alicloud: bucket, or cloud_assistant where the account may not use OSS "
        "from outside. Default: bucket; a first `deployctl up` goes over to cloud_assistant by itself.",
        "cloud_assistant",
    ),
    FieldDoc("wait", _SETUP, "Whether `pulumi up` waits until the endpoint answers.", "true", "flag"),
    FieldDoc("tags", _SETUP, "Tags on every cloud resource, as key=value.", "team=search", "list"),
)

BY_NAME: dict[str, FieldDoc] = {field.name: field for field in FIELDS}
SECRETS = ("hub_token", "api_key")
