"""The table of error codes against texts in the form in which both providers print them, and the order of places."""

from __future__ import annotations

import pytest

from provision.failover import Attempt, Kind, Verdict, choose_next, classify, describe_attempt, quota_command
from provision.spec import parse
from provision.stack_settings import Placement


def aws(code: str, said: str = "the request was refused", operation: str = "RunInstances") -> str:
    """As terraform-provider-aws prints an API error."""
    return (
        f"1 error occurred:\n\t* creating EC2 Instance: operation error EC2: {operation}, https response error "
        f"StatusCode: 400, RequestID: 8c5d3f5e-0000-4000-8000-000000000000, api error {code}: {said}\n\n"
    )


def alicloud(code: str, said: str = "The request was refused.") -> str:
    """As terraform-provider-alicloud prints an API error."""
    return (
        "1 error occurred:\n\t* [ERROR] terraform-provider-alicloud/alicloud/resource_alicloud_instance.go:1234: "
        "Resource alicloud_instance RunInstances Failed!!! [SDK alibaba-cloud-sdk-go ERROR]:\nSDKError:\n"
        f"   StatusCode: 403\n   Code: {code}\n   Message: code: 403, {said} request id: 5E8C3A2B\n"
        '   Data: {"Code":"' + code + '","HostId":"ecs.cn-hangzhou.aliyuncs.com"}\n\n'
    )


AWS_CODES: list[tuple[str, str, Kind]] = [
    ("InsufficientInstanceCapacity", "We currently do not have sufficient g6.xlarge capacity", "capacity"),
    ("InsufficientHostCapacity", "", "capacity"),
    ("InsufficientCapacity", "Insufficient capacity.", "capacity"),
    ("InsufficientReservedInstanceCapacity", "", "capacity"),
    ("Unsupported", "Your requested instance type (p5.4xlarge) is not supported in your requested Availability Zone "
     "(us-east-1e).", "capacity"),
    ("UnfulfillableCapacity", "", "capacity"),
    ("VcpuLimitExceeded", "You have requested more vCPU capacity than your current vCPU limit of 0", "quota"),
    ("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded", "quota"),
    ("InstanceLimitExceeded", "", "quota"),
    ("VpcLimitExceeded", "The maximum number of VPCs has been reached.", "quota"),
    ("AddressLimitExceeded", "The maximum number of addresses has been reached.", "quota"),
    ("NatGatewayLimitExceeded", "", "quota"),
    ("RequestLimitExceeded", "Request limit exceeded.", "transient"),
    ("Throttling", "Rate exceeded", "transient"),
    ("InternalError", "An internal error has occurred", "transient"),
    ("InternalFailure", "", "transient"),
    ("ServiceUnavailable", "", "transient"),
    ("Unavailable", "The server is overloaded", "transient"),
    ("DependencyViolation", "", "transient"),
    ("InvalidParameterValue", "Value (x) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance "
     "Profile name", "transient"),
    ("UnauthorizedOperation", "You are not authorized to perform this operation.", "auth"),
    ("AccessDenied", "User: arn:aws:iam::1:user/x is not authorized to perform: iam:CreateRole", "auth"),
    ("AuthFailure", "AWS was not able to validate the provided access credentials", "auth"),
    ("ExpiredToken", "The security token included in the request is expired", "auth"),
    ("InvalidClientTokenId", "", "auth"),
    ("SignatureDoesNotMatch", "", "auth"),
    ("PendingVerification", "Your account is currently being verified.", "money"),
    ("Blocked", "This account is currently blocked.", "money"),
    ("OptInRequired", "You are not subscribed to this service.", "money"),
    ("SpotMaxPriceTooLow", "", "money"),
    ("InvalidAMIID.NotFound", "The image id '[ami-1]' does not exist", "unknown"),
    ("InvalidParameterCombination", "Could not create volume", "unknown"),
]  # fmt: skip

ALICLOUD_CODES: list[tuple[str, str, Kind]] = [
    ("OperationDenied.NoStock", "The resource is out of stock in the specified zone.", "capacity"),
    ("Zone.NotOnSale", "The resource in the specified zone is no longer available for sale.", "capacity"),
    ("Zone.NotOpen", "", "capacity"),
    ("ResourceNotAvailable", "Resource you requested is not available in this region or zone.", "capacity"),
    ("InvalidResourceType.NotSupported", "user order resource type [ecs.x] not exists in [cn-hangzhou-b]", "capacity"),
    ("InvalidInstanceType.ZoneNotSupported", "", "capacity"),
    ("InvalidInstanceType.ValueNotSupported", "", "capacity"),
    ("RecommendEmpty.InstanceTypeSoldOut", "", "capacity"),
    ("OperationDenied.NoStockInZone", "", "capacity"),
    ("QuotaExceed.ElasticQuota", "No additional quota is available for the specified ECS instance type.", "quota"),
    ("QuotaExceed.AfterpayInstance", "", "quota"),
    ("QuotaExceeded.Eip", "Elastic IP address quota exceeded", "quota"),
    ("InstanceQuotaExceeded", "", "quota"),
    ("Throttling.User", "Request was denied due to user flow control.", "transient"),
    ("ServiceUnavailable", "The request has failed due to a temporary failure of the server.", "transient"),
    ("InternalError", "", "transient"),
    ("TaskConflict", "", "transient"),
    ("OperationConflict", "", "transient"),
    ("IncorrectStatus.Eip", "", "transient"),
    ("IncorrectVpcStatus", "", "transient"),
    ("Forbidden.RAM", "User not authorized to operate on the specified resource", "auth"),
    ("NoPermission", "", "auth"),
    ("PublicEndpointForbidden", "Public endpoint forbidden", "auth"),
    ("InvalidAccessKeyId.NotFound", "Specified access key is not found.", "auth"),
    ("InvalidAccessKeyId.Inactive", "", "auth"),
    ("InvalidSecurityToken.Expired", "", "auth"),
    ("InvalidAccountStatus.NotEnoughBalance", "Your account does not have enough balance.", "money"),
    ("Account.Arrearage", "Your account has an outstanding payment.", "money"),
    ("RealNameAuthenticationError", "Your account has not passed the real-name authentication yet.", "money"),
    ("InvalidImageId.NotFound", "", "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "said", "kind"), AWS_CODES, ids=[row[0] for row in AWS_CODES])
def test_a_text_of_aws_has_its_class_and_its_code(code: str, said: str, kind: Kind) -> None:
    verdict = classify([aws(code, said)])
    assert (verdict.kind, verdict.code) == (kind, code)


@pytest.mark.parametrize(("code", "said", "kind"), ALICLOUD_CODES, ids=[row[0] for row in ALICLOUD_CODES])
def test_a_text_of_alibaba_cloud_has_its_class_and_its_code(code: str, said: str, kind: Kind) -> None:
    verdict = classify([alicloud(code, said)])
    assert (verdict.kind, verdict.code) == (kind, code)


@pytest.mark.parametrize("variant", ["InsufficientInstanceCapacityException", "OperationDenied.NoStockAnyZone"])
def test_an_unknown_variant_of_a_capacity_code_is_still_capacity(variant: str) -> None:
    assert classify([aws(variant), alicloud(variant)]).kind == "capacity"


def test_of_several_errors_the_one_counts_that_leaves_least_to_try() -> None:
    texts = ["exit status 1", aws("InsufficientInstanceCapacity"), aws("UnauthorizedOperation")]
    assert classify(texts).kind == "auth"
    assert classify(texts[:2]).kind == "capacity"


def test_every_class_that_stops_for_a_person_says_what_to_do() -> None:
    for code, said, kind in AWS_CODES + ALICLOUD_CODES:
        if kind in ("money", "auth"):
            assert classify([aws(code, said)]).fix, code


def test_what_is_unknown_keeps_the_raw_text() -> None:
    verdict = classify([aws("SomethingNew", "nobody has seen this")])
    assert verdict.kind == "unknown"
    assert verdict.code == "SomethingNew"
    assert "nobody has seen this" in verdict.text
    assert classify([]).kind == "unknown"


# ---- where to try next ----

G6 = [Placement("g6.xlarge", "us-east-1a"), Placement("g6.xlarge", "us-east-1b")]
G5 = [Placement("g5.xlarge", "us-east-1a")]
P4 = [Placement("p4d.24xlarge", "us-east-1a")]


def failed(place: Placement, kind: Kind) -> Attempt:
    return Attempt(place, Verdict(kind, "Code", "text"))


def test_capacity_tries_every_zone_of_a_type_before_the_next_type() -> None:
    attempts = [failed(G6[0], "capacity")]
    assert choose_next([*G6, *G5], attempts, spot=False) == G6[1]
    attempts.append(failed(G6[1], "capacity"))
    assert choose_next([*G6, *G5], attempts, spot=False) == G5[0]
    attempts.append(failed(G5[0], "capacity"))
    assert choose_next([*G6, *G5], attempts, spot=False) is None


def test_a_full_quota_skips_to_a_family_that_counts_against_another() -> None:
    attempts = [failed(G6[0], "quota")]
    assert choose_next([*G6, *G5, *P4], attempts, spot=False) == P4[0]
    assert choose_next([*G6, *G5], attempts, spot=False) is None


def test_alibaba_cloud_counts_each_type_by_itself() -> None:
    first, second = (
        Placement("ecs.gn7i-c8g1.2xlarge", "cn-hangzhou-b"),
        Placement("ecs.gn7i-4x.8xlarge", "cn-hangzhou-b"),
    )
    assert choose_next([first, second], [failed(first, "quota")], spot=False) == second


def test_a_transient_error_tries_the_same_place_a_few_times() -> None:
    attempts = [failed(G6[0], "transient")]
    assert choose_next(G6, attempts, spot=False) == G6[0]
    assert choose_next(G6, attempts * 3, spot=False) is None


@pytest.mark.parametrize("kind", ["auth", "money", "unknown"])
def test_nothing_else_is_tried_after_an_error_that_a_place_cannot_change(kind: Kind) -> None:
    assert choose_next(G6, [failed(G6[0], kind)], spot=False) is None


def test_an_attempt_is_one_line_with_zone_type_code_and_what_follows() -> None:
    attempt = Attempt(G6[0], classify([aws("InsufficientInstanceCapacity")]))
    line = describe_attempt(attempt, G6[1])
    assert line == "us-east-1a  g6.xlarge  InsufficientInstanceCapacity  next: us-east-1b g6.xlarge"
    assert describe_attempt(attempt, None).endswith("nothing left to try")


def test_a_missing_quota_names_the_exact_request() -> None:
    spec = parse({"cloud": "aws", "instance_type": "g6.xlarge", "model": "Qwen/Qwen2.5-7B-Instruct"})
    command = quota_command(spec, "g6.xlarge", classify([aws("VcpuLimitExceeded")]))
    assert command is not None
    assert "--quota-code L-DB2E81BA --desired-value 4" in command
    addresses = quota_command(spec, "g6.xlarge", classify([aws("AddressLimitExceeded")]))
    assert addresses is not None
    assert "L-0263D0A3" in addresses
