"""Compiles every Triton kernel that an op launches for NVIDIA GPUs that are not here, instead of launching it.

    python -m tests.lab.kernel_compiler 80 90

prints one line for each kernel, dtype and GPU: `attention bfloat16 90 _decode_kernel 38912` (bytes of shared memory).
The compiler needs no GPU and no driver; it must not be in interpreter mode.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from runtime.ops import fp8
from runtime.ops.fp8 import Fp8Math
from runtime.ops.gpu import gpu_ops
from runtime.ops.ops import REFERENCE
from tests.lab.batches import make_batch

TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64",
    torch.uint8: "u8", fp8.DTYPE: "fp8e4nv",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")


def compile_kernel(kernel: JITFunction, arguments: tuple[object, ...], keywords: dict[str, object], target: int) -> int:
    """Bytes of shared memory of one program, on a GPU of compute capability `target`."""
    options = {name: keywords[name] for name in OPTIONS if name in keywords}
    given = kernel.signature.bind(*arguments, **{k: v for k, v in keywords.items() if k not in OPTIONS}).arguments
    signature, constants, alignment = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            alignment[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize:
                alignment[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=alignment)
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return int(compiled.metadata.shared)


def run_ops(dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> Iterator[str]:
    """Every op once on the shapes of one layer; the name of each before it runs."""
    ops = gpu_ops(REFERENCE, dtype)
    for rows in ([(1, 40), (1, 5)], [(1, 40), (7, 7)]):
        batch, blocks = make_batch(rows, 16)
        tokens = len(batch.tokens)
        x, weight = torch.zeros(tokens, heads * dim, dtype=dtype), torch.zeros(heads * dim, dtype=dtype)
        cache = torch.zeros(2, blocks, 16, kv_heads, dim, dtype=dtype)
        qkv = torch.zeros(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
        norms = (torch.zeros(dim, dtype=dtype), torch.zeros(dim, dtype=dtype))
        yield "attention"
        ops.attention(torch.zeros(tokens, heads, dim, dtype=dtype), cache, batch, 0.1)
        yield "norm"
        ops.rms_norm(x, weight, 1e-6)
        ops.add_rms_norm(x, x, weight, 1e-6)
        yield "silu"
        ops.silu_mul(x)
        yield "rope"
        ops.rope_write(qkv, norms, 1e-6, torch.zeros(64, dim), cache, batch)
        ops.rope_write(qkv, None, 1e-6, torch.zeros(64, dim), cache, batch)


def run_matmuls(dtype: torch.dtype, math: Fp8Math | None) -> Iterator[str]:
    """Linear layers in fp8 and experts, for few and for many tokens; the name of each before it runs."""
    ops, hidden, inner, experts = gpu_ops(REFERENCE, dtype, math), 1024, 384, 16
    keep = fp8.quantize if math else torch.clone
    gate_up, down = (
        torch.zeros(experts, 2 * inner, hidden, dtype=dtype),
        torch.zeros(experts, hidden, inner, dtype=dtype),
    )
    for tokens in (2, 60, 110, 2000):
        x = torch.zeros(tokens, hidden, dtype=dtype)
        yield f"linear-{math}"
        ops.pack_linear(keep(gate_up[0]), None)(x)
        yield f"experts-{math}"
        routing = ops.route(torch.zeros(tokens, experts, dtype=dtype), 4, True)
        ops.pack_experts(keep(gate_up), keep(down), 0)(x, *routing)


def main(targets: list[int]) -> None:
    done = set()
    where: list[object] = []

    def compile_instead(
        kernel: JITFunction, *arguments: object, grid: object, warmup: bool, **keywords: object
    ) -> None:
        for target in targets:
            if target < 89 and str(where[0]).endswith("w8a8"):
                continue
            shared = compile_kernel(kernel, arguments, keywords, target)
            line = " ".join(map(str, (*where, target, kernel.__name__, shared)))
            if line not in done:
                done.add(line)
                print(line, flush=True)

    JITFunction.run = compile_instead
    for dtype, shape in product((torch.bfloat16, torch.float32), ((28, 4, 128), (9, 3, 64))):
        for name in run_ops(dtype, *shape):
            where[:] = [name, str(dtype).removeprefix("torch.")]
    cases: list[tuple[torch.dtype, Fp8Math | None]] = [(torch.float32, None), (torch.bfloat16, None)]
    for dtype, math in [*cases, (torch.bfloat16, "w8a16"), (torch.bfloat16, "w8a8")]:
        for name in run_matmuls(dtype, math):
            where[:] = [name, str(dtype).removeprefix("torch.")]


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
