"""What a machine of the user's own knows of itself: no metadata service, no clock of a cloud, and disks, upgrades and
power that are the user's matter."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.vm import Vm


@dataclass(frozen=True, slots=True)
class HostFacts:
    """In place of a metadata service: who the machine is stands in vm.json, and its addresses in the release."""

    vm: Vm

    def instance_id(self) -> str:
        return self.vm.id or self.vm.name

    def addresses(self) -> tuple[str, ...]:
        """None but those that the release names: an address from a lease that changes would change the certificate."""
        return ()

    def get(self, path: str) -> str | None:
        return None
