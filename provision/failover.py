"""What to do when a cloud refuses: a table of error codes by class, and the next place to try. Pure.

    capacity   the next zone, then the next instance type
    quota      the next family of types, which counts against another quota; else stop with the command that raises it
    transient  the same place again
    money      stop: the account owes, is blocked or not verified
    auth       stop: credentials or permissions
    unknown    stop and show what the cloud said, word for word

Codes are matched as families (`NoStock`, `…LimitExceeded`), because clouds add variants. Sources: AWS's pages "Error
codes for the Amazon EC2 API" and "Common errors", Alibaba Cloud's error centre for ECS, VPC and RAM. Not yet seen on a
real account.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from provision.catalog import INSTANCE_TYPES
from provision.preflight import quota_questions
from provision.preflight.quotas import raise_command, vcpu_code
from provision.preflight.rules import STORE_FORBIDDEN
from provision.spec import DeploymentSpec
from provision.stack_settings import Placement

Kind = Literal["money", "auth", "quota", "capacity", "transient", "unknown"]
PERMISSIONS = "deployctl permissions"  # the cloud's name follows
MAX_REPEATS = 3  # of one place after transient errors


@dataclass(frozen=True, slots=True)
class Family:
    """Codes or phrases of one class. `fix` says what a person can do, for classes that stop."""

    kind: Kind
    pattern: str
    fix: str | None = None


# The first match counts: `RequestLimitExceeded` is no quota, and a blocked account is no missing permission.
FAMILIES: tuple[Family, ...] = (
    # money
    Family("money", r"PendingVerification", "wait for AWS's verification mail (usually minutes, at most 4 hours)"),
    Family("money", r"\bBlocked\b", "open a case with AWS Support: the account is blocked"),
    Family("money", r"OptInRequired|NotSignedUp|CustomerNotOpen\w*", "subscribe to the service in the cloud's console"),
    Family("money", r"NotEnoughBalance|InsufficientBalance|AvailableAmountNotEnough", "top the account's balance up"),
    Family("money", r"\bAccount\.Arrear\w*|InvalidAccountStatus|AccountOverdue|\bUserOverdue", "pay what is overdue"),
    Family("money", r"RealName\w*|NotCertified|\bAccount\.Not\w+", "finish the account's identity verification"),
    Family("money", r"SpotMaxPriceTooLow|InvalidSpotPriceLimit\w*", "raise the highest price, or leave spot away"),
    # transient, where a code looks like one of another class
    Family(
        "transient", r"RequestLimitExceeded|Throttl\w+|TooManyRequests\w*|RequestThrottled\w*|SlowDown|FlowLimit\w*"
    ),
    Family("transient", r"iamInstanceProfile\.\w+\b.*\binvalid|Invalid IAM Instance Profile"),
    # auth
    Family(
        "auth",
        r"UnauthorizedOperation|AccessDenied\w*|not authorized to perform|NoPermission|ImplicitDeny|\bForbidden\b"
        r"|Forbidden\.(?:RAM|SubUser|Unauthorized|NoPermission\w*)|NotAuthorized|EntityNotExist\.Role",
        PERMISSIONS,
    ),
    Family(
        "auth",
        r"AuthFailure|InvalidClientTokenId|UnrecognizedClient\w*|ExpiredToken\w*|SignatureDoesNotMatch"
        r"|IncompleteSignature|MissingAuthenticationToken|InvalidAccessKeyId\w*|InvalidSecurityToken\w*"
        r"|[Nn]o valid credential sources|NoCredentialProviders|failed to refresh cached credentials"
        r"|no credentials? (?:found|provided)|Unable to locate credentials|RequestExpired",
        "renew the cloud's credentials on this machine",
    ),
    Family(
        "auth",
        STORE_FORBIDDEN,
        "the same command with --mailbox cloud_assistant, or with OSS_ENDPOINT set to an endpoint that this account may"
        " use (docs/alicloud.md, Accounts that may not use OSS from outside)",
    ),
    # capacity, where a code looks like a quota
    Family("capacity", r"Insufficient(?:Instance|Host|ReservedInstance|Cluster)?Capacity\w*|UnfulfillableCapacity"),
    Family("capacity", r"capacity[- ]not[- ]available|MaxSpotFleetRequestCapacity\w*"),
    # quota
    Family("quota", r"QuotaExceed\w*(?:\.\w+)*|\w*Quota\.Exceed\w*|ServiceQuotaExceeded\w*|QuotaLimit\w*"),
    Family("quota", r"\w+LimitExceeded(?:\.\w+)*|MaxSpotInstanceCountExceeded|ReservationCapacityExceeded"),
    Family("quota", r"TooManyBuckets|\w*CountExceed\w*|Over(?:Quota|Limit)\w*|InstanceQuota\w*"),
    # capacity
    Family("capacity", r"\w*(?:\.\w+)*NoStock\w*|SoldOut\w*|OutOfStock\w*|StockNotEnough\w*|out of stock"),
    Family("capacity", r"Zone\.NotOnSale|\w*\.NotOnSale\w*|Zone\.NotOpen\w*|ZoneNot(?:Allowed|Open|Supported)\w*"),
    Family("capacity", r"ResourceNotAvailable\w*|InstanceType\.Offline|InvalidInstanceType\.(?:Zone)?NotSupported"),
    Family("capacity", r"InvalidInstanceType\.ValueNotSupported|InvalidResourceType\.NotSupported|NotSupportedInZone"),
    Family("capacity", r"\bUnsupported\b(?=.*(?:Availability Zone|instance type))|not supported in your requested"),
    # transient
    Family("transient", r"\bInternal(?:Error|Failure|ServerError)\b|ServiceUnavailable\w*|\bUnavailable\b|ServerBusy"),
    Family(
        "transient", r"RequestTimeout\w*|connection reset|i/o timeout|TLS handshake timeout|context deadline|\bEOF\b"
    ),
    Family("transient", r"no such host|connection refused|temporary failure in name resolution"),
    Family("transient", r"\w*\.?OperationConflict\w*|TaskConflict\w*|IncorrectStatus\w*|DependencyViolation\w*"),
    Family("transient", r"IncorrectVpcStatus\w*|LastTokenProcessing\w*"),
)
_COMPILED = tuple((family, re.compile(family.pattern, re.DOTALL)) for family in FAMILIES)
_ORDER: tuple[Kind, ...] = ("money", "auth", "quota", "capacity", "transient", "unknown")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a refusal means. `code`: the cloud's own word, as it stands in `text`; `fix` where a person must act."""

    kind: Kind
    code: str
    text: str
    fix: str | None = None


def classify(messages: Iterable[str]) -> Verdict:
    """The verdict on an update's raw error texts; of several, the one that leaves the least to try."""
    found = [_classify(text) for text in messages if text.strip()] or [Verdict("unknown", "no message", "")]
    return min(found, key=lambda verdict: _ORDER.index(verdict.kind))


def _classify(text: str) -> Verdict:
    for family, pattern in _COMPILED:
        if match := pattern.search(text):
            return Verdict(family.kind, _code(text, match), text, family.fix)
    return Verdict("unknown", _named(text) or text.strip().splitlines()[0][:80], text)


def _code(text: str, match: re.Match[str]) -> str:
    """The whole word, dots included, that the match lies in; for a phrase the code beside it, if there is one."""
    if " " in match.group():
        return _named(text) or match.group()[:80]
    start, end = match.span()
    while start and (text[start - 1].isalnum() or text[start - 1] in "._"):
        start -= 1
    while end < len(text) and (text[end].isalnum() or text[end] in "._"):
        end += 1
    return text[start:end].strip(".")


def _named(text: str) -> str | None:
    """The code where both providers put it."""
    found = re.search(r"(?:api error |\bCode: |\"Code\":\")([A-Za-z][\w.]+)", text)
    return found[1] if found else None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try that failed."""

    place: Placement
    verdict: Verdict


def choose_next(candidates: Sequence[Placement], attempts: Sequence[Attempt], *, spot: bool) -> Placement | None:
    """Where to try after `attempts`, the last of which has just failed; None = stop.

    `candidates` are in order of preference: all zones of the first type, then of the next.
    """
    last = attempts[-1]
    if last.verdict.kind == "transient":
        repeats = sum(item.place == last.place and item.verdict.kind == "transient" for item in attempts)
        return last.place if repeats < MAX_REPEATS else None
    if last.verdict.kind not in ("capacity", "quota"):
        return None
    tried = {item.place for item in attempts}
    full = {quota_group(item.place.instance_type, spot=spot) for item in attempts if item.verdict.kind == "quota"}
    for place in candidates:
        if place not in tried and quota_group(place.instance_type, spot=spot) not in full:
            return place
    return None


def quota_group(instance_type: str, *, spot: bool) -> str:
    """Types that count against one quota: AWS counts vCPUs by letters, Alibaba Cloud by type."""
    if instance_type.startswith("ecs."):
        return instance_type
    return vcpu_code(instance_type, spot=spot) or instance_type.split(".")[0]


def describe_attempt(attempt: Attempt, following: Placement | None) -> str:
    """ "us-east-1a  g6.xlarge  InsufficientInstanceCapacity  next: us-east-1b g6.xlarge"."""
    place = attempt.place
    after = f"next: {following.zone} {following.instance_type}" if following else "nothing left to try"
    if attempt.verdict.kind not in ("capacity", "quota", "transient"):
        after = "stop"
    return f"{place.zone}  {place.instance_type}  {attempt.verdict.code}  {after}"


def quota_command(spec: DeploymentSpec, instance_type: str, verdict: Verdict) -> str | None:
    """The command, or page, that asks the cloud for the quota that `verdict` is about; None when that is not known."""
    instance = INSTANCE_TYPES.get(instance_type)
    if instance is None:
        return None
    questions = quota_questions(spec, instance, running=False)
    words = {"vpc": "VPCs", "address": "addresses", "eip": "addresses"}
    unit = next((unit for word, unit in words.items() if word in verdict.code.lower()), None)
    chosen = next((item for item in questions if item.unit == unit), questions[0])
    if chosen.code is None:
        return None
    return raise_command(spec.cloud, spec.region or "", chosen, chosen.need)
