"""transformers and llama.cpp on the same work: each in a process of its own, before any server is up.

    python -m bench.others MODEL BATCH REPETITIONS      one run of transformers, as JSON

transformers runs `generate` in fp32 on the same folder. llama.cpp is built from source by pip into its own environment,
and reads the GGUF file that the demo model was converted from, rewritten by its own quantizer as f32, bf16 and q8_0.
Neither has a server, a tokenizer or a client in its time; ours, in the table beside them, has all three.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.load import OUTPUT_TOKENS, PROMPT_TOKENS
from bench.output import ROOT
from bench.peer import default_folder
from bench.report import FP32, INT8, Other
from bench.servers import BenchError, tail_of
from runtime.demo_model import gguf_path

VERSION = "0.3.36"  # of llama-cpp-python
REPETITIONS = 3
BATCHES = (1, 8)  # of transformers
RUN_TIMEOUT_S = 240
SIGILL = -4
# Its bf16 and q8_0 round the activations too: bf16 is less precise than our fp32, q8_0 has scales for every 32 numbers.
FORMATS = {"f32": FP32, "bf16": FP32, "q8_0": INT8}


def llama_folder() -> Path:
    return default_folder().parent / f"llama-cpp-{VERSION}"


def make_llama(folder: Path) -> None:
    """llama.cpp with the compiler's -march=native: some minutes; nothing when it is there."""
    if (folder / "bin" / "python").exists() and any(
        folder.glob("lib/python3*/site-packages/llama_cpp/lib/libllama.so")
    ):
        return
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"llama-cpp-python=={VERSION}"],
    ):
        print("+", *command, file=sys.stderr)
        subprocess.run(command, check=True, stdout=sys.stderr)


def measure_others(model: Path, llama: Path, repetitions: int = REPETITIONS) -> tuple[list[Other], list[str]]:
    """What was measured, and why the rest was not: one that fails costs the others nothing."""
    tries = [
        *(partial(run_in_transformers, model, batch, repetitions) for batch in BATCHES),
        *(partial(run_in_llama, llama, form, repetitions) for form in FORMATS),
    ]
    found, problems = [], []
    for attempt in tries:
        try:
            found.append(attempt())
        except BenchError as error:
            problems.append(str(error))
    return found, problems


def run_in_transformers(model: Path, batch: int, repetitions: int) -> Other:
    """Raises BenchError with the end of what the process wrote."""
    command = [sys.executable, "-m", "bench.others", str(model), str(batch), str(repetitions)]
    times = json.loads(_run(f"transformers, {batch} together", command).stdout)
    return _other("transformers fp32", FP32, batch, times)


def run_in_llama(llama: Path, form: str, repetitions: int) -> Other:
    """Raises BenchError with the end of what the process wrote."""
    try:
        source = gguf_path()
    except FileNotFoundError as error:
        raise BenchError(f"llama.cpp {form} needs the demo model's GGUF file: {error}") from None
    threads = len(os.sched_getaffinity(0))
    command = [str(llama / "bin" / "python"), str(Path(__file__).with_name("llama_run.py")), str(source), form]
    numbers = [str(number) for number in (repetitions, threads, PROMPT_TOKENS, OUTPUT_TOKENS)]
    done, note = _run(f"llama.cpp {form}", [*command, "own", *numbers], may_end_with=SIGILL), ""
    if done.returncode == SIGILL:
        done = _run(f"llama.cpp {form}", [*command, "plain", *numbers])
        note = "its own layout of weights (AMX) ended with SIGILL on this machine, so it ran without"
    return _other(f"llama.cpp {form}", FORMATS[form], 1, json.loads(done.stdout)["times"], note)


def _other(name: str, beside: str, batch: int, times: list[list[float]], note: str = "") -> Other:
    """`times`: (seconds to the first token, seconds of all) of each repetition."""
    return Other(
        name=name,
        beside=beside,
        batch=batch,
        output_tokens_s=batch * OUTPUT_TOKENS / statistics.median(total for _, total in times),
        ttft_ms=1000 * statistics.median(first for first, _ in times),
        note=note,
    )


def _run(name: str, command: list[str], may_end_with: int = 0) -> subprocess.CompletedProcess[str]:
    try:
        # A folder of its own for temporary files: a process that is killed leaves a whole model there.
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "TMPDIR": folder},
                capture_output=True,
                text=True,
                timeout=RUN_TIMEOUT_S,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name}: not finished in {RUN_TIMEOUT_S} s") from None
    if done.returncode not in (0, may_end_with):
        raise BenchError(f"{name}: ended with {done.returncode}: {tail_of(done.stderr)}")
    return done


def run_transformers(model: Path, batch: int, repetitions: int) -> list[tuple[float, float]]:
    """Greedy `generate` with random prompts: (seconds to the first token, seconds of all); one run before warms up."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    decoder = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    random = torch.Generator().manual_seed(0)
    times = []
    for repetition in range(-1, repetitions):
        shape = (batch, PROMPT_TOKENS)
        prompts = torch.randint(3, decoder.config.vocab_size, shape, generator=random)
        taken = []
        for tokens in (1, OUTPUT_TOKENS):
            began = time.perf_counter()
            decoder.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
            taken.append(time.perf_counter() - began)
        if repetition >= 0:
            times.append((taken[0], taken[1]))
    return times


if __name__ == "__main__":
    print(json.dumps(run_transformers(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
