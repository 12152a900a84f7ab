"""What a release really runs on: versions as the packages' metadata and the driver say them. Nothing is imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import metadata

from runtime.agent import phases
from runtime.agent.releases import Release
from runtime.agent.status import PhaseError
from runtime.mailbox import Built


def describe(release: Release, packages: list[str] | None) -> Built:
    """`packages`: the folders in which the release's interpreter finds packages; None = this one's."""
    path = sys.path if packages is None else packages
    weights = release.weights()
    return Built(
        release=release.id,
        model_commit=None if weights is None else weights.revision,
        torch=installed("torch", path),
        transformers=installed("transformers", path),
        driver=driver_version() if release.deployment.engine.device == "cuda" else None,
    )


def installed(package: str, path: list[str]) -> str | None:
    """The version that lies first on the path."""
    found = next(iter(metadata.distributions(name=package, path=path)), None)
    return None if found is None else found.version


def driver_version() -> str | None:
    """NVIDIA's; None when it does not answer just now."""
    try:
        return phases.list_gpus().partition(",")[0].strip() or None
    except PhaseError:
        return None


def check_constraints(constraints: Iterable[str], packages: list[str]) -> None:
    """Raises PhaseError where an installed package has another version than a constraint ("torch==2.11.0") asks for.

    A local version (2.11.0+cu126) fits a constraint without one, as for pip.
    """
    for text in constraints:
        name, _, wanted = text.partition("==")
        have = installed(name, packages)
        if have is not None and not fits(have, wanted):
            raise PhaseError(
                f"{name} {have} is installed here, and constraints ask for {wanted}",
                "what runs keeps its packages: `deployctl down` and `up` make the machine anew; "
                "`deployctl up --upgrade` takes it as it is",
                retry=False,
            )


def fits(have: str, wanted: str) -> bool:
    plain = have if "+" in wanted else have.partition("+")[0]
    return _trimmed(plain) == _trimmed(wanted)


def _trimmed(version: str) -> str:
    """2.11 and 2.11.0 are the same version."""
    return re.sub(r"(\.0)+$", "", version)
