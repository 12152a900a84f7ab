"""Runs a Pulumi program as Pulumi's Python language host does: settings from flags and environment, then the folder.

python program_host.py --project p --stack s --root . --monitor host:port --engine host:port --dry-run true PROGRAM
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import logging
import os
import runpy
import sys
import traceback

import pulumi
import pulumi.runtime

PARALLEL = 16


def main(argv: list[str]) -> int:
    """The exit status of the program that `argv` names."""
    arguments = _parse(argv)
    pulumi.runtime.set_all_config(pulumi.runtime.get_config_env(), pulumi.runtime.get_config_secret_keys_env())
    pulumi.runtime.configure(
        pulumi.runtime.Settings(
            project=arguments.project,
            stack=arguments.stack,
            organization="organization",
            root_directory=arguments.root,
            monitor=arguments.monitor,
            engine=arguments.engine,
            dry_run=arguments.dry_run == "true",
            parallel=PARALLEL,
        )
    )
    sys.argv = [arguments.program]
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(PARALLEL))
    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(lambda: _run(arguments.program)))
    except pulumi.RunError as error:  # the program's own words: no traceback
        pulumi.log.error(str(error))
        return 1
    except Exception:
        pulumi.log.error(traceback.format_exc())
        return 1
    return 0


def run() -> int:
    """`main` with this process's own arguments."""
    return main(sys.argv[1:])


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for flag in ("--project", "--stack", "--root", "--monitor", "--engine", "--dry-run"):
        parser.add_argument(flag, required=True)
    parser.add_argument("program")
    return parser.parse_args(argv)


def _run(program: str) -> None:
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of gRPC would keep the process alive
