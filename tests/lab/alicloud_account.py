"""An account on Alibaba Cloud that several processes share: a file, what makes things in it, and its APIs.

    stand-in pulumi ─► FileCloud ─┐                             object store (OSS's own API, signatures checked)
                                  ├─ file ◄─ AccountApi (ECS, VPC, RAM) ◄─ deployctl down
    the test itself ─► FileCloud ─┘

Both sides see the same things and the same refusals. They take turns: no two of them change the account at once.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime.mailbox import write_atomic
from tests.lab.alicloud_api import DELETIONS, LISTINGS, LOOPBACK, AlicloudApi
from tests.lab.alicloud_cloud import AlicloudCloud, Refused, Thing
from tests.lab.alicloud_mirror import SHOWN, show
from tests.lab.pulumi_model import Created
from tests.lab.pulumi_wire import Properties

ATTACHED = {  # what ends without being deleted by an id of its own: the action, and the arguments that it names
    "UnassociateEipAddress": ("EipAssociation", {"allocationId": "AllocationId"}),
    "DetachPolicyFromRole": ("RolePolicyAttachment", {"policyName": "PolicyName", "roleName": "RoleName"}),
}


@dataclass
class FileCloud(AlicloudCloud):
    """An account that is written to `path` after each change."""

    path: Path = field(default=Path(), kw_only=True)

    def create(self, kind: str, name: str, inputs: Properties) -> Created:
        with self.lock:
            made = super().create(kind, name, inputs)
            self.save()
            return made

    def update(self, kind: str, id: str, inputs: Properties) -> Properties:
        with self.lock:
            found = super().update(kind, id, inputs)
            self.save()
            return found

    def delete(self, kind: str, id: str) -> None:
        with self.lock:
            super().delete(kind, id)
            self.save()

    def switch_off(self, id: str) -> None:
        with self.lock:
            super().switch_off(id)
            self.save()

    def plant(self, kind: str, values: Properties) -> Thing:
        with self.lock:
            planted = super().plant(kind, values)
            self.save()
            return planted

    def save(self) -> None:
        kept = {
            "addresses": self.addresses,
            "next": next(self.numbers),
            "things": [asdict(item) for item in self.things.values()],
        }
        write_atomic(self.path, json.dumps(kept, default=sorted).encode())


def read_account(path: Path) -> FileCloud:
    """The account as it is now; changes to it are written back."""
    kept = json.loads(path.read_bytes())
    cloud = FileCloud(path=path, addresses=kept["addresses"])
    cloud.numbers = itertools.count(kept["next"])
    for item in kept["things"]:
        cloud.things[item["type"], item["id"]] = Thing(**{**item, "holds": frozenset(item["holds"])})
    return cloud


@dataclass
class AccountApi(AlicloudApi):
    """The APIs of the account in `path`. Buckets are the object store's."""

    path: Path = field(default=Path(), kw_only=True)
    lock: threading.RLock = field(default_factory=threading.RLock, kw_only=True)

    def answer(self, product: str, action: str, arguments: dict[str, str]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            cloud = read_account(self.path)
            for shown in self.items.values():
                shown.clear()
            self.attached.clear()
            self.associated.clear()
            show(cloud, self)
            before = self._ids(action)
            status, found = super().answer(product, action, arguments)
            if status == 200 and action == "StopInstance":
                cloud.switch_off(arguments["InstanceId"])
            elif status == 200:
                try:
                    self._end(cloud, action, arguments, before - self._ids(action))
                except Refused as refused:
                    return 400, {"Code": refused.code, "Message": str(refused), "RequestId": "1"}
            return status, found

    def _ids(self, action: str) -> set[str]:
        """What stands in the list that `action` takes things from."""
        if action not in DELETIONS:
            return set()
        listed = DELETIONS[action][0]
        return {str(item[LISTINGS[listed].id]) for item in self.items[listed]}

    def _end(self, cloud: FileCloud, action: str, arguments: dict[str, str], gone: set[str]) -> None:
        if action in ATTACHED:
            kind, names = ATTACHED[action]
            for thing in cloud.find(kind):
                if all(thing.values[key] == arguments[name] for key, name in names.items()):
                    cloud.delete(thing.type, thing.id)
        for thing in cloud.find():
            if thing.id in gone and SHOWN.get(thing.type, ("", {}))[0] == DELETIONS[action][0]:
                cloud.delete(thing.type, thing.id)


@contextmanager
def alicloud_account(path: Path, addresses: str, host: str = LOOPBACK) -> Iterator[AccountApi]:
    """An empty account. `addresses`: how its public ones begin, with the last dot. `host`: where its APIs answer."""
    FileCloud(path=path, addresses=addresses).save()
    api = AccountApi(host=host, path=path)
    with api:
        yield api
