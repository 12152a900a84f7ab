"""What a model needs and what a machine gives: pure arithmetic, no torch, no I/O. Sizes in bytes.

Formulas follow the layout that the engine uses (fused weights, paged KV cache) and vLLM's published
procedure for what may be used of a GPU; each docstring names its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.model_spec import ModelSpec

GIB = 1024**3
MIB = 1024**2

BYTES_PER_ELEMENT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
FP8_BLOCK = 128  # weights per side of one scaling block of a block-fp8 checkpoint
# One byte and its share of the float32 scales: of a block in fp8; in int8 of a row, which is next to nothing.
LINEAR_BYTES = {"fp8": 1 + 4 / FP8_BLOCK**2, "int8": 1.0}
TP_SIZES = (1, 2, 3, 4, 6, 8, 16)
VOCAB_PADDING = 64  # rows; the vocabulary is padded to 64 · tp

# Per GPU. Context and libraries are typical values, to be compared with what the engine measures at start.
CUDA_CONTEXT_BYTES = int(0.55 * GIB)
NCCL_BYTES = int(0.5 * GIB)
GRAPH_BYTES = int(0.35 * GIB)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU. `memory_bytes` is what torch reports as total, below the number on the box;
    `capability` is the CUDA compute capability (8, 9)."""

    kind: str
    memory_bytes: int
    capability: tuple[int, int]

    @property
    def has_bf16(self) -> bool:
        """Ampere (8.0) and later (CUDA programming guide, arithmetic per compute capability)."""
        return self.capability >= (8, 0)

    @property
    def has_fp8(self) -> bool:
        """fp8 tensor cores: Ada (8.9) and later. Older GPUs store fp8 weights and compute in 16 bits."""
        return self.capability >= (8, 9)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a deployment runs on. `free_ram_bytes` is what a new process may take now; on a machine that is
    yet to be bought it is the RAM less the system's share."""

    name: str
    ram_bytes: int
    free_ram_bytes: int
    cpus: int
    gpu: Gpu | None = None
    gpu_count: int = 0
    cpu_has_bf16: bool = False  # AMX or AVX-512 BF16
    cpu_has_int8: bool = False  # AVX2 or more: int8 is not slower than float32
    free_disk_bytes: int | None = None  # None = chosen at purchase, or unknown


# ---- the model ----


def attention_elements(model: ModelSpec) -> tuple[int, int]:
    """Weights of one layer's attention that every rank shares out (q, o and biases), and of k and v, which
    are replicated once there are more ranks than KV heads."""
    hidden = model.hidden_size
    shared = 2 * hidden * model.q_size
    shared += model.q_size if model.qkv_bias else 0
    shared += hidden if model.o_bias else 0
    kv = 2 * hidden * model.kv_size + (2 * model.kv_size if model.qkv_bias else 0)
    return shared, kv


def mlp_elements(model: ModelSpec) -> int:
    """Weights of one layer's MLP without the router: gate, up and down, per expert if there are experts."""
    if model.moe is not None:
        return model.moe.num_experts * 3 * model.hidden_size * model.moe.intermediate_size
    biases = 2 * model.intermediate_size + model.hidden_size if model.mlp_bias else 0
    return 3 * model.hidden_size * model.intermediate_size + biases


def router_elements(model: ModelSpec) -> int:
    return model.moe.num_experts * model.hidden_size if model.moe else 0


def norm_elements(model: ModelSpec) -> int:
    """All RMSNorm weights: two per layer, the last one, and q/k norms over head_dim."""
    per_layer = 2 * model.hidden_size + (2 * model.head_dim if model.qk_norm else 0)
    return model.num_layers * per_layer + model.hidden_size


def embedding_elements(model: ModelSpec) -> int:
    return model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)


def parameters(model: ModelSpec) -> int:
    """Number of weights: L(attn + bias + mlp + norms) + final norm + V·H·(1 if tied else 2)."""
    shared, kv = attention_elements(model)
    layer = shared + kv + mlp_elements(model) + router_elements(model)
    return model.num_layers * layer + norm_elements(model) + embedding_elements(model)


def element_bytes(dtype: str) -> float:
    """Raises ValueError for a dtype that the engine does not know."""
    try:
        return BYTES_PER_ELEMENT[dtype]
    except KeyError:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(BYTES_PER_ELEMENT)}") from None


def weights_bytes(model: ModelSpec, *, dtype: str, quantization: str | None = None, tp: int = 1) -> int:
    """Weights on each of `tp` GPUs, in bytes.

    [L(attn_q,o + mlp)/tp + L·kv·max(1, tp/nkv)/tp]·bw + (embeddings/tp + router + norms)·b: linear layers in
    the quantized width bw, the rest in dtype; norms and router replicated (Megatron-style sharding).
    """
    width = element_bytes(dtype)
    linear_width = LINEAR_BYTES.get(quantization or "", width)
    shared, kv = attention_elements(model)
    replicas = max(1.0, tp / model.num_kv_heads)
    linear = model.num_layers * (shared + mlp_elements(model) + kv * replicas) / tp
    rest = embedding_elements(model) / tp + model.num_layers * router_elements(model) + norm_elements(model)
    return math.ceil(linear * linear_width + rest * width)


def checkpoint_bytes(model: ModelSpec) -> int:
    """Size of the published weights, in bytes: what is downloaded and lies on the disk."""
    dtype = model.checkpoint_dtype if model.checkpoint_dtype in BYTES_PER_ELEMENT else "bfloat16"
    return weights_bytes(model, dtype=dtype, quantization=model.quantization)


def cache_dtype(dtype: str, quantization: str | None) -> str:
    """Of the KV cache: that of the activations, but 16 bits beside weights in int8, which lose more."""
    return "bfloat16" if quantization == "int8" else dtype


def kv_bytes_per_token(model: ModelSpec, *, dtype: str, tp: int = 1) -> int:
    """KV cache per token on each GPU: 2·L·max(1, nkv/tp)·d·b (k and v; replicated once tp > nkv)."""
    heads = max(1, model.num_kv_heads // tp)
    return int(2 * model.num_layers * heads * model.head_dim * element_bytes(dtype))


def activation_bytes(model: ModelSpec, *, dtype: str, batched_tokens: int, num_seqs: int, tp: int = 1) -> int:
    """Peak of intermediate tensors in one step, in bytes per GPU.

    T·b·(3H + max(qkv + attention output, gate·up·act) [+ k·H for experts]) + S·V·(b/tp + 10): T tokens in the
    step; S sequences whose logits are taken in dtype and sorted in float32 with indices.
    """
    width = element_bytes(dtype)
    hidden = model.hidden_size
    attention = (model.q_size + 2 * model.kv_size) / tp + model.q_size / tp
    inner = model.moe.intermediate_size * model.moe.top_k if model.moe else model.intermediate_size
    routed = model.moe.top_k * hidden if model.moe else 0
    per_token = 3 * hidden + max(attention, 3 * inner / tp) + routed
    return math.ceil(batched_tokens * width * per_token + num_seqs * model.vocab_size * (width / tp + 10))


# ---- tensor parallel ----


def tp_problem(model: ModelSpec, tp: int, *, quantization: str | None = None) -> str | None:
    """Why the model cannot be cut into `tp` parts, or None when it can.

    Heads and MLP columns must divide; KV heads must divide or be replicated evenly; rows and columns in fp8, here or
    in the checkpoint, must stay whole blocks of 128. Experts whose columns do not divide are shared out whole
    (`expert_sharded`).
    """
    heads, kv_heads = model.num_heads, model.num_kv_heads
    blocks = "fp8" in (quantization, model.quantization) and tp > 1
    if heads % tp:
        return f"{heads} attention heads do not divide by {tp}"
    if kv_heads % tp and tp % kv_heads:
        return f"{kv_heads} KV heads neither divide by {tp} nor into it"
    for name, count in (("", heads // tp), ("KV ", max(1, kv_heads // tp))):
        if blocks and (count * model.head_dim) % FP8_BLOCK:
            return f"{count} {name}heads of {model.head_dim} on each GPU are not whole fp8 blocks of {FP8_BLOCK}"
    if model.moe is not None:
        if tp > model.moe.num_experts:
            return f"{model.moe.num_experts} experts are fewer than {tp} GPUs"
        if expert_sharded(model, tp, quantization=quantization) and model.moe.num_experts % tp:
            return f"{model.moe.num_experts} experts do not divide by {tp}"
        return None
    columns = model.intermediate_size
    if columns % tp:
        return f"intermediate_size {columns} does not divide by {tp}"
    if blocks and (columns // tp) % FP8_BLOCK:
        return f"intermediate_size {columns} / {tp} = {columns // tp} is not whole fp8 blocks of {FP8_BLOCK}"
    return None


def expert_sharded(model: ModelSpec, tp: int, *, quantization: str | None = None) -> bool:
    """True when whole experts, not their columns, are shared out among the ranks: same memory, same
    all-reduce, and valid where the columns of one expert do not make whole blocks."""
    if model.moe is None or tp == 1:
        return False
    columns = model.moe.intermediate_size
    if columns % tp:
        return True
    return "fp8" in (quantization, model.quantization) and (columns // tp) % FP8_BLOCK != 0


def valid_tp_sizes(model: ModelSpec, gpus: int, *, quantization: str | None = None) -> tuple[int, ...]:
    """All valid tensor-parallel sizes up to `gpus`, ascending."""
    return tuple(tp for tp in TP_SIZES if tp <= gpus and tp_problem(model, tp, quantization=quantization) is None)


# ---- memory ----


@dataclass(frozen=True, slots=True)
class Need:
    """What one rank holds, in bytes. `usable` is what it may use in all; `pool` is left for the KV cache
    (negative when the rest does not fit)."""

    usable: int
    weights: int
    activation: int
    fixed: int

    @property
    def pool(self) -> int:
        return self.usable - self.weights - self.activation - self.fixed


def fixed_bytes(tp: int) -> int:
    """CUDA context and libraries, captured graphs, and NCCL's buffers with more than one GPU, per GPU."""
    return CUDA_CONTEXT_BYTES + GRAPH_BYTES + (NCCL_BYTES if tp > 1 else 0)


def kv_blocks(pool: int, kv_bytes: int, block_size: int) -> int:
    """Whole blocks of `block_size` tokens in `pool` bytes."""
    return max(0, pool // (block_size * kv_bytes))


def blocks_per_request(max_model_len: int, block_size: int) -> int:
    return math.ceil(max_model_len / block_size)


def concurrency(blocks: int, max_model_len: int, block_size: int) -> float:
    """How many requests of full length the blocks hold (vLLM's "maximum concurrency")."""
    return blocks / blocks_per_request(max_model_len, block_size)


# ---- rules of the hardware ----


class DtypeError(ValueError):
    """The dtype or quantization cannot run there. `nearest` is one that can."""

    def __init__(self, reason: str, nearest: str) -> None:
        super().__init__(reason)
        self.nearest = nearest


def choose_dtype(asked: str, model: ModelSpec, machine: Machine) -> str:
    """The dtype of math and KV cache. "auto": float32 on CPUs; on GPUs the checkpoint's, bfloat16 only from
    Ampere on. Raises DtypeError."""
    gpu = machine.gpu
    if gpu is None:
        if asked in ("auto", "float32"):
            return "float32"
        if asked == "bfloat16" and machine.cpu_has_bf16:
            return "bfloat16"
        if asked == "bfloat16":
            raise DtypeError("this CPU has no bfloat16 units (AMX or AVX-512 BF16): it would be slower", "float32")
        raise DtypeError(f"{asked} is not computed on CPUs", "float32")
    if asked == "bfloat16" and not gpu.has_bf16:
        raise DtypeError(f"{gpu.kind} (compute capability {_dotted(gpu)}) has no bfloat16; 8.0 has", "float16")
    if asked != "auto":
        return asked
    if model.checkpoint_dtype == "float16" or not gpu.has_bf16:
        return "float16"
    return "bfloat16"


def choose_quantization(asked: str, model: ModelSpec, machine: Machine, dtype: str) -> str | None:
    """What the matrices of the layers are kept in: "fp8", "int8", or None for `dtype`, to which an fp8 checkpoint is
    then unpacked at load.

    "auto": as the checkpoint on GPUs; on CPUs int8 beside float32 where there are units for it. "fp8" and "int8"
    quantize a checkpoint that is not. Raises DtypeError.
    """
    own, on_cpu = model.quantization, machine.gpu is None
    if own not in (None, "fp8"):
        raise DtypeError(f"the checkpoint is quantized with {own}, which is not supported", "one in fp8 or 16 bits")
    if asked == "auto":
        return ("int8" if machine.cpu_has_int8 and dtype == "float32" else None) if on_cpu else own
    if asked == "fp8" and on_cpu:
        raise DtypeError("fp8 weights need a GPU", "auto")
    if asked == "int8" and not on_cpu:
        raise DtypeError("int8 weights are for CPUs", "fp8")
    if asked == "int8" and dtype != "float32":
        raise DtypeError(f"int8 is computed beside float32, not {dtype}", "none")
    return None if asked == "none" else asked


def _dotted(gpu: Gpu) -> str:
    return f"{gpu.capability[0]}.{gpu.capability[1]}"


# ---- the step's budget, host RAM, disk ----

LARGE_GPU_BYTES = 40 * GIB
CPU_BATCHED_TOKENS = 512
CPU_MAX_SEQS = 64
CPU_POOL_SHARE = 0.25
CPU_POOL_MAX_BYTES = 4 * GIB
CPU_PROCESS_BYTES = int(0.75 * GIB)  # engine with torch, and server
GPU_HOST_BASE_BYTES = 3 * GIB  # system, agent, server
GPU_HOST_RANK_BYTES = 2 * GIB  # one rank: torch, CUDA's host side


def step_budget(machine: Machine) -> tuple[int, int]:
    """(tokens, sequences) of one step: 2048 and 64 on small GPUs, 8192 and 256 from 40 GiB on (vLLM's
    defaults by class of GPU); 512 and 64 on CPUs, where a step must stay under about a second."""
    if machine.gpu is None:
        return CPU_BATCHED_TOKENS, CPU_MAX_SEQS
    return (8192, 256) if machine.gpu.memory_bytes >= LARGE_GPU_BYTES else (2048, 64)


def largest_tensor_bytes(model: ModelSpec) -> int:
    """The largest tensor of the checkpoint, in bytes: loading holds no more than this beside the model."""
    inner = model.moe.intermediate_size if model.moe else model.intermediate_size
    elements = max(model.vocab_size, inner, model.q_size) * model.hidden_size
    return int(elements * BYTES_PER_ELEMENT.get(model.checkpoint_dtype, 2.0))


def gpu_host_ram_bytes(model: ModelSpec, tp: int) -> int:
    """Host RAM that a GPU machine needs: weights are streamed one tensor at a time, so that it is
    the processes and two copies of the largest tensor, not the model."""
    return GPU_HOST_BASE_BYTES + tp * (GPU_HOST_RANK_BYTES + 2 * largest_tensor_bytes(model))


def cpu_pool_bytes(free_bytes: int, asked: int | None) -> int:
    """KV pool on a CPU: what was asked for, else a quarter of the RAM that is free once the model is loaded,
    and at most 4 GiB. The engine measures the same at start."""
    return asked if asked is not None else max(0, min(int(free_bytes * CPU_POOL_SHARE), CPU_POOL_MAX_BYTES))


def cpu_weights_bytes(model: ModelSpec, *, dtype: str, quantization: str | None = None) -> int:
    """Weights in RAM, at most: the layers, the embeddings as a table in dtype, and the output layer, packed, even if it
    is tied to the table; in int8 it is quantized as the layers are. In float32, what bfloat16 holds exactly takes half:
    the table always, the rest where there is a compiler for the kernels."""
    width, vocabulary = element_bytes(dtype), model.vocab_size * model.hidden_size
    layers = weights_bytes(model, dtype=dtype, quantization=quantization) - embedding_elements(model) * width
    head_width = LINEAR_BYTES["int8"] if quantization == "int8" else width
    return math.ceil(layers + vocabulary * (width + head_width))


def disk_bytes(model: ModelSpec, *, system: int) -> int:
    """Disk for system and runtime (`system`), the weights and 5 % for files beside them, and 10 GiB free."""
    return system + int(checkpoint_bytes(model) * 1.05) + 10 * GIB
