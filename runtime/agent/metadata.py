"""The metadata service of a cloud VM: who this instance is, and under which addresses it is reached.

EC2: http://169.254.169.254, session token required (IMDSv2). Alibaba Cloud ECS: http://100.100.100.200, where a session
token is used if the service gives one.
"""

from __future__ import annotations

import http.client
from dataclasses import dataclass

from runtime.vm import METADATA_ADDRESS, Provider

TIMEOUT_S = 5.0
TOKEN_LIFE_S = 300
TOKEN_HEADER: dict[Provider, str] = {"aws": "x-aws-ec2-metadata-token", "alicloud": "x-aliyun-ecs-metadata-token"}
PRIVATE_ADDRESS: dict[Provider, str] = {"aws": "local-ipv4", "alicloud": "private-ipv4"}
PUBLIC_ADDRESSES: dict[Provider, tuple[str, ...]] = {"aws": ("public-ipv4",), "alicloud": ("eipv4", "public-ipv4")}


class MetadataError(Exception):
    """The service did not answer, or not with what was asked for. It may later: roles and addresses come late."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Reads; every method raises MetadataError. `host` and `port` are another's in tests."""

    provider: Provider
    host: str = ""
    port: int = 80

    def instance_id(self) -> str:
        found = self.get("instance-id")
        if not found:
            raise MetadataError("the metadata service knows no instance-id")
        return found

    def addresses(self) -> tuple[str, ...]:
        """The private address, then the public one where there is one."""
        wanted = (PRIVATE_ADDRESS[self.provider], *PUBLIC_ADDRESSES[self.provider])
        found = (self.get(path) for path in wanted)
        return tuple(dict.fromkeys(address for address in found if address))

    def get(self, path: str) -> str | None:
        """The text at meta-data/`path`, None when there is no such entry."""
        status, text = self._ask("GET", f"/latest/meta-data/{path}", self._token())
        if status == 404:
            return None
        if status != 200:
            raise MetadataError(f"the metadata service answers {status} for {path}")
        return text.strip()

    def _token(self) -> dict[str, str]:
        name = TOKEN_HEADER[self.provider]
        status, text = self._ask("PUT", "/latest/api/token", {f"{name}-ttl-seconds": str(TOKEN_LIFE_S)})
        return {name: text} if status == 200 else {}

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        host = self.host or METADATA_ADDRESS[self.provider]
        connection = http.client.HTTPConnection(host, self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
            raise MetadataError(f"the metadata service {host} does not answer: {error}") from error
        finally:
            connection.close()
