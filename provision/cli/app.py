"""The Typer app `deployctl`: a table of commands, each imported only when it is the one that runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from provision.cli.output import OutputMode, show_error
from provision.errors import DeployctlError, StoppedError, from_os_error


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """One command of `deployctl`. `module` holds a Typer app called `app`."""

    module: str
    help: str


COMMANDS: dict[str, CommandEntry] = {
    "up": CommandEntry("provision.cli.up", "Plan, start and prove a deployment; prints its endpoint and key."),
    "preview": CommandEntry("provision.cli.preview", "Show what `up` would do on a cloud; buys nothing."),
    "status": CommandEntry("provision.cli.status", "Show phase, release, model, endpoint and processes."),
    "endpoint": CommandEntry("provision.cli.endpoint", "Print the endpoint; --env prints lines to eval."),
    "connect": CommandEntry("provision.cli.connect", "Print what a client needs: openai, curl, langchain, chatbox, …"),
    "open": CommandEntry("provision.cli.open", "Open the playground in a browser."),
    "chat": CommandEntry("provision.cli.chat", "Talk to the model in the terminal."),
    "logs": CommandEntry("provision.cli.logs", "Show the logs of engine, server, agent and supervisor."),
    "ssh": CommandEntry("provision.cli.ssh", "Open a shell on a deployment's machine."),
    "exec": CommandEntry("provision.cli.exec", "Run a command on a deployment's machine."),
    "tunnel": CommandEntry("provision.cli.tunnel", "Open a local port that leads to an endpoint."),
    "redeploy": CommandEntry("provision.cli.redeploy", "Change parameters, model or version; the port stays open."),
    "stop": CommandEntry("provision.cli.stop", "Switch a deployment off and keep it; prints what still bills."),
    "wake": CommandEntry("provision.cli.wake", "Switch a stopped deployment on again."),
    "extend": CommandEntry("provision.cli.extend", "Let the cloud end a deployment later."),
    "rollback": CommandEntry("provision.cli.rollback", "Go back to an earlier release; the port stays open."),
    "releases": CommandEntry("provision.cli.releases", "Show the releases that can be gone back to; forget others."),
    "down": CommandEntry("provision.cli.down", "Stop a deployment and prove that nothing is left."),
    "ps": CommandEntry("provision.cli.ps", "List all deployments with phase, endpoint, age and price."),
    "keys": CommandEntry("provision.cli.keys", "List, add, rotate and revoke API keys, without a restart."),
    "bench": CommandEntry("provision.cli.bench", "Measure the endpoint under load: tokens/s, latency, price."),
    "monitor": CommandEntry("provision.cli.monitor", "Run Prometheus on the deployments; print alerts."),
    "cost": CommandEntry("provision.cli.cost", "Show what a deployment costs, and end it when a budget is spent."),
    "doctor": CommandEntry("provision.cli.doctor", "Find what is wrong, and what to type about it."),
    "wait": CommandEntry("provision.cli.wait", "Wait until a cloud deployment answers; used by the Pulumi program."),
    "plan": CommandEntry("provision.cli.plan", "Show what fits and what it costs; starts nothing."),
    "weights": CommandEntry("provision.cli.weights", "Put a model, or a machine's packages, into a bucket."),
    "permissions": CommandEntry("provision.cli.permissions", "Print the smallest IAM or RAM policy for a spec."),
    "config": CommandEntry("provision.cli.config", "Show where values come from; the JSON Schema; Pulumi's settings."),
    "version": CommandEntry("provision.cli.version", "Print the versions of deployctl and its parts."),
}


class LazyGroup(TyperGroup):
    """Lists commands from the table without importing them; imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        return TyperCommand(cmd_name, help=entry.help) if entry else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        return name, load(name), rest

    def invoke(self, ctx: Any) -> Any:
        """Expected errors become a message and their exit code."""
        try:
            return super().invoke(ctx)
        except DeployctlError as error:
            expected = error
        except KeyboardInterrupt:
            expected = StoppedError("stopped by Ctrl-C", why="the same command takes it up again")
        except OSError as error:
            mapped = from_os_error(error)
            if mapped is None:
                raise
            expected = mapped
        show_error(expected, as_json=isinstance(ctx.obj, OutputMode) and ctx.obj.json)
        raise typer.Exit(expected.exit_code)


def load(name: str) -> Any:
    """Imports the command `name` and returns it as a click command with the table's help."""
    entry = COMMANDS[name]
    command: Any = typer.main.get_command(importlib.import_module(entry.module).app)
    command.name = name
    command.help = command.help or entry.help
    return command


app = typer.Typer(
    cls=LazyGroup,
    name="deployctl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: deployctl up --model demo · Exit codes: docs/exit-codes.md",
)


@app.callback()
def deployctl() -> None:
    """Turn a model name into an OpenAI endpoint, on this machine or on one cloud VM."""


def main() -> None:
    """Console script `deployctl`."""
    app(prog_name="deployctl")
