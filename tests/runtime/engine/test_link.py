"""The engine's socket: who may connect."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.engine.link import ServerLink
from runtime.ipc import SOCKET_NAME


@pytest.mark.parametrize(("folder_mode", "socket_mode"), [(0o700, 0o600), (0o3770, 0o660)])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the listener lives as long as the engine's process
def test_the_socket_is_private_or_of_the_group_that_shares_the_folder(
    tmp_path: Path, folder_mode: int, socket_mode: int
) -> None:
    tmp_path.chmod(folder_mode)
    ServerLink(tmp_path, "r1")
    assert (tmp_path / SOCKET_NAME).stat().st_mode & 0o777 == socket_mode
