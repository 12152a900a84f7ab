"""Commands that take a command line of their own after `--`: what stands there is no option and no name of ours."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_KEY = "deployctl.after_dashes"


class AfterDashes(TyperCommand):
    """click itself would take the first word after `--` for a missing NAME."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            position = args.index("--")
            ctx.meta[_KEY] = tuple(args[position + 1 :])
            args = args[:position]
        return super().parse_args(ctx, args)


def words_after_dashes(context: Any) -> tuple[str, ...]:
    """The words after `--`; none without it."""
    found: tuple[str, ...] = context.meta.get(_KEY, ())
    return found
