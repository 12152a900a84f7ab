"""One stack of the program on the test engine: its config, and what running it says. The same for every cloud."""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.pulumi_engine import Engine
from tests.lab.pulumi_model import Run


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack on the test engine."""

    engine: Engine

    def configure(self, **config: str) -> None:
        """Config keys of the project; an empty value takes a key away."""
        for key, value in config.items():
            name = f"deployctl:{key}"
            if value:
                self.engine.config[name] = value
            else:
                self.engine.config.pop(name, None)

    def up(self) -> Run:
        return succeeded(self.engine.up())

    def preview(self) -> Run:
        return succeeded(self.engine.preview())

    def destroy(self) -> Run:
        return succeeded(self.engine.destroy())

    def refused(self) -> str:
        """What the program says when it refuses, before it plans anything of the cloud."""
        done = self.engine.preview()
        assert not done.succeeded
        assert "Traceback" not in done.explain()
        return done.explain()

    def failed(self) -> str:
        """What an update says that the cloud refuses."""
        done = self.engine.up()
        assert not done.succeeded
        return done.explain()


def succeeded(done: Run) -> Run:
    assert done.succeeded, done.explain()
    return done
