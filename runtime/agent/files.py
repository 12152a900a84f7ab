"""Who may read what the agent writes: on `local` its own user, on a VM also the group of server and engine."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from runtime.mailbox import write_atomic


@dataclass(frozen=True, slots=True)
class Access:
    """Modes of files and folders, and their owner as os.chown takes it (-1 = as it comes)."""

    file_mode: int = 0o600
    folder_mode: int = 0o700
    uid: int = -1
    gid: int = -1

    def write(self, path: Path, data: bytes) -> None:
        """A reader sees the old content or the new one, never half and never without its right to read."""
        self.make_folder(path.parent)
        new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        write_atomic(new, data)
        os.chmod(new, self.file_mode)
        os.chown(new, self.uid, self.gid)
        os.replace(new, path)

    def make_folder(self, folder: Path) -> None:
        """Creates what is missing of the path. Folders that are there already are left as they are."""
        missing = [folder, *folder.parents]
        for step in reversed([path for path in missing if not path.is_dir()]):
            step.mkdir(exist_ok=True)
            os.chmod(step, self.folder_mode)
            os.chown(step, self.uid, self.gid)


PRIVATE = Access()
