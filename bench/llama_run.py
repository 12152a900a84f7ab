"""llama.cpp on the demo model, one stream: run by a Python that has llama-cpp-python (`bench.others` makes it).

    python llama_run.py SOURCE.gguf f32|bf16|q8_0 own|plain REPETITIONS THREADS PROMPT OUTPUT

"own" lets llama.cpp rearrange weights for AMX and the like, as it does by itself; "plain" does not. Prints
{"times": [[seconds to the first token, seconds of all], …], "bytes": of the written file}. SOURCE is the file that our
demo model was converted from; llama.cpp's own quantizer writes its weights again, all of them in the asked format.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import time
from pathlib import Path

import llama_cpp
import numpy as np

FORMATS = {"f32": 0, "bf16": 32, "q8_0": 7}  # enum llama_ftype
CONTEXT = 2048  # tokens, as for the servers


def convert(source: Path, target: Path, form: str) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FORMATS[form]
    parameters.allow_requantize = True  # from the 4 bits of SOURCE
    parameters.pure = True  # the embedding too, which is the head
    status = llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters))
    if status:
        sys.exit(f"error: llama.cpp could not write {source.name} as {form} (status {status})")


class Engine:
    """One context of llama.cpp, below its Python class: no sampler, no detokenizing, greedy."""

    def __init__(self, path: Path, threads: int, layout: str) -> None:
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.use_extra_bufts = layout == "own"
        self.model = llama_cpp.llama_model_load_from_file(bytes(path), options)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = CONTEXT
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if self.context is None:
            sys.exit(f"error: llama.cpp could not load {path.name}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def run(self, prompt: list[int], output: int) -> tuple[float, float]:
        """(seconds to the first token, seconds of all)."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        began = time.perf_counter()
        token = self._step(prompt)
        first_s = time.perf_counter() - began
        for _ in range(output - 1):
            token = self._step([token])
        return first_s, time.perf_counter() - began

    def _step(self, tokens: list[int]) -> int:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            sys.exit("error: llama.cpp could not run a step")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.vocabulary,))))


def main(argv: list[str]) -> None:
    source, form, layout = Path(argv[0]), argv[1], argv[2]
    repetitions, threads, prompt, output = map(int, argv[3:])
    with tempfile.TemporaryDirectory(prefix="llama-") as folder:
        path = Path(folder) / f"{form}.gguf"
        convert(source, path, form)
        size = path.stat().st_size
        engine = Engine(path, threads, layout)
        rng = np.random.default_rng(0)
        prompts = [rng.integers(engine.vocabulary, size=prompt).tolist() for _ in range(repetitions + 1)]
        times = [engine.run(one, output) for one in prompts][1:]  # the first warms up
    print(json.dumps({"times": times, "bytes": size}))


if __name__ == "__main__":
    main(sys.argv[1:])
