"""What is done again and again beside the phases: talk to the mailbox, look at the end of life, upload logs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


class Rounds(threading.Thread):
    """Calls each step every `every_s` seconds, or sooner after `wake`. A step that raises is said once, not per round:
    nothing that goes wrong here may end the agent."""

    def __init__(self, steps: tuple[Callable[[], None], ...], every_s: float) -> None:
        super().__init__(name="rounds", daemon=True)
        self._steps = steps
        self._every_s = every_s
        self._wake = threading.Event()
        self._ending = False
        self._said: dict[int, str] = {}

    def run(self) -> None:
        while not self._ending:
            self.go_once()
            self._wake.wait(self._every_s)
            self._wake.clear()

    def go_once(self) -> None:
        for number, step in enumerate(self._steps):
            try:
                step()
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                if self._said.get(number) != said:
                    print(said, file=sys.stderr, flush=True)
                self._said[number] = said

    def wake(self) -> None:
        self._wake.set()

    def end(self, wait_s: float) -> None:
        """No round begins after this; one that runs has `wait_s` seconds to end."""
        self._ending = True
        self._wake.set()
        if self.is_alive():
            self.join(wait_s)
