"""One call of Alibaba Cloud's RPC APIs (ECS, VPC, RAM) through its core SDK's generic call.

One small package in place of one generated package per product. Not yet run on a real cloud.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from alibabacloud_tea_openapi.client import Client
from alibabacloud_tea_openapi.exceptions import AlibabaCloudException
from alibabacloud_tea_openapi.models import Config, OpenApiRequest, Params
from darabonba.exceptions import DaraException, UnretryableException
from darabonba.runtime import RuntimeOptions

from runtime.alicloud_credentials import AccessKey

CONNECT_TIMEOUT_MS = 10_000
READ_TIMEOUT_MS = 30_000


class RefusedError(Exception):
    """The cloud's answer is no. `code`: its own word for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class NoAnswerError(Exception):
    """Whether the call had an effect is unknown."""


def call_rpc(key: AccessKey, url: str, version: str, action: str, query: Mapping[str, str]) -> Mapping[str, Any]:
    """The decoded body of one answer; tried once. `version`: of the API at `url` ("2014-05-26").

    Raises RefusedError and NoAnswerError.
    """
    address = urlsplit(url)
    protocol = address.scheme.upper()
    config = Config(
        access_key_id=key.id,
        access_key_secret=key.secret,
        security_token=key.token,
        endpoint=address.netloc,
        protocol=protocol,
        connect_timeout=CONNECT_TIMEOUT_MS,
        read_timeout=READ_TIMEOUT_MS,
    )
    form = Params(
        action=action,
        version=version,
        protocol=protocol,
        pathname="/",
        method="POST",
        auth_type="AK",
        style="RPC",
        req_body_type="formData",
        body_type="json",
    )
    try:
        answer: dict[str, Any] = Client(config).call_api(form, OpenApiRequest(query=dict(query)), RuntimeOptions())
    except AlibabaCloudException as error:
        raise RefusedError(str(error.code), str(error.message)) from error
    except (DaraException, UnretryableException, OSError) as error:
        raise NoAnswerError(str(error)) from error
    body: dict[str, Any] = answer["body"]
    return body
