"""What int8 costs in quality: `python -m bench.quality [FOLDER]`: perplexity, and how often the best token is another.

The text is this repository's own documentation, docs/*.md one after another; the first 8,192 tokens, in windows of 512
that know nothing of each other. The engine's own decoder and kernels compute the logits of every position, in fp32 and
in int8.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench.demo_model import demo_model
from bench.machine import Machine, describe_machine, our_versions
from bench.output import RESULTS, ROOT, command_line, save, say, today
from runtime.model.checkpoint import Checkpoint, read_model_spec
from runtime.model.decoder import Decoder, load_decoder
from runtime.ops.batch import Batch
from runtime.ops.ops import choose

TOKENS, WINDOW, BLOCK = 8192, 512, 16
GOAL = 0.01  # of perplexity: below it, `plan` proposes int8 by default on a CPU
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Quality:
    """`loss`: of perplexity, as a share of fp32's; `error` is its standard error, from the differences at each token.
    `agreement`: the share of positions whose most probable token is that of fp32."""

    configuration: str
    perplexity: float
    loss: float
    error: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that a run found; what its JSON file holds."""

    date: str
    command: str
    machine: Machine
    versions: dict[str, str]
    model: str
    text: str
    positions: int
    found: list[Quality]


@torch.inference_mode()
def main(argv: list[str]) -> int:
    options = parse(argv)
    folder = options.model or demo_model()
    windows = read_windows(folder, options.text, options.tokens)
    report = Report(
        date=today(),
        command=command_line("bench.quality", argv),
        machine=describe_machine(ROOT),
        versions=our_versions(),
        model="SmolLM2-135M-Instruct (demo)" if options.model is None else options.name or folder.name,
        text="docs/*.md" if options.text is None else ", ".join(path.name for path in options.text),
        positions=sum(len(window) for window in windows),
        found=measure(folder, windows),
    )
    save(options.out, f"{report.date}-quality", markdown(report), asdict(report))
    print(table(report.found))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--model", type=Path, help="converted model folder; default: the demo model")
    parser.add_argument("--name", help="what the page calls the model")
    parser.add_argument("--text", type=Path, nargs="+", help="files; default: docs/*.md")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    return parser.parse_args(argv)


def read_windows(folder: Path, files: list[Path] | None, tokens: int) -> list[Tensor]:
    """The text's first tokens, in windows; one of a single token, which predicts nothing, is left out."""
    text = "\n".join(path.read_text() for path in files or sorted((ROOT / "docs").glob("*.md")))
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    starts = range(0, min(tokens, len(ids)) - 1, WINDOW)
    return [torch.tensor(ids[start : min(start + WINDOW, tokens)]) for start in starts]


def measure(folder: Path, windows: list[Tensor]) -> list[Quality]:
    """fp32, then int8."""
    first: tuple[Tensor, Tensor] | None = None
    found = []
    for name, quantization in (("fp32", None), ("int8", "int8")):
        say(name)
        losses, chosen = _score(_load(folder, quantization), windows)
        first = first or (losses, chosen)
        found.append(compare(name, losses, chosen, *first))
    return found


def compare(name: str, losses: Tensor, chosen: Tensor, exact_losses: Tensor, exact_chosen: Tensor) -> Quality:
    """`losses` [N]: negative log likelihoods, in the order of the text; `chosen`: the best tokens."""
    more = (losses - exact_losses).double()
    return Quality(
        configuration=name,
        perplexity=math.exp(losses.double().mean().item()),
        loss=math.expm1(more.mean().item()),
        error=more.std().item() / math.sqrt(len(more)),
        agreement=(chosen == exact_chosen).double().mean().item(),
    )


def _load(folder: Path, quantization: str | None) -> Decoder:
    return load_decoder(
        read_model_spec(folder),
        Checkpoint(folder),
        choose(CPU, torch.float32, quantization),
        device=CPU,
        dtype=torch.float32,
        max_model_len=WINDOW,
    )


def _score(model: Decoder, windows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """For all windows: the negative log likelihood of every token but its first, and the best token everywhere."""
    spec = model.spec
    shape = (2, WINDOW // BLOCK + 1, BLOCK, model.num_kv_heads, spec.head_dim)
    caches = [torch.zeros(shape, dtype=model.ops.cache_dtype) for _ in range(spec.num_layers)]
    losses, chosen = [], []
    for window in windows:
        logits = model.forward(whole(window), caches)
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], window[1:], reduction="none"))
        chosen.append(logits.argmax(-1))
    return torch.cat(losses), torch.cat(chosen)


def whole(tokens: Tensor) -> Batch:
    """One prompt that asks for the logits of each of its tokens; its blocks are those after the padding block."""
    count = len(tokens)
    numbers = torch.arange(count)
    return Batch(
        tokens=tokens,
        positions=numbers,
        slots=numbers + BLOCK,
        starts=torch.tensor([0, count], dtype=torch.int32),
        contexts=torch.tensor([count], dtype=torch.int32),
        tables=torch.arange(1, 1 - (-count // BLOCK), dtype=torch.int32)[None],
        samples=numbers,
        rows=((count, count),),
    )


def table(found: list[Quality]) -> str:
    lines = ["| configuration | perplexity | beside fp32 | same best token |", "| --- " * 4 + "|"]
    lines += [
        f"| {one.configuration} | {one.perplexity:.2f} | {100 * one.loss:+.2f} % ± {100 * one.error:.2f} "
        f"| {100 * one.agreement:.1f} % |"
        for one in found
    ]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    verdict = "below" if report.found[1].loss < GOAL else "not below"
    return f"""# What int8 costs in quality, {report.date}

{report.model}; {report.positions:,} tokens of this repository's {report.text} as of the commit below,
in windows of {WINDOW} tokens that know nothing of each other. ± is the standard error. "Same best token":
the share of positions, each after the text's own tokens, where the most probable next token is that of fp32; it is what
greedy decoding would choose there.

{table(report.found)}

The loss of int8 is {verdict} {100 * GOAL:.0f} % of perplexity. Load of the machine does not change
these numbers; its kernels can, by rounding.

- Machine: {report.machine.cpu}; {report.machine.system}.
- Versions: {versions}; commit {report.machine.commit}.
- Command: `{report.command}`.
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
