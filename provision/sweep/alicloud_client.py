"""Alibaba Cloud's RPC APIs (ECS, VPC, RAM) over `runtime.alicloud_api`: pages, retries, and errors by meaning.

Field names were held against the products' own packages (alibabacloud_ecs20140526 7.11, alibabacloud_vpc20160428 7.2,
alibabacloud_ram20150501 1.3). Not yet run on a real cloud.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from runtime.alicloud_api import NoAnswerError, RefusedError, call_rpc
from runtime.alicloud_credentials import CredentialsError, KeyChain

Product = Literal["ecs", "vpc", "ram"]
Json = Mapping[str, Any]

PRODUCTS: dict[str, Product] = {"ecs": "ecs", "vpc": "vpc", "ram": "ram"}
VERSIONS: dict[Product, str] = {"ecs": "2014-05-26", "vpc": "2016-04-28", "ram": "2015-05-01"}
PAGE_SIZE = 50  # the most that VPC allows
ATTEMPTS = 5
FIRST_PAUSE_S = 0.5
DENIED = ("Forbidden", "NoPermission", "NotAuthorized", "ImplicitDeny")
NO_KEY = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurityToken", "IncompleteSignature")
THROTTLED = ("Throttling", "ServiceUnavailable")

Meaning = Literal["denied", "throttled", "credentials", "other"]


class ApiError(Exception):
    """A refusal, or no answer at all. `code` is the cloud's own word; `permission` what the call needs, if known."""

    def __init__(self, code: str, message: str, meaning: Meaning, permission: str | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.meaning = meaning
        self.permission = permission


class AlicloudClient:
    """Calls of one account in one region. Thread-safe; nothing is sent before the first call."""

    def __init__(self, region: str, env: Mapping[str, str], pause: Callable[[float], None] = time.sleep) -> None:
        self.region = region
        self._env = env
        self._pause = pause
        self.keys = KeyChain(env)

    def call(self, product: Product, action: str, arguments: Mapping[str, str]) -> Json:
        """One answer. Throttled calls are repeated. Raises ApiError."""
        url = endpoint_of(product, self.region, self._env)
        region = {} if product == "ram" else {"RegionId": self.region}
        for attempt in range(ATTEMPTS):
            try:
                return call_rpc(self.keys.find(), url, VERSIONS[product], action, {**region, **arguments})
            except CredentialsError as error:
                raise ApiError("NoCredentials", str(error), "credentials") from error
            except RefusedError as error:
                refused = _api_error(error.code, error.message, f"{product}:{action}")
            except NoAnswerError as error:
                refused = ApiError("NoAnswer", str(error), "throttled")
            if refused.meaning != "throttled":
                break
            if attempt + 1 < ATTEMPTS:
                self._pause(FIRST_PAUSE_S * 2**attempt)
        raise refused

    def items(
        self, product: Product, action: str, path: tuple[str, str], arguments: Mapping[str, str]
    ) -> Iterator[Json]:
        """The items at `path` ("Disks", "Disk") of every page. Raises ApiError."""
        if product == "ram":
            yield from self._marked(action, path, arguments)
            return
        page, seen = 1, 0
        while True:
            answer = self.call(product, action, {**arguments, "PageNumber": str(page), "PageSize": str(PAGE_SIZE)})
            found = answer[path[0]][path[1]]
            yield from found
            page, seen = page + 1, seen + len(found)
            if not found or seen >= int(answer["TotalCount"]):
                return

    def _marked(self, action: str, path: tuple[str, str], arguments: Mapping[str, str]) -> Iterator[Json]:
        marker: dict[str, str] = {}
        while True:
            answer = self.call("ram", action, {**arguments, **marker})
            yield from answer[path[0]][path[1]]
            if not answer.get("IsTruncated"):
                return
            marker = {"Marker": answer["Marker"]}


def endpoint_of(product: Product, region: str, env: Mapping[str, str]) -> str:
    """Base URL of an API: what ECS_ENDPOINT, VPC_ENDPOINT or RAM_ENDPOINT says, which Pulumi's provider reads too."""
    given = env.get(f"{product.upper()}_ENDPOINT")
    if given:
        return given if "://" in given else f"https://{given}"
    if product == "ram":
        return "https://ram.aliyuncs.com"
    if product == "ecs" and region == "cn-hangzhou":
        return "https://ecs-cn-hangzhou.aliyuncs.com"  # the one region of the catalog with a name of its own
    return f"https://{product}.{region}.aliyuncs.com"


def _api_error(code: str, message: str, permission: str) -> ApiError:
    if code.startswith(DENIED):
        return ApiError(code, message, "denied", permission)
    if code.startswith(NO_KEY):
        return ApiError(code, message, "credentials", permission)
    return ApiError(code, message, "throttled" if code.startswith(THROTTLED) else "other", permission)
