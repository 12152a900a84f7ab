"""`python -m tests.chaos`: exits 1 when a promise was broken. `make soak` and `make chaos` run it."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench.machine import describe_machine
from tests.chaos import client
from tests.chaos.machine import ROOT, Machine
from tests.chaos.plan import ask_of
from tests.chaos.report import save, summary
from tests.chaos.soak import Found, Options, Soak
from tests.chaos.verdict import Trouble, WrongError, judge

SHORT_REQUESTS = 4000  # of the form that CI runs
SHORT_FAULTS = 4
SHORT_AGAIN = 80


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    # As Ctrl-C does: the machine is in a session of its own and would outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = options_of(arguments)
    print(f"seed {options.seed}, {options.requests} requests, {options.faults} faults", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        machine = Machine(Path(folder))
        about = describe_machine(ROOT)
        try:
            machine.start()
            if arguments.only is not None:
                return ask_alone(machine, options.seed, arguments.only)
            found = asyncio.run(Soak(machine, options).run())
        except KeyboardInterrupt:
            return 130
        finally:
            machine.stop()
    text = summary(found, options, about)
    print(text)
    if arguments.out is not None:
        save(found, options, about, arguments.out)
    tell_wrong(found, options.seed)
    return 1 if found.wrong else 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeats a run; without it a new one is drawn and printed")
    parser.add_argument("--requests", type=int, help="default 20000, with --minutes 4000")
    parser.add_argument("--minutes", type=float, help="the short form: ask no longer than so long")
    parser.add_argument("--faults", type=int, help="how often something is broken on purpose")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="ask this request alone and show what comes back")
    parser.add_argument("--out", type=Path, help="folder of the report")
    return parser.parse_args(argv)


def options_of(arguments: argparse.Namespace) -> Options:
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    plain = Options(seed)
    if arguments.minutes is not None:
        plain = Options(seed, SHORT_REQUESTS, SHORT_FAULTS, SHORT_AGAIN, arguments.minutes)
    return Options(
        seed=seed,
        requests=arguments.requests or plain.requests,
        faults=plain.faults if arguments.faults is None else arguments.faults,
        again=plain.again,
        minutes=plain.minutes,
    )


def ask_alone(machine: Machine, seed: int, number: int) -> int:
    ask = ask_of(seed, number)
    seen = asyncio.run(client.send(ask, machine.port))
    print(ask, seen, sep="\n")
    try:
        print(judge(ask, seen, Trouble()))
    except WrongError as error:
        print(f"wrong: {error}")
        return 1
    return 0


def tell_wrong(found: Found, seed: int) -> None:
    for wrong in found.wrong[:20]:
        print(f"wrong: request {wrong.number} ({wrong.kind}): {wrong.what}", file=sys.stderr)
    if len(found.wrong) > 20:
        print(f"and {len(found.wrong) - 20} more", file=sys.stderr)
    if found.wrong:
        print(f"to repeat: python -m tests.chaos --seed {seed} [--only NUMBER]", file=sys.stderr)


if __name__ == "__main__":
    began = time.monotonic()
    status = main(sys.argv[1:])
    print(f"{time.monotonic() - began:.0f} s in all", file=sys.stderr)
    sys.exit(status)
