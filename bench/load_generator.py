"""`vllm bench serve`, loaded once for many runs: run by the peer's own Python.

Each line of stdin is {"key": …, "words": […]}: the endpoint's API key and the arguments of one run. Each line of stdout
says that a run has ended. A run that fails ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser


def run() -> None:
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ["OPENAI_API_KEY"] = asked["key"]
        with contextlib.redirect_stdout(sys.stderr):
            main(parser.parse_args(asked["words"]))
        print("ended", flush=True)


if __name__ == "__main__":
    run()
