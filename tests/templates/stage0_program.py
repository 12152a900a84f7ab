"""Stage 0 as it travels, loaded into a test with its fixed places moved to the test's own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from provision.user_data import stage0


def load_stage0(
    metadata: str = "http://127.0.0.1:9/latest/", folder: Path = Path("/nonexistent"), patience_s: float = 30
) -> ModuleType:
    """`metadata`: base URL of both clouds' service; `folder`: in place of / for vm.json and the state."""
    module = ModuleType("stage0")
    exec(compile(stage0(), "stage0.py", "exec"), module.__dict__)
    vars(module).update(
        METADATA={"aws": metadata, "alicloud": metadata},
        VM=str(folder / "vm.json"),
        STATE=str(folder / "state"),
        PAUSES=(0.01, 0.05),
        PATIENCE=patience_s,
    )
    return module


def main() -> None:
    """`python -m tests.templates.stage0_program METADATA FOLDER PATIENCE_S`: stage 0 as a process."""
    load_stage0(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])).main()


if __name__ == "__main__":
    main()
