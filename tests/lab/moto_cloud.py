"""The test engine's AWS: every resource is really made in moto and really deleted, so that "nothing left" is a query.

What moto cannot do stands in `moto_connect` (EC2 Instance Connect Endpoints) and `moto_answers` (prices, quotas).
"""

from __future__ import annotations

import threading

from tests.lab import moto_connect, moto_machine, moto_network, moto_storage, sdk_schema
from tests.lab.moto_answers import answer
from tests.lab.moto_kind import Clients, Kind
from tests.lab.pulumi_model import Created, OutsideTheLab
from tests.lab.pulumi_wire import Properties

moto_connect.install()

KINDS: dict[str, Kind] = {**moto_network.KINDS, **moto_machine.KINDS, **moto_storage.KINDS}


class MotoCloud:
    """One account. `endpoint`: URL of a moto server, None inside `mock_aws`. `failures`: types whose creation fails,
    with AWS's words, for tests of what happens then."""

    def __init__(self, region: str, endpoint: str | None = None) -> None:
        self.region = region
        self.failures: dict[str, str] = {}
        self._clients = {region: Clients(region, endpoint)}
        self._lock = threading.Lock()  # moto's dictionaries are shared by all requests

    @property
    def clients(self) -> Clients:
        return self._clients[self.region]

    def replaces(self, token: str) -> frozenset[str]:
        return self._kind(token).fixed

    def create(self, token: str, name: str, inputs: Properties, settings: Properties) -> Created:
        if token in self.failures:
            raise RuntimeError(self.failures[token])
        with self._lock:
            return self._kind(token).make(self._region(settings), _with_tags(token, inputs, settings))

    def update(self, token: str, id: str, inputs: Properties, outputs: Properties, settings: Properties) -> Properties:
        change = self._kind(token).change
        if change is None:
            where = "its `Kind` in tests/lab/moto_*.py, as `change`, or its inputs to `fixed`"
            raise OutsideTheLab(f"how {token} changes in place (now {inputs})", where)
        with self._lock:
            return {**outputs, **inputs, **change(self._region(settings), id, _with_tags(token, inputs, settings))}

    def delete(self, token: str, id: str, outputs: Properties, settings: Properties) -> None:
        with self._lock:
            self._kind(token).drop(self._region(settings), id, outputs)

    def invoke(self, token: str, args: Properties, settings: Properties) -> Properties:
        with self._lock:
            return answer(self.clients, token, args)

    @staticmethod
    def _kind(token: str) -> Kind:
        if token not in KINDS:
            raise OutsideTheLab(f"resources of type {token}", "KINDS of the tests/lab/moto_*.py that fits")
        return KINDS[token]

    def _region(self, settings: Properties) -> Clients:
        """Fails where a resource has no explicit provider: the user's default region is not the spec's."""
        if settings.get("region") != self.region:
            raise LookupError(f"a resource in {settings.get('region')!r}, and the deployment is in {self.region}")
        return self.clients


def _with_tags(token: str, inputs: Properties, settings: Properties) -> Properties:
    """As Pulumi's provider does: default tags reach every type that has tags, unless the resource overrides them."""
    if "tags" not in sdk_schema.properties(sdk_schema.args_class(token)):
        return inputs
    default = settings.get("defaultTags") or {}
    override = (inputs.get("overrideProvider") or {}).get("defaultTags")
    chosen = override if override is not None else default
    return {**inputs, "tagsAll": {**(chosen.get("tags") or {}), **(inputs.get("tags") or {})}}
