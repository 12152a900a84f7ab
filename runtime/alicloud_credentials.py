"""Credentials for Alibaba Cloud: the environment, the profile of the `aliyun` command, the instance's RAM role.

The OSS SDK reads OSS_ACCESS_KEY_ID only, and has no provider for roles. The metadata service is asked with a token,
as `http_tokens: required` wants it ("Instance metadata" in the ECS user guide).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from runtime.vm import METADATA_ADDRESS

VARIABLES = (
    ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN"),
    ("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"),
    ("ALICLOUD_ACCESS_KEY", "ALICLOUD_SECRET_KEY", "ALICLOUD_SECURITY_TOKEN"),  # as Pulumi's provider reads them
)
PROFILE_VARIABLES = ("ALIBABA_CLOUD_PROFILE", "ALICLOUD_PROFILE")
PROFILES = Path(".aliyun/config.json")
METADATA_URL = f"http://{METADATA_ADDRESS['alicloud']}"
METADATA_TIMEOUT_S = 2.0  # a link-local address: nobody answers at all outside the cloud
TOKEN_TTL_S = 21600
RENEW_BEFORE_S = 300.0
HINT = "run `aliyun configure`, or set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET"


class CredentialsError(Exception):
    """No credentials. `transient`: the metadata service may give some later."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


@dataclass(frozen=True, slots=True)
class AccessKey:
    """`expires_at`: seconds since the epoch; None = lasting."""

    id: str
    secret: str
    token: str | None = None
    expires_at: float | None = None


class KeyChain:
    """Finds a key once and keeps it until shortly before it expires. Thread-safe."""

    def __init__(self, env: Mapping[str, str], home: Path | None = None, metadata_url: str = METADATA_URL) -> None:
        self._env = env
        self._home = home or Path.home()
        self._metadata_url = metadata_url
        self._lock = threading.Lock()
        self._found: AccessKey | None = None

    def find(self) -> AccessKey:
        """Raises CredentialsError."""
        with self._lock:
            found = self._found
            if found is None or (found.expires_at is not None and found.expires_at - time.time() < RENEW_BEFORE_S):
                found = key_of_environment(self._env) or self._key_of_profile() or key_of_role(self._metadata_url)
                self._found = found
            return found

    def _key_of_profile(self) -> AccessKey | None:
        try:
            data = (self._home / PROFILES).read_bytes()
        except OSError:
            return None
        wanted = next((self._env[name] for name in PROFILE_VARIABLES if self._env.get(name)), None)
        return key_of_profile(data, wanted)


def key_of_environment(env: Mapping[str, str]) -> AccessKey | None:
    for key_id, secret, token in VARIABLES:
        if env.get(key_id) and env.get(secret):
            return AccessKey(env[key_id], env[secret], env.get(token) or None)
    return None


def key_of_profile(data: bytes, wanted: str | None = None) -> AccessKey | None:
    """From the `aliyun` command's config.json: the profile `wanted`, else its current one. None where there is no key
    in it. Raises CredentialsError for a missing profile and for kinds that need another program."""
    try:
        config = json.loads(data)
        name = wanted or config["current"]
        profile = next((item for item in config["profiles"] if item["name"] == name), None)
    except (ValueError, KeyError, TypeError) as error:
        raise CredentialsError(f"~/{PROFILES} cannot be read ({error!r}); run `aliyun configure`") from error
    if profile is None:
        raise CredentialsError(f"~/{PROFILES} has no profile {name!r}; run `aliyun configure --profile {name}`")
    mode = profile.get("mode", "AK")
    if mode == "EcsRamRole":
        return None
    if mode not in ("AK", "StsToken"):
        raise CredentialsError(f"profile {name!r} is of the kind {mode}, not read here; {HINT}")
    if not profile.get("access_key_id") or not profile.get("access_key_secret"):
        return None
    token = profile.get("sts_token") if mode == "StsToken" else None
    return AccessKey(profile["access_key_id"], profile["access_key_secret"], token or None)


def key_of_role(metadata_url: str = METADATA_URL) -> AccessKey:
    """Of the RAM role attached to this instance. Raises CredentialsError."""
    import httpx

    folder = "/latest/meta-data/ram/security-credentials/"
    try:
        # No proxy can reach a link-local address.
        with httpx.Client(base_url=metadata_url, timeout=METADATA_TIMEOUT_S, trust_env=False) as client:
            seconds = {"X-aliyun-ecs-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
            token = client.put("/latest/api/token", headers=seconds).raise_for_status().text
            headers = {"X-aliyun-ecs-metadata-token": token}
            role = client.get(folder, headers=headers).raise_for_status().text.strip()
            answer = client.get(folder + role, headers=headers).raise_for_status().json()
    except httpx.HTTPStatusError as error:
        raise CredentialsError(f"the instance has no RAM role yet ({error})", transient=True) from error
    except (httpx.HTTPError, ValueError) as error:
        raise CredentialsError(
            f"no Alibaba Cloud credentials, and this is no ECS instance ({error}); {HINT}"
        ) from error
    if answer.get("Code") != "Success":
        raise CredentialsError(f"the RAM role {role} gives no key: {answer.get('Code')}", transient=True)
    expires = datetime.fromisoformat(answer["Expiration"].replace("Z", "+00:00")).timestamp()
    return AccessKey(answer["AccessKeyId"], answer["AccessKeySecret"], answer["SecurityToken"], expires)
