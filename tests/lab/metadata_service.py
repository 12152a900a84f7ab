"""The metadata service of one instance: EC2's (169.254.169.254) or Alibaba Cloud ECS's (100.100.100.200).

Paths, headers and status codes follow the clouds' manuals ("Use the Instance Metadata Service", "Instance metadata").
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler

from runtime.vm import METADATA_ADDRESS, Provider
from tests.lab.network import GUEST, Holder, serve_http

TOKEN_PATH = "/latest/api/token"
TOKEN_HEADERS: dict[Provider, tuple[str, str]] = {
    "aws": ("X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"),
    "alicloud": ("X-aliyun-ecs-metadata-token", "X-aliyun-ecs-metadata-token-ttl-seconds"),
}
REFUSED: dict[Provider, int] = {"aws": 401, "alicloud": 403}


@dataclass(frozen=True, slots=True)
class RoleCredentials:
    """What the instance's role signs with. `expiration` in the form 2030-01-01T00:00:00Z."""

    role: str
    access_key_id: str
    access_key_secret: str
    security_token: str
    expiration: str = "2099-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Instance:
    """What the service tells. `credentials` None = no role is attached (yet)."""

    provider: Provider
    instance_id: str
    region: str
    zone: str
    instance_type: str
    user_data: str
    image: str = "image-of-the-lab"
    private_ip: str = "10.42.1.4"
    public_ip: str | None = GUEST
    hostname: str = "lab-guest"
    public_key: str = ""
    credentials: RoleCredentials | None = None
    tokens_required: bool = True
    mirror: str = "http://mirrors.cloud.aliyuncs.com"  # Alibaba's source-address


@dataclass(frozen=True, slots=True)
class Seen:
    """One request. `status` is how it was answered."""

    method: str
    path: str
    with_token: bool
    status: int


@dataclass(slots=True)
class MetadataService:
    """A running service; `instance` may be changed while it runs."""

    instance: Instance
    seen: list[Seen] = field(default_factory=list)
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def attach(self, credentials: RoleCredentials | None) -> None:
        self.instance = replace(self.instance, credentials=credentials)

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """(status, body) of one request. `headers` by lower-case name."""
        instance = self.instance
        token_header, ttl_header = (name.lower() for name in TOKEN_HEADERS[instance.provider])
        if path == TOKEN_PATH:
            if method != "PUT":
                return 405, ""
            if instance.provider == "aws" and "x-forwarded-for" in headers:
                return 403, ""
            return (200, self.token) if headers.get(ttl_header, "").isdecimal() else (400, "")
        if method != "GET":
            return 405, ""
        sent = headers.get(token_header)
        if sent != self.token and (sent is not None or instance.tokens_required):
            return REFUSED[instance.provider], ""
        return find(instance, path)


def find(instance: Instance, path: str) -> tuple[int, str]:
    """(status, body) of `/<version>/<path>`: a value, or the names below a folder. Pure."""
    _, _, rest = path.strip("/").partition("/")
    values = {**tree(instance), "user-data": instance.user_data}
    if not rest:
        return 200, "dynamic\nmeta-data\nuser-data"
    if rest in values:
        return 200, values[rest]
    if rest == "meta-data/public-keys":
        return 200, "0=lab"
    names = [name.removeprefix(rest + "/") for name in values if name.startswith(rest + "/")]
    if not names:
        return 404, ""
    return 200, "\n".join(dict.fromkeys(name.split("/")[0] + ("/" if "/" in name else "") for name in names))


def tree(instance: Instance) -> dict[str, str]:
    """Every value under meta-data and dynamic, by path."""
    common = {
        "instance-id": instance.instance_id,
        "hostname": instance.hostname,
        "mac": "02:00:00:00:00:01",
        "public-keys/0/openssh-key": instance.public_key,
    }
    found = {**common, **(_aws(instance) if instance.provider == "aws" else _alicloud(instance))}
    document = {"instanceId": instance.instance_id, "region": instance.region, "instanceType": instance.instance_type}
    if instance.provider == "alicloud":
        document = {
            "instance-id": instance.instance_id,
            "region-id": instance.region,
            "zone-id": instance.zone,
            "private-ipv4": instance.private_ip,
        }
    return {
        **{f"meta-data/{path}": value for path, value in found.items()},
        "dynamic/instance-identity/document": json.dumps(document),
    }


def _aws(instance: Instance) -> dict[str, str]:
    found = {
        "ami-id": instance.image,
        "instance-type": instance.instance_type,
        "local-hostname": instance.hostname,
        "local-ipv4": instance.private_ip,
        "placement/availability-zone": instance.zone,
        "placement/region": instance.region,
    }
    if instance.public_ip is not None:
        found["public-ipv4"] = instance.public_ip
    if (role := instance.credentials) is not None:
        found[f"iam/security-credentials/{role.role}"] = json.dumps(
            {
                "Code": "Success",
                "LastUpdated": "2026-01-01T00:00:00Z",
                "Type": "AWS-HMAC",
                "AccessKeyId": role.access_key_id,
                "SecretAccessKey": role.access_key_secret,
                "Token": role.security_token,
                "Expiration": role.expiration,
            }
        )
    return found


def _alicloud(instance: Instance) -> dict[str, str]:
    found = {
        "image-id": instance.image,
        "instance/instance-type": instance.instance_type,
        "network-type": "vpc",
        "private-ipv4": instance.private_ip,
        "region-id": instance.region,
        "source-address": instance.mirror,
        "zone-id": instance.zone,
    }
    if instance.public_ip is not None:
        found["eipv4"] = instance.public_ip
    if (role := instance.credentials) is not None:
        found[f"ram/security-credentials/{role.role}"] = json.dumps(
            {
                "AccessKeyId": role.access_key_id,
                "AccessKeySecret": role.access_key_secret,
                "Expiration": role.expiration,
                "SecurityToken": role.security_token,
                "LastUpdated": "2026-01-01T00:00:00Z",
                "Code": "Success",
            }
        )
    return found


@contextmanager
def serve_metadata(instance: Instance, operator: Holder) -> Iterator[MetadataService]:
    """Listens on the provider's metadata address, in the operator's network."""
    service = MetadataService(instance)

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = service.answer(self.command, self.path.partition("?")[0], headers)
            token_header = TOKEN_HEADERS[service.instance.provider][0].lower()
            service.seen.append(Seen(self.command, self.path, token_header in headers, status))
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = handle_any

        def log_message(self, *_: object) -> None:
            """`seen` is the log."""

    with serve_http(Handler, METADATA_ADDRESS[instance.provider], 80, operator):
        yield service
