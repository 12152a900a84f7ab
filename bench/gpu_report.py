"""From what was measured on a GPU to one page: goals, limits, ratios. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from bench.gpu_models import Shape
from bench.gpu_runs import EngineRun, GpuLimits, Load, PeerRun
from bench.machine import Machine
from runtime import sizing
from runtime.model_spec import ModelSpec

GIB = 2**30
# What the project wants to reach on one H100 in bfloat16.
SINGLE_GOAL, STREAMS_GOAL, PREFILL_GOAL, START_GOAL_S, MEMORY_GOAL = 0.8, 3.0, 0.6, 30.0, 0.05


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """One run of pytest."""

    name: str
    passed: bool
    summary: str


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model. None = not measured."""

    shape: Shape
    engine: EngineRun | None
    peer: PeerRun | None


@dataclass(frozen=True, slots=True)
class Report:
    """All that a run found. `problems`: what should have been measured and was not, and why."""

    date: str
    command: str
    machine: Machine
    versions: dict[str, str]
    dtype: str
    load: Load
    limits: GpuLimits | None
    tests: list[SuiteRun]
    models: list[ModelResult]
    problems: list[str]


# ---- limits ----


def active_layer_weights(spec: ModelSpec) -> int:
    """Weights of all layers that one token meets: of the experts, those that it is routed to."""
    mlp = sizing.mlp_elements(spec)
    if spec.moe is not None:
        mlp = mlp * spec.moe.top_k // spec.moe.num_experts
    return spec.num_layers * (sum(sizing.attention_elements(spec)) + mlp + sizing.router_elements(spec))


def decode_limit(shape: Shape, limits: GpuLimits, context: float, dtype: str) -> float:
    """Tokens/s of one stream that no engine can pass: each step reads the active weights, the head and the KV cache
    of `context` tokens once (roofline: Williams et al., 2009)."""
    spec = shape.spec
    width = sizing.element_bytes(dtype)
    layers = active_layer_weights(spec) * (1 if shape.quantization == "fp8" else width)
    head = spec.vocab_size * spec.hidden_size * width
    return limits.read_gb_s * 1e9 / (layers + head + context * sizing.kv_bytes_per_token(spec, dtype=dtype))


def prefill_flop_s(shape: Shape, tokens: int, tokens_s: float) -> float:
    """Additions and multiplications/s of a prompt of `tokens` tokens: 2 for each active weight, and 4·N·D for each key
    that a token sees, on average half of the prompt. The head runs for one token only and is not counted."""
    spec = shape.spec
    attention = 4 * spec.num_layers * spec.q_size * tokens / 2
    return tokens_s * (2 * active_layer_weights(spec) + attention)


# ---- the page ----


def markdown(report: Report) -> str:
    limits, machine = report.limits, report.machine
    measured = (
        f"{limits.read_gb_s} GB/s memory, {limits.matmul_tflop_s} TFLOP/s matmul, {limits.memory_gib} GiB"
        if limits
        else "not measured"
    )
    tests = "\n".join(
        f"- {test.name}: {'passed' if test.passed else '**FAILED**'} ({test.summary})" for test in report.tests
    )
    problems = "\n".join(f"- {line}" for line in report.problems)
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    peers = {f"transformers {result.peer.version} ({result.peer.attention})" for result in report.models if result.peer}
    load = report.load
    return f"""# {limits.device if limits else "GPU"}, {report.date}

Models of real shapes with random weights, in {report.dtype} but where the name says otherwise.
One stream: {load.prompt} tokens in, {load.single_output} out.
{load.streams} streams: {load.prompt} in, {load.output} out, all submitted at once, prompts included.
Prefill: one prompt of {load.long_prompt} tokens.
Greedy; medians of {load.repetitions} after one warm-up.

{_table([HEAD, *(_cells(result, report) for result in report.models)])}

Goals, on an H100: one stream {SINGLE_GOAL:.0%} of the limit, streams {STREAMS_GOAL:.0f}× transformers,
prefill {PREFILL_GOAL:.0%} of the matmul peak, start {START_GOAL_S:.0f} s, memory within {MEMORY_GOAL:.0%}.
A star marks what missed its goal.

- Limits, measured just before: {measured}.
- Peer: {", ".join(sorted(peers)) or "not measured"}, continuous batching, the same prompts;
  its start-up is not counted.
- Start: from the start of the process to the first token, kernels compiled and CUDA graphs captured; weights are made,
  not read from a disk.
- Memory, GiB, predicted / measured: of the weights, and of all but the KV pool (CUDA's own, graphs, activations too).
- Machine: {machine.cpu}, {machine.cores} cores; {machine.system}. {versions}; commit {machine.commit}.
- Command: `{report.command}`.

## Tests

{tests or "Not run."}

## What could not be measured

{problems or "Nothing."}
"""


HEAD = (
    *(
        "model",
        "ops",
        "1 stream tok/s",
        "of limit",
        "streams tok/s",
        "× transformers",
        "prefill tok/s",
        "of matmul peak",
    ),
    *("start s", "weights", "all but KV", "KV blocks"),
)


def _cells(result: ModelResult, report: Report) -> tuple[str, ...]:
    run, shape, load, limits = result.engine, result.shape, report.load, report.limits
    if run is None:
        return (shape.name, *["–"] * (len(HEAD) - 1))
    single = prefill = None
    if limits is not None:
        context = load.prompt + load.single_output / 2
        single = run.single_tokens_s / decode_limit(shape, limits, context, report.dtype)
        prefill = prefill_flop_s(shape, load.long_prompt, run.prefill_tokens_s) / (limits.matmul_tflop_s * 1e12)
    everything = None if run.rest_bytes is None else run.weights_bytes + run.rest_bytes
    ratio = run.streams_tokens_s / result.peer.streams_tokens_s if result.peer else None
    return (
        shape.name,
        run.ops,
        f"{run.single_tokens_s:.1f}",
        _judged(single, SINGLE_GOAL, ".0%"),
        f"{run.streams_tokens_s:.0f}",
        _judged(ratio, STREAMS_GOAL, ".2f"),
        f"{run.prefill_tokens_s:.0f}",
        _judged(prefill, PREFILL_GOAL, ".0%"),
        f"{run.start_s:.1f}{'*' if run.start_s > START_GOAL_S else ''}",
        _memory(run.predicted_weights_bytes, run.weights_bytes),
        _memory(run.predicted_weights_bytes + run.predicted_rest_bytes, everything),
        str(run.kv_blocks),
    )


def _judged(value: float | None, goal: float, form: str) -> str:
    if value is None:
        return "–"
    return format(value, form) + ("*" if value < goal else "")


def _memory(predicted: int, measured: int | None) -> str:
    if not measured:
        return f"{predicted / GIB:.2f} / –"
    far = abs(predicted / measured - 1) > MEMORY_GOAL
    return f"{predicted / GIB:.2f} / {measured / GIB:.2f}{'*' if far else ''}"


def _table(lines: list[tuple[str, ...]]) -> str:
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    rows.insert(1, "|---|---|" + "--:|" * (len(HEAD) - 2))
    return "\n".join(rows)
