"""The plan: what sizing derives from spec, model and machine. Pure: nothing is read, started or written.

plan = plan_deployment(spec, model_spec_for(spec), detect_local())
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from provision import catalog
from provision.advice import advise
from provision.catalog import InstanceType
from provision.costs import Cost, download_seconds, estimate_cost
from provision.spec import DeploymentSpec, Problem
from runtime import sizing
from runtime.deployment import EngineOptions, Predicted
from runtime.model_spec import ModelSpec
from runtime.sizing import GIB, Machine

BLOCK_SIZE = 16  # tokens per KV block
PADDING_BLOCKS = 1  # the engine keeps block 0 for padding
MEASURE_MARGIN = 0.9  # of the predicted cache, where the engine will measure its own
LEN_STEP = 256  # tokens; a chosen context is a multiple
MAX_LEN_CAP = 32768  # tokens; the context that is chosen when nobody asks for one
MIN_LEN = 2048  # tokens; below this a chosen context is of no use
COMFORT_LEN = 8192  # tokens that a type must hold to be chosen by itself
# Image with driver 50, environment with CUDA's libraries 20, a redeploy's second one and pip's cache 10, logs 10.
CLOUD_SYSTEM_BYTES = 90 * GIB
LOCAL_SYSTEM_BYTES = 1 * GIB
MIN_CLOUD_DISK_GIB = 100
MAX_ALTERNATIVES = 3


@dataclass(frozen=True, slots=True)
class Alternative:
    """An instance type that fits, with `concurrency` requests of `max_model_len` tokens.

    `usd_per_hour` is the instance's estimate, None = unknown.
    """

    instance_type: str
    gpus: str
    tensor_parallel: int
    concurrency: float
    max_model_len: int
    usd_per_hour: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes in bytes, per GPU where there are GPUs; `concurrency` in requests of `max_model_len` tokens.

    `fits` is False when `reasons` says why not; `warnings` do not stop anything; `notes` say why a value
    was chosen.
    """

    fits: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    cloud: str
    model: str
    machine: Machine
    instance_type: str | None
    device: str  # "cpu" or "cuda"
    dtype: str
    quantization: str | None
    tensor_parallel: int
    max_model_len: int
    max_num_seqs: int
    max_batched_tokens: int
    gpu_memory_utilization: float
    block_size: int
    usable_bytes: int
    weights_bytes: int
    activation_bytes: int
    fixed_bytes: int
    kv_cache_bytes: int
    kv_cache_asked: bool  # the user set its size
    kv_bytes_per_token: int
    kv_blocks: int
    concurrency: float
    host_ram_bytes: int
    download_bytes: int
    download_seconds: float | None  # None = unknown
    disk_gib: int
    rope_scaling: dict[str, str | float | int] | None
    cost: Cost | None
    alternatives: tuple[Alternative, ...] = ()

    def engine_options(self) -> EngineOptions:
        """What the engine is told. The size of the KV cache only where the user set it: else it measures."""
        return EngineOptions(
            dtype=self.dtype,
            device=self.device,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            tensor_parallel=self.tensor_parallel,
            quantization=self.quantization,
            gpu_memory_utilization=self.gpu_memory_utilization,
            kv_cache_bytes=self.kv_cache_bytes if self.kv_cache_asked else None,
            max_batched_tokens=self.max_batched_tokens if self.device == "cuda" else None,
            block_size=self.block_size,
            rope_scaling=self.rope_scaling,
        )

    def predicted(self) -> Predicted:
        """The numbers to log beside the measured ones."""
        return Predicted(
            weights_bytes=self.weights_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            kv_blocks=self.kv_blocks,
            activation_bytes=self.activation_bytes,
        )


def plan_deployment(spec: DeploymentSpec, model: ModelSpec, local: Machine | None = None) -> Plan:
    """The plan for the spec's target: this machine (`local`), the first instance type named, or the cheapest
    of the cloud that holds the model at 8192 tokens."""
    if not spec.is_cloud:
        if local is None:
            raise ValueError(f"cloud: {spec.cloud} needs the facts of its machine")
        return make_plan(spec, model, local)
    if spec.instance_type:
        named = [catalog.INSTANCE_TYPES[name] for name in spec.instance_type]
        plan = make_plan(spec, model, named[0])
        others = [make_plan(spec, model, item) for item in named[1:]]
        bad = [f"{item.instance_type} does not fit: {item.reasons[0]}" for item in others if not item.fits]
        plan = replace(plan, warnings=(*plan.warnings, *bad))
    else:
        plan = _cheapest(spec, model)
    if plan.fits:
        return plan
    return replace(plan, alternatives=alternatives(spec, model))


def make_plan(spec: DeploymentSpec, model: ModelSpec, place: Machine | InstanceType) -> Plan:
    """One model on one machine. Never raises for what does not fit: that is `reasons`."""
    instance = place if isinstance(place, InstanceType) else None
    machine = place.machine() if isinstance(place, InstanceType) else place
    draft = _Draft(spec, model, machine)
    disk = _disk_gib(spec, model, draft)
    cost = estimate_cost(spec, instance, disk) if instance else None
    size = sizing.checkpoint_bytes(model)
    need = draft.need
    return Plan(
        fits=not draft.reasons,
        reasons=tuple(draft.reasons),
        warnings=(*draft.warnings, *advise(spec, model, machine, draft.concurrency, draft.max_model_len)),
        notes=tuple(draft.notes),
        cloud=spec.cloud,
        model=spec.model,
        machine=machine,
        instance_type=instance.name if instance else None,
        device="cuda" if machine.gpu else "cpu",
        dtype=draft.dtype,
        quantization=draft.quantization,
        tensor_parallel=draft.tp,
        max_model_len=draft.max_model_len,
        max_num_seqs=draft.max_num_seqs,
        max_batched_tokens=draft.batched_tokens,
        gpu_memory_utilization=spec.gpu_memory_utilization,
        block_size=BLOCK_SIZE,
        usable_bytes=need.usable,
        weights_bytes=need.weights,
        activation_bytes=need.activation,
        fixed_bytes=need.fixed,
        kv_cache_bytes=max(0, draft.pool),
        kv_cache_asked=spec.kv_cache_gib is not None,
        kv_bytes_per_token=draft.kv_bytes,
        kv_blocks=draft.blocks,
        concurrency=draft.concurrency,
        host_ram_bytes=draft.host_ram,
        download_bytes=0 if spec.model_ref.kind in ("folder", "demo") else size,
        download_seconds=download_seconds(spec, size),
        disk_gib=disk,
        rope_scaling=spec.rope_scaling.as_config() if spec.rope_scaling else None,
        cost=cost,
    )


def alternatives(spec: DeploymentSpec, model: ModelSpec) -> tuple[Alternative, ...]:
    """The cheapest instance types of the spec's cloud that fit, at most three; unknown prices last."""
    found: list[Alternative] = []
    for item in catalog.instance_types(spec.cloud):
        if len(found) == MAX_ALTERNATIVES:
            break
        plan = make_plan(spec, model, item)
        if plan.fits and item.name not in spec.instance_type:
            price = item.price.usd_per_hour if item.price else None
            gpus = f"{item.gpu_count}×{item.gpu.kind}"
            tp, length = plan.tensor_parallel, plan.max_model_len
            found.append(Alternative(item.name, gpus, tp, plan.concurrency, length, price))
    return tuple(found)


def not_yet(spec: DeploymentSpec) -> list[Problem]:
    """What can be planned but not started by this version."""
    found: list[Problem] = []
    if spec.is_cloud and spec.model_ref.kind == "demo":
        reason = "the demo is converted on this machine and not yet on a cloud"
        found.append(Problem("model", reason, "HuggingFaceTB/SmolLM2-135M-Instruct"))
    return found


def _cheapest(spec: DeploymentSpec, model: ModelSpec) -> Plan:
    """The plan for the cheapest type that holds a comfortable context; else for the largest of the cloud."""
    items = catalog.instance_types(spec.cloud)
    wanted = spec.max_model_len or min(model.max_position, COMFORT_LEN)
    for item in items:
        plan = make_plan(spec, model, item)
        if plan.fits and plan.max_model_len >= wanted:
            note = f"{item.name} is the cheapest type of {spec.cloud} with a known price that fits"
            if item.price is None:
                note = f"{item.name} fits; no type of {spec.cloud} with a known price does"
            return replace(plan, notes=(note, *plan.notes))
    return make_plan(spec, model, max(items, key=lambda item: item.gpu.memory_bytes * item.gpu_count))


class _Draft:
    """The decisions behind one plan, in the order in which they depend on each other."""

    def __init__(self, spec: DeploymentSpec, model: ModelSpec, machine: Machine) -> None:
        self.spec, self.model, self.machine = spec, model, machine
        self.reasons: list[str] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._choose_numbers()
        self.batched_tokens, seqs = sizing.step_budget(machine)
        self.max_num_seqs = spec.max_num_seqs or seqs
        self._choose_tp()
        self.need = self._need(self.tp)
        cache = sizing.cache_dtype(self.dtype, self.quantization)
        self.kv_bytes = sizing.kv_bytes_per_token(model, dtype=cache, tp=self.tp)
        self.pool = self._pool()
        self.blocks = sizing.kv_blocks(self.pool, self.kv_bytes, BLOCK_SIZE)
        self._choose_len()
        self.concurrency = sizing.concurrency(self.blocks, self.max_model_len, BLOCK_SIZE)
        self.host_ram = self._host_ram()

    def _choose_numbers(self) -> None:
        spec, model, machine = self.spec, self.model, self.machine
        try:
            self.dtype = sizing.choose_dtype(spec.dtype, model, machine)
        except sizing.DtypeError as error:
            self.reasons.append(f"dtype {spec.dtype}: {error}; use {error.nearest}")
            self.dtype = error.nearest
        if machine.gpu and self.dtype == "float16" and model.checkpoint_dtype == "bfloat16":
            self.warnings.append(
                f"the checkpoint is bfloat16 and {machine.gpu.kind} computes in float16: large values "
                "may overflow, and a request that meets one fails"
            )
        try:
            self.quantization = sizing.choose_quantization(spec.quantization, model, machine, self.dtype)
        except sizing.DtypeError as error:
            self.reasons.append(f"quantization {spec.quantization}: {error}; use {error.nearest}")
            self.quantization = None
        if model.quantization == "fp8" and self.quantization != "fp8":
            self.notes.append(f"the checkpoint is in fp8 and is unpacked to {self.quantization or self.dtype} at load")
        if self.quantization == "fp8" and machine.gpu and not machine.gpu.has_fp8:
            kind = machine.gpu.kind
            self.notes.append(f"{kind} has no fp8 units: weights are kept in fp8, math is in {self.dtype}")

    def _choose_tp(self) -> None:
        """The size asked for. Else the largest valid one: it uses all the memory and bandwidth that the model can
        be cut for. On this machine one GPU is enough when the model fits there."""
        gpus, asked = self.machine.gpu_count, self.spec.tensor_parallel
        valid = sizing.valid_tp_sizes(self.model, max(1, gpus), quantization=self.quantization)
        self.tp = valid[-1]
        if asked in valid:
            self.tp = asked
            if asked < gpus:
                self._idle("as asked")
            return
        if asked is not None:
            cut = sizing.tp_problem(self.model, asked, quantization=self.quantization) if asked <= gpus else None
            why = cut or f"this machine has {gpus or 'no'} GPU{'s' * (gpus != 1)}"
            self.reasons.append(f"tensor_parallel {asked}: {why}; valid here: {', '.join(map(str, valid))}")
        if self.tp < gpus:
            self._idle(sizing.tp_problem(self.model, gpus, quantization=self.quantization))
        if not self.spec.is_cloud and self.tp > 1 and self._need(1).pool > self.model_request_bytes():
            self.notes.append("one GPU is enough for this model here")
            self.tp = 1

    def _idle(self, why: str | None) -> None:
        gpus = self.machine.gpu_count
        self.notes.append(f"tensor parallel is {self.tp}, not {gpus}{f': {why}' if why else ''}")
        if self.spec.is_cloud:
            smaller = f"{self.tp} GPUs" if self.tp > 1 else "one GPU"
            self.warnings.append(f"{gpus - self.tp} of {gpus} GPUs stay idle; a type with {smaller} serves it as well")

    def model_request_bytes(self) -> int:
        """KV cache of one request of the length asked for, or of a comfortable one, on one GPU."""
        length = self.spec.max_model_len or min(self.model.max_position, COMFORT_LEN)
        cache = sizing.cache_dtype(self.dtype, self.quantization)
        return length * sizing.kv_bytes_per_token(self.model, dtype=cache)

    def _need(self, tp: int) -> sizing.Need:
        model, gpu = self.model, self.machine.gpu
        activation = sizing.activation_bytes(
            model, dtype=self.dtype, batched_tokens=self.batched_tokens, num_seqs=self.max_num_seqs, tp=tp
        )
        if gpu is None:
            weights = sizing.cpu_weights_bytes(model, dtype=self.dtype, quantization=self.quantization)
            return sizing.Need(self.machine.free_ram_bytes, weights, activation, sizing.CPU_PROCESS_BYTES)
        weights = sizing.weights_bytes(model, dtype=self.dtype, quantization=self.quantization, tp=tp)
        usable = int(gpu.memory_bytes * self.spec.gpu_memory_utilization)
        return sizing.Need(usable, weights, activation, sizing.fixed_bytes(tp))

    def _pool(self) -> int:
        asked = None if self.spec.kv_cache_gib is None else int(self.spec.kv_cache_gib * GIB)
        room = self.need.pool
        where = (
            f"{_gib(self.need.usable)} of free RAM" if self.machine.gpu is None else f"{_gib(self.need.usable)} usable"
        )
        if room <= 0:
            held = self.need.weights + self.need.activation + self.need.fixed
            parts = f"weights {_gib(self.need.weights)} and {_gib(held - self.need.weights)} beside them"
            self.reasons.append(f"{_each(self)}{parts} exceed {where}")
            return 0
        if asked is not None and asked > room:
            self.reasons.append(f"kv_cache_gib {self.spec.kv_cache_gib:g}: only {_gib(room)} of {where} is left")
            return room
        if self.machine.gpu is None:
            return min(sizing.cpu_pool_bytes(self.need.usable - self.need.weights - self.need.fixed, asked), room)
        return room if asked is None else asked

    def _choose_len(self) -> None:
        limit = self.model.max_position
        fits = max(0, self.blocks - PADDING_BLOCKS) * BLOCK_SIZE
        asked = self.spec.max_model_len
        if asked is not None:
            self.max_model_len = asked
            if asked > limit:
                self.reasons.append(
                    f"max_model_len {asked} exceeds the model's {limit} tokens; lower it or set rope_scaling"
                )
            if self.pool and fits < asked:
                larger = " or set a larger kv_cache_gib" if self.machine.gpu is None else ""
                self.reasons.append(
                    f"one request of {asked} tokens does not fit the KV cache, which holds {fits}; "
                    f"lower max_model_len{larger}"
                )
            return
        least = min(limit, MIN_LEN)
        if self.pool and fits < least:
            self.reasons.append(f"the KV cache would hold {fits} tokens, less than {least}")
        if fits < least:
            self.max_model_len = least
            return
        safe = fits if self.spec.kv_cache_gib is not None else int(fits * MEASURE_MARGIN)
        self.max_model_len = min(limit, MAX_LEN_CAP, max(least, safe // LEN_STEP * LEN_STEP))
        if self.max_model_len == min(limit, MAX_LEN_CAP):
            if limit > MAX_LEN_CAP:
                self.notes.append(f"max_model_len {MAX_LEN_CAP} is the default cap; the model allows {limit}")
        else:
            self.notes.append(
                f"max_model_len {self.max_model_len} is what the KV cache holds; the model allows {limit}"
            )

    def _host_ram(self) -> int:
        machine = self.machine
        if machine.gpu is None:
            return self.need.weights + self.need.activation + self.need.fixed + max(0, self.pool)
        needed = sizing.gpu_host_ram_bytes(self.model, self.tp)
        if needed > machine.ram_bytes:
            self.reasons.append(f"loading needs {_gib(needed)} of host RAM, and there is {_gib(machine.ram_bytes)}")
        return needed


def _disk_gib(spec: DeploymentSpec, model: ModelSpec, draft: _Draft) -> int:
    """Disk to buy, rounded up to 10 GiB; on this machine what is written, checked against free space."""
    free = draft.machine.free_disk_bytes
    if not spec.is_cloud:
        here = spec.model_ref.kind == "folder" and spec.cloud == "local"  # to a host it is uploaded
        fetched = 0 if here else sizing.checkpoint_bytes(model)
        needed = int(fetched * 1.05) + (LOCAL_SYSTEM_BYTES if spec.cloud == "local" else host_system_bytes(draft))
        if free is not None and needed > free:
            draft.reasons.append(f"the disk has {_gib(free)} free, and weights and logs need {_gib(needed)}")
        return -(-needed // GIB)
    needed_gib = -(-sizing.disk_bytes(model, system=CLOUD_SYSTEM_BYTES) // (10 * GIB)) * 10
    if spec.disk_gib is None:
        return max(MIN_CLOUD_DISK_GIB, needed_gib)
    if spec.disk_gib < needed_gib:
        draft.reasons.append(f"disk_gib {spec.disk_gib}: system, runtime and weights need {needed_gib}")
    return spec.disk_gib


def host_system_bytes(draft: _Draft) -> int:
    """Environment, pip's cache and logs on a machine of the user's own: CUDA's libraries are most of it."""
    return 20 * GIB if draft.machine.gpu is not None else 3 * GIB


def _each(draft: _Draft) -> str:
    if draft.machine.gpu is None:
        return ""
    return f"on each of {draft.tp} GPUs, " if draft.tp > 1 else f"on one {draft.machine.gpu.kind}, "


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
