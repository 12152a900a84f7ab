"""Alibaba Cloud's RPC APIs and OSS's bucket list, as far as the sweep speaks them: a local HTTP server over a dict.

It holds resources per product and list action, filters by tag and VPC, answers in pages, deletes, and can refuse.
Answers have the fields and the nesting of the products' own SDKs.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.lab.cloud_assistant import TAKES, CloudAssistant

MOST_ON_A_PAGE = 50
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Listing:
    """How one list action answers: where its items lie, how tags are spelt, which field is the id."""

    path: tuple[str, str]
    id: str
    tag: tuple[str, str] = ("TagKey", "TagValue")


LISTINGS: dict[str, Listing] = {
    "DescribeInstances": Listing(("Instances", "Instance"), "InstanceId"),
    "DescribeDisks": Listing(("Disks", "Disk"), "DiskId"),
    "DescribeSnapshots": Listing(("Snapshots", "Snapshot"), "SnapshotId"),
    "DescribeSecurityGroups": Listing(("SecurityGroups", "SecurityGroup"), "SecurityGroupId"),
    "DescribeKeyPairs": Listing(("KeyPairs", "KeyPair"), "KeyPairName"),
    "DescribeNetworkInterfaces": Listing(("NetworkInterfaceSets", "NetworkInterfaceSet"), "NetworkInterfaceId"),
    "DescribeVpcs": Listing(("Vpcs", "Vpc"), "VpcId", ("Key", "Value")),
    "DescribeVSwitches": Listing(("VSwitches", "VSwitch"), "VSwitchId", ("Key", "Value")),
    "DescribeEipAddresses": Listing(("EipAddresses", "EipAddress"), "AllocationId", ("Key", "Value")),
    "DescribeNatGateways": Listing(("NatGateways", "NatGateway"), "NatGatewayId"),
    "DescribeSnatTableEntries": Listing(("SnatTableEntries", "SnatTableEntry"), "SnatEntryId"),
    "ListRoles": Listing(("Roles", "Role"), "RoleName"),
    "ListPolicies": Listing(("Policies", "Policy"), "PolicyName"),
}
# Action that deletes: the list that the thing stands in, and the argument that names it.
DELETIONS = {
    "DeleteInstance": ("DescribeInstances", "InstanceId"),
    "DeleteDisk": ("DescribeDisks", "DiskId"),
    "DeleteSnapshot": ("DescribeSnapshots", "SnapshotId"),
    "DeleteSecurityGroup": ("DescribeSecurityGroups", "SecurityGroupId"),
    "DeleteKeyPairs": ("DescribeKeyPairs", "KeyPairNames"),
    "DeleteNetworkInterface": ("DescribeNetworkInterfaces", "NetworkInterfaceId"),
    "DeleteVpc": ("DescribeVpcs", "VpcId"),
    "DeleteVSwitch": ("DescribeVSwitches", "VSwitchId"),
    "ReleaseEipAddress": ("DescribeEipAddresses", "AllocationId"),
    "DeleteNatGateway": ("DescribeNatGateways", "NatGatewayId"),
    "DeleteSnatEntry": ("DescribeSnatTableEntries", "SnatEntryId"),
    "DeleteRole": ("ListRoles", "RoleName"),
    "DeletePolicy": ("ListPolicies", "PolicyName"),
}
VERSIONS = {"2014-05-26": "ecs", "2016-04-28": "vpc", "2015-05-01": "ram"}


@dataclass
class AlicloudApi:
    """`refusals`: (status, code) by action, "*" for all; `busy`: throttled answers still to give per action."""

    items: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {action: [] for action in LISTINGS})
    attached: dict[str, list[str]] = field(default_factory=dict)  # policies by role
    associated: set[str] = field(default_factory=set)  # addresses that a machine holds
    buckets: dict[str, list[str]] = field(default_factory=dict)  # keys by bucket
    stopped: dict[str, str] = field(default_factory=dict)  # mode by machine
    uploads: dict[str, list[str]] = field(default_factory=dict)  # keys of unfinished uploads by bucket
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)  # (product, action)
    assistant: CloudAssistant = field(default_factory=CloudAssistant)
    host: str = LOOPBACK

    def __enter__(self) -> AlicloudApi:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer((self.host, 0), handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What points the clients here, with a key."""
        url = f"http://{self.host}:{self._server.server_port}"
        return {
            **dict.fromkeys(("ECS_ENDPOINT", "VPC_ENDPOINT", "RAM_ENDPOINT", "OSS_ENDPOINT"), url),
            "ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAItest",
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "secret",
        }

    def add(self, action: str, tags: dict[str, str] | None = None, /, **fields: Any) -> str:
        """Puts one resource into the list that `action` shows; returns its id."""
        listing = LISTINGS[action]
        key, value = listing.tag
        shown = {"Tags": {"Tag": [{key: name, value: text} for name, text in (tags or {}).items()]}}
        self.items[action].append({**shown, **fields})
        id_: str = fields[listing.id]
        return id_

    def answer(self, product: str, action: str, arguments: dict[str, str]) -> tuple[int, dict[str, Any]]:
        self.calls.append((product, action))
        if self.busy.get(action, 0) > 0:
            self.busy[action] -= 1
            return 400, {"Code": "Throttling.User", "Message": "Request was denied due to user flow control."}
        refused = self.refusals.get(action) or self.refusals.get("*")
        if refused:
            return refused[0], {"Code": refused[1], "Message": "refused by the test", "RequestId": "1"}
        if action in LISTINGS:
            return 200, self._list(action, arguments)
        if action in TAKES:
            return self.assistant.answer(action, arguments)
        return self._act(action, arguments)

    def _list(self, action: str, arguments: dict[str, str]) -> dict[str, Any]:
        listing = LISTINGS[action]
        found = [item for item in self.items[action] if _matches(item, listing, arguments)]
        if action.startswith("List"):
            start = int(arguments.get("Marker", "0"))
            page = found[start : start + MOST_ON_A_PAGE]
            more = start + len(page) < len(found)
            rest = {"IsTruncated": more, **({"Marker": str(start + len(page))} if more else {})}
        else:
            size = min(int(arguments.get("PageSize", "10")), MOST_ON_A_PAGE)
            start = (int(arguments.get("PageNumber", "1")) - 1) * size
            page = found[start : start + size]
            rest = {"TotalCount": len(found), "PageNumber": start // size + 1, "PageSize": size}
        return {listing.path[0]: {listing.path[1]: page}, "RequestId": "1", **rest}

    def _act(self, action: str, arguments: dict[str, str]) -> tuple[int, dict[str, Any]]:
        role = arguments.get("RoleName", "")
        if action == "ListPoliciesForRole":
            held = [{"PolicyName": name, "PolicyType": "Custom"} for name in self.attached.get(role, [])]
            return 200, {"Policies": {"Policy": held}, "RequestId": "1"}
        if action == "DetachPolicyFromRole":
            self.attached[role].remove(arguments["PolicyName"])
            return 200, {"RequestId": "1"}
        if action == "UnassociateEipAddress":
            self.associated.discard(arguments["AllocationId"])
            return 200, {"RequestId": "1"}
        if action == "StopInstance":
            return self._stop(arguments)
        if action not in DELETIONS:
            return 404, {"Code": "InvalidAction.NotFound", "Message": f"{action} is not known here"}
        if action == "DeleteRole" and self.attached.get(role):
            return 409, {"Code": "DeleteConflict.Role.Policy", "Message": "the role has policies"}
        if action == "ReleaseEipAddress" and arguments["AllocationId"] in self.associated:
            return 400, {"Code": "IncorrectEipStatus", "Message": "the address is in use"}
        listed, argument = DELETIONS[action]
        wanted = arguments[argument]
        names = json.loads(wanted) if wanted.startswith("[") else [wanted]
        kept = [item for item in self.items[listed] if item[LISTINGS[listed].id] not in names]
        if len(kept) == len(self.items[listed]):
            return 404, {"Code": f"Invalid{argument}.NotFound", "Message": "there is no such thing"}
        self.items[listed] = kept
        return 200, {"RequestId": "1"}

    def _stop(self, arguments: dict[str, str]) -> tuple[int, dict[str, Any]]:
        machines = {item["InstanceId"]: item for item in self.items["DescribeInstances"]}
        machine = machines.get(arguments["InstanceId"])
        if machine is None:
            return 404, {"Code": "InvalidInstanceId.NotFound", "Message": "there is no such machine"}
        machine["Status"] = "Stopped"
        self.stopped[machine["InstanceId"]] = arguments.get("StoppedMode", "KeepCharging")
        return 200, {"RequestId": "1"}


def _matches(item: dict[str, Any], listing: Listing, arguments: dict[str, str]) -> bool:
    key, value = listing.tag
    tags = {tag[key]: tag[value] for tag in item["Tags"]["Tag"]}
    tag = arguments.get("Tag.1.Key")
    if tag is not None and (tag not in tags or tags[tag] != arguments.get("Tag.1.Value", tags[tag])):
        return False
    if item.get("RegionId", arguments.get("RegionId")) != arguments.get("RegionId"):
        return False
    name = arguments.get("KeyPairName")
    if name is not None and not item["KeyPairName"].startswith(name.removesuffix("*")):
        return False
    if "InstanceIds" in arguments and item.get("InstanceId") not in json.loads(arguments["InstanceIds"]):
        return False
    vpc = item.get("VpcId") or item.get("VpcAttributes", {}).get("VpcId")
    return all(
        item.get(wanted, vpc if wanted == "VpcId" else None) == arguments[wanted]
        for wanted in ("VpcId", "SnatTableId")
        if wanted in arguments
    )


class _Handler(BaseHTTPRequestHandler):
    api: ClassVar[AlicloudApi]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        action = self.headers.get("x-acs-action")
        if action is None:
            self._store(address.path.strip("/"), query, body)
            return
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        status, found = self.api.answer(VERSIONS[self.headers["x-acs-version"]], action, {**form, **query})
        self._send(status, json.dumps(found).encode(), "application/json")

    do_POST = do_PUT = do_DELETE = do_GET

    def _store(self, path: str, query: dict[str, str], body: bytes) -> None:
        api, (bucket, _, key) = self.api, path.partition("/")
        api.calls.append(("oss", f"{self.command} {path or '/'}"))
        held, unfinished = api.buckets.get(bucket, []), api.uploads.get(bucket, [])
        if refused := api.refusals.get("oss"):
            status, code = refused
            self._send(status, f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode())
        elif not bucket:
            found = [name for name in api.buckets if name.startswith(query.get("prefix", ""))]
            rows = "".join(f"<Bucket><Name>{name}</Name><Region>cn-hangzhou</Region></Bucket>" for name in found)
            self._send(200, f"<ListAllMyBucketsResult><Buckets>{rows}</Buckets></ListAllMyBucketsResult>".encode())
        elif key and "uploadId" in query:
            unfinished.remove(key)
            self._send(204, b"")
        elif self.command == "GET" and "uploads" in query:
            rows = "".join(f"<Upload><Key>{escape(name)}</Key><UploadId>1</UploadId></Upload>" for name in unfinished)
            self._send(200, f"<ListMultipartUploadsResult>{rows}</ListMultipartUploadsResult>".encode())
        elif self.command == "GET":
            rows = "".join(f"<Contents><Key>{escape(name)}</Key><Size>1</Size></Contents>" for name in held)
            self._send(200, f"<ListBucketResult><Name>{bucket}</Name>{rows}</ListBucketResult>".encode())
        elif self.command == "POST":
            gone = {str(node.text) for node in ElementTree.fromstring(body).iter("Key")}
            api.buckets[bucket] = [name for name in held if name not in gone]
            self._send(200, b"<DeleteResult/>")
        elif held or unfinished:
            self._send(409, b"<Error><Code>BucketNotEmpty</Code><Message>it holds objects</Message></Error>")
        else:
            del api.buckets[bucket]
            self._send(204, b"")

    def _send(self, status: int, body: bytes, kind: str = "application/xml") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-oss-request-id", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The test's output stays clean."""
