"""`deployctl-runtime`: the commands of the machine's side. People use `deployctl`; units use these.

Exit codes:
    0   ended as asked (SIGTERM, shutdown)
    2   wrong command line
    3   supervise: cannot listen on the host and port (usually the port is taken)
    4   supervise: this machine folder has a supervisor already
    70  engine: crashed; a restart may help
    78  engine, server: bad configuration or unsupported model; a restart cannot help. The last line on stderr
        is `error: … | hint: …`
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from runtime.vm import VM_FILE


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deployctl-runtime", description="Machine-side commands of deployctl.")
    commands = parser.add_subparsers(dest="command", required=True)

    supervise = commands.add_parser("supervise", help="own the port and keep agent, server and engine running")
    _add_place(supervise)
    supervise.add_argument("--host", required=True, help="address to listen on")
    supervise.add_argument("--port", required=True, type=_port, help="TCP port; 0 lets the kernel choose")

    agent = commands.add_parser("agent", help="bring the mailbox's current release up and watch it")
    place = agent.add_mutually_exclusive_group(required=True)
    place.add_argument("--state", type=Path, help="the machine folder; needs --mailbox")
    place.add_argument("--vm", type=Path, help="vm.json of a cloud's VM")
    agent.add_argument("--mailbox", type=Path, help="the mailbox folder, with --state")

    install = commands.add_parser("install", help="make this VM one of deployctl's, and start its agent")
    install.add_argument("--vm", type=Path, default=VM_FILE, help="vm.json of a cloud's VM")

    server = commands.add_parser("server", help="the OpenAI API, on the socket of LISTEN_FDS or of deployment.json")
    _add_release(server)
    server.add_argument("--keys", required=True, type=Path, help="keys.json")
    server.add_argument("--status", required=True, type=Path, help="status.json")
    server.add_argument("--tls", type=Path, help="folder of certificate.pem and key.pem, unless tls is off")

    engine = commands.add_parser("engine", help="the process that owns the model")
    _add_release(engine)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses and runs one command; each module is imported only where it is used."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command == "agent" and (args.state is None) != (args.mailbox is None):
        parser.error("agent: --state and --mailbox go together")
    match args.command:
        case "supervise":
            from runtime.agent import supervisor

            return supervisor.run(args.state, args.mailbox, args.host, args.port)
        case "agent":
            from runtime.agent import main as agent

            return agent.run_vm(args.vm) if args.vm is not None else agent.run(args.state, args.mailbox)
        case "install":
            from runtime.agent import install

            return install.run(args.vm)
        case "server":
            from runtime.server import main as server

            return server.run(args.release.resolve(), args.run, args.keys, args.status, args.tls)
        case _:
            if is_busy(os.getloadavg()[0], len(os.sched_getaffinity(0))):
                os.environ.setdefault("GOMP_SPINCOUNT", "1000")
            from runtime.engine import main as engine

            return engine.run(args.release.resolve(), args.run)


def is_busy(load: float, cores: int) -> bool:
    """Others want the cores too: OpenMP's waiting threads must give theirs up soon.

    OpenMP reads GOMP_SPINCOUNT when torch is loaded. Its default, some 17 ms of spinning, measured up to a fifth faster
    on an idle machine, and a decode step five times slower on one that others keep busy (docs/benchmarks).
    """
    return load > cores


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", required=True, type=Path, help="the machine folder")
    parser.add_argument("--mailbox", required=True, type=Path, help="the mailbox folder")


def _add_release(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--release", required=True, type=Path, help="folder of the release")
    parser.add_argument("--run", required=True, type=Path, help="folder of the unix sockets")


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not a port; valid are 0 to 65535")
    return port


if __name__ == "__main__":
    sys.exit(main())
