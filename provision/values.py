"""Parsers and checks of single values of the spec. Each raises ValueError with the reason."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from pydantic import SecretStr

MIN_KEY_LENGTH = 20
_DURATION = re.compile(r"(\d+)([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def refuse_bool(value: object) -> object:
    """YAML reads `yes` and `on` as true, which Python would take for 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()!r} is not a number")
    return value


def split_list(value: object) -> object:
    """ "a,b" and ["a,b", "c"] are lists of their parts: flags and Pulumi config carry text."""
    if isinstance(value, str):
        return [part for raw in value.split(",") if (part := raw.strip())]
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return [part for item in value for raw in str(item).split(",") if (part := raw.strip())]
    return value


def split_tags(value: object) -> object:
    """ "a=1,b=2" and ["a=1", "b=2"] become a mapping; numbers in a YAML mapping become text."""
    if isinstance(value, Mapping):
        return {str(key): item if isinstance(item, str) else str(item) for key, item in value.items()}
    parts = split_list(value)
    if not isinstance(parts, list):
        return value
    found: dict[str, str] = {}
    for part in parts:
        key, equals, item = part.partition("=")
        if not equals or not key:
            raise ValueError(f"{part!r} must be key=value")
        found[key.strip()] = item.strip()
    return found


def check_tags(tags: dict[str, str]) -> dict[str, str]:
    for key, item in tags.items():
        if not re.fullmatch(r"[\w.:/=+@-]{1,64}", key) or len(item) > 128:
            raise ValueError(f"{key!r}: a key has 1 to 64 characters and a value at most 128")
        if key.lower().startswith(("aws:", "acs:", "aliyun", "deployctl")):
            raise ValueError(f"{key!r} uses a prefix that the cloud or deployctl keeps for itself")
    if len(tags) > 15:
        raise ValueError(f"{len(tags)} tags; at most 15, because Alibaba Cloud allows 20 per resource")
    return tags


def normal_duration(value: object) -> str:
    """ "90m", "8h", "1h30m", "2d"; 0 = never. Kept as the user wrote it."""
    text = "0" if value is False else str(value).strip().lower()
    duration_seconds(text)
    return text


def duration_seconds(text: str) -> int:
    """Seconds in "1h30m"; 0 for "0". Raises ValueError."""
    if text in ("0", "off", "never"):
        return 0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a time: write 90m, 8h, 1h30m, 2d, or 0 for never")
    return sum(int(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def check_cidr(text: str) -> str:
    """One IPv4 network; a bare address is a network of one."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an address range: write 203.0.113.0/24 or 203.0.113.7") from None
    if network.version != 4:
        raise ValueError(f"{text!r} is IPv6; only IPv4 ranges are supported")
    if "/" in text and str(network) != text:
        raise ValueError(f"{text!r} has host bits set; write {network}")
    return str(network)


def check_constraint(text: str) -> str:
    """One exact version of one package, as pip's constraint files have it."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.+!_-]*", text) is None:
        raise ValueError(f"{text!r} is not a constraint: write package==version, such as torch==2.11.0")
    return text


def check_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} is not a URL that starts with https:// or http://")
    return text.rstrip("/")


def check_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if len(text) < MIN_KEY_LENGTH:
        raise ValueError(f"has {len(text)} characters; at least {MIN_KEY_LENGTH} keep a guesser out")
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("must be printable ASCII without spaces, because it travels in an HTTP header")
    if len(text) > 256:
        raise ValueError(f"has {len(text)} characters; at most 256")
    return key


def check_ssh_key(text: str) -> str:
    if "PRIVATE KEY" in text:
        raise ValueError("is a private key; give the public one (the file that ends in .pub)")
    if re.match(r"^(ssh-(ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/=]+", text) or text.endswith(".pub"):
        return text
    raise ValueError("is neither the text of a public key (ssh-ed25519 AAAA…) nor a path to a .pub file")
