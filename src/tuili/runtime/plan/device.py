"""A model on GPUs: what it takes of each one's memory, and what is the most that fits. Needs no GPU and no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, get_args

from tuili.backends import expected_backend
from tuili.backends.torch_sizes.footprint import SUPPORTED, largest_groups
from tuili.checks import check_choice, check_count, check_optional_count, check_optional_share, refusal
from tuili.config import DTYPES, GPU_MEMORY_UTILIZATION, MAX_PARALLEL_SIZE, EngineConfig, KvCacheDtype, store_dir
from tuili.engine.cache.cache_plan import needed_bytes
from tuili.errors import InvalidRequestError, UnsupportedModelError
from tuili.models.features import unsupported_features
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.runtime.devices.gpu_memory import gpu_memory
from tuili.runtime.devices.torch_memory import GPU_BATCHED_TOKENS, GPU_CONTEXT_BYTES, item_bytes
from tuili.runtime.devices.torch_ranks import Parts, deal_out
from tuili.runtime.front.modelfile_settings import model_context
from tuili.runtime.plan.memory import BLOCK_SIZE, MAX_PARALLEL, largest
from tuili.runtime.plan.outline import Outline, open_outline
from tuili.runtime.plan.plan import NARROW, Alternative, PlanOptions
from tuili.store.store import Store
from tuili.weights.recipes import find_recipe

_GROUP_SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
_SIZES = (2, 4, 8)  # GPUs, times those that were asked for, that a plan proposes


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceOptions:
    """GPUs that are alike. memory_bytes: of each, with nothing on it; None: what `device`, of this machine, has."""

    device: str | None = None
    memory_bytes: int | None = None
    dtype: str = "auto"
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_layers: int | None = None

    @property
    def parts(self) -> Parts:
        return Parts(tensor=self.tensor_parallel_size, pipeline=self.pipeline_parallel_size)

    def __post_init__(self) -> None:
        """Raises InvalidRequestError naming the field."""
        check_optional_count("device_memory", self.memory_bytes)
        check_choice("dtype", self.dtype, DTYPES)
        check_optional_share("gpu_memory_utilization", self.gpu_memory_utilization)
        for name in _GROUP_SIZES:
            check_count(name, getattr(self, name), 1, MAX_PARALLEL_SIZE)
        if self.parts.num_ranks > MAX_PARALLEL_SIZE:
            raise refusal(" times ".join(_GROUP_SIZES), self.parts.num_ranks, f"at most {MAX_PARALLEL_SIZE}")
        check_optional_count("gpu_layers", self.gpu_layers, 0)
        if self.gpu_layers is not None and self.parts.num_ranks > 1:
            raise refusal("gpu_layers", self.gpu_layers, "left out where GPUs share a model")


class PlannedGpu(NamedTuple):
    """What is planned for: a name for people, and bytes of one GPU."""

    name: str
    free_bytes: int
    total_bytes: int


def planned_gpu(options: DeviceOptions) -> PlannedGpu | None:
    """None where the CPU is what a model would run on. Raises InvalidRequestError for a GPU nobody can tell of."""
    if options.memory_bytes is not None:
        return PlannedGpu("a GPU", options.memory_bytes, options.memory_bytes)
    device = options.device
    is_open = device in (None, "auto")
    if device == "cpu" or (is_open and expected_backend(None, None) != "torch"):
        found = None
    elif (found := gpu_memory(device)) is None and not is_open:
        raise InvalidRequestError(
            f"device {device!r:.80}: no NVIDIA driver tells of its memory here; say it: --device-memory 80GiB",
            param="device",
        )
    if found is not None:
        return PlannedGpu("cuda" if is_open else str(device), *found)
    for name, nothing in (*((name, 1) for name in _GROUP_SIZES), ("gpu_layers", None)):
        if getattr(options, name) != nothing:
            raise refusal(name, getattr(options, name), "left out without a GPU: --device-memory 80GiB plans for one")
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceNeed:
    """Bytes of the GPU that has least left for a cache, at one context and concurrency.

    kv_cache_bytes: of the cache where that takes most, which every GPU must have room for. host_bytes are of layers on
    the CPU.
    """

    weight_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    host_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageNeed:
    """Bytes of each GPU of one stage, of that which has most; kv_cache_bytes are those that its layers take."""

    first_layer: int
    num_layers: int
    weight_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DevicePlan:
    """Everything `tuili plan` tells of GPUs; sizes in bytes, of each."""

    model: str
    family: str
    device: str
    fits: bool
    ctx: int
    max_ctx: int  # the model's own
    parallel: int
    dtype: str
    kv_cache_dtype: KvCacheDtype
    quantization: str | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    gpu_memory_utilization: float
    total_bytes: int
    free_bytes: int
    other_bytes: int  # of other programs, and of the driver for this one
    kv_limit_bytes: int
    kv_token_bytes: float
    need: DeviceNeed
    stages: tuple[StageNeed, ...]
    num_layers: int
    num_host_layers: int
    largest_ctx: int  # with this many sequences
    largest_parallel: int  # with this context
    alternatives: tuple[Alternative, ...]
    file_bytes: int
    num_fetched_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def num_gpus(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size


class DeviceModel:
    """One model with one kind of cache, on GPUs with so much memory free."""

    def __init__(self, outline: Outline, kv_cache_dtype: KvCacheDtype, options: DeviceOptions, gpu: PlannedGpu) -> None:
        """Raises UnsupportedModelError naming what the backend lacks, InvalidRequestError."""
        if missing := unsupported_features(outline.spec, SUPPORTED):
            raise UnsupportedModelError(
                f"{outline.spec.family}: the torch backend does not implement {', '.join(missing)}"
            )
        self.spec = outline.spec
        self.other_bytes = gpu.total_bytes - gpu.free_bytes + GPU_CONTEXT_BYTES
        self.granted_bytes = int(options.gpu_memory_utilization * gpu.total_bytes) - self.other_bytes
        item = item_bytes(options.dtype, "cuda")
        dealt = deal_out(outline.spec, outline.stored, options.parts, item, keeps_packed=True)
        if options.parts.num_ranks == 1:
            limit = self.spec.max_position
            self.ranks = [rank.placed(self.granted_bytes, options.gpu_layers, 0, limit) for rank in dealt]
        else:
            self.ranks = dealt
        self.num_host_layers = self.ranks[0].num_host
        self.num_weight_bytes = max(rank.weight_bytes for rank in dealt)  # were all of it there
        self._groups = [rank.cache_groups(kv_cache_dtype, BLOCK_SIZE) for rank in self.ranks]
        self.groups = largest_groups(self._groups)
        self._host_weight_bytes = self.ranks[0].host_weight_bytes(outline.stored)
        self._host_groups = self.ranks[0].host_cache_groups(kv_cache_dtype, BLOCK_SIZE)

    @property
    def kv_token_bytes(self) -> float:
        """Bytes of the GPU where it takes most that one more token takes, as long as no window is full."""
        return sum(group.block_bytes for group in self.groups) / BLOCK_SIZE

    def need(self, ctx: int, parallel: int) -> DeviceNeed:
        """What `parallel` sequences of `ctx` tokens each take."""
        weights, workspace = max(self._fixed(ctx, parallel), key=sum)
        config = _config(ctx, parallel)
        return DeviceNeed(
            weight_bytes=weights,
            kv_cache_bytes=needed_bytes(self.groups, config, parallel),
            workspace_bytes=workspace,
            host_bytes=self._host_weight_bytes + needed_bytes(self._host_groups, config, parallel),
        )

    def stages(self, ctx: int, parallel: int) -> tuple[StageNeed, ...]:
        """What each stage takes of that, from the first layers to the last."""
        found: dict[int, StageNeed] = {}
        config, fixed = _config(ctx, parallel), self._fixed(ctx, parallel)
        for rank, groups, (weights, workspace) in zip(self.ranks, self._groups, fixed, strict=True):
            need = StageNeed(
                first_layer=rank.layers.start,
                num_layers=len(rank.layers),
                weight_bytes=weights,
                kv_cache_bytes=needed_bytes(groups, config, parallel),
                workspace_bytes=workspace,
            )
            if rank.stage not in found or _sum(found[rank.stage]) < _sum(need):
                found[rank.stage] = need
        return tuple(found[stage] for stage in sorted(found))

    def _fixed(self, ctx: int, parallel: int) -> list[tuple[int, int]]:
        """Of each rank, the bytes of weights and of what steps work in."""
        num_tokens = min(_config(ctx, parallel).max_num_batched_tokens, ctx * parallel)
        return [(rank.weight_bytes, rank.workspace_bytes(num_tokens, ctx, parallel)) for rank in self.ranks]

    def kv_limit_bytes(self, ctx: int, parallel: int) -> int:
        """What is left for a cache."""
        need = self.need(ctx, parallel)
        return max(0, self.granted_bytes - need.weight_bytes - need.workspace_bytes)

    def fits(self, ctx: int, parallel: int) -> bool:
        need = self.need(ctx, parallel)
        return need.weight_bytes + need.workspace_bytes + need.kv_cache_bytes <= self.granted_bytes

    def largest_ctx(self, parallel: int) -> int:
        """The longest context, at most the model's, that so many sequences can have at once; 0: none."""
        return largest(self.spec.max_position, lambda ctx: self.fits(ctx, parallel))

    def largest_parallel(self, ctx: int) -> int:
        """How many sequences, at most MAX_PARALLEL, can have that context at once; 0: none."""
        return largest(MAX_PARALLEL, lambda parallel: self.fits(ctx, parallel))


def _config(ctx: int, parallel: int) -> EngineConfig:
    num_tokens = max(GPU_BATCHED_TOKENS, parallel)
    return EngineConfig(
        max_model_len=ctx, max_num_seqs=parallel, max_num_batched_tokens=num_tokens, block_size=BLOCK_SIZE
    )


def _sum(need: StageNeed) -> int:
    return need.weight_bytes + need.kv_cache_bytes + need.workspace_bytes


def make_device_plan(
    name: str,
    options: PlanOptions,
    devices: DeviceOptions,
    gpu: PlannedGpu,
    report: Callable[[str], None],
    store: Store | None = None,
) -> DevicePlan:
    """As plan.make_plan, for GPUs. `report` hears what is being done."""
    check_choice("kv_cache_dtype", options.kv_cache_dtype, get_args(KvCacheDtype))
    dtype: KvCacheDtype = options.kv_cache_dtype  # type: ignore[assignment]
    recipe = None if options.quantization is None else find_recipe(options.quantization)
    report(f"reading the header of {name}")
    store = store or Store(store_dir())
    with open_outline(name, store, recipe) as outline:
        limit = outline.spec.max_position
        if options.ctx is not None and not 1 <= options.ctx <= limit:
            raise InvalidRequestError(f"ctx must be in [1, {limit}] for this model, got {options.ctx}", param="ctx")
        ctx = options.ctx or model_context(store.modelfile(name), limit)
        return _plan(outline, replace(options, ctx=ctx), dtype, devices, gpu)


def _plan(
    outline: Outline, options: PlanOptions, dtype: KvCacheDtype, devices: DeviceOptions, gpu: PlannedGpu
) -> DevicePlan:
    asked, parallel = DeviceModel(outline, dtype, devices, gpu), options.parallel
    longest = asked.largest_ctx(parallel)
    ctx = options.ctx or longest or 1
    fits = asked.fits(ctx, parallel)
    is_settled = fits and not asked.num_host_layers
    return DevicePlan(
        model=outline.name,
        family=outline.spec.family,
        device=gpu.name,
        fits=fits,
        ctx=ctx,
        max_ctx=outline.spec.max_position,
        parallel=parallel,
        dtype=devices.dtype,
        kv_cache_dtype=dtype,
        quantization=options.quantization,
        tensor_parallel_size=devices.tensor_parallel_size,
        pipeline_parallel_size=devices.pipeline_parallel_size,
        gpu_memory_utilization=devices.gpu_memory_utilization,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes,
        other_bytes=asked.other_bytes,
        kv_limit_bytes=asked.kv_limit_bytes(ctx, parallel),
        kv_token_bytes=asked.kv_token_bytes,
        need=asked.need(ctx, parallel),
        stages=asked.stages(ctx, parallel),
        num_layers=len(outline.spec.layers),
        num_host_layers=asked.num_host_layers,
        largest_ctx=longest,
        largest_parallel=asked.largest_parallel(ctx),
        alternatives=() if is_settled else _alternatives(outline, replace(options, ctx=ctx), dtype, devices, gpu),
        file_bytes=outline.file_bytes,
        num_fetched_bytes=outline.num_fetched_bytes,
    )


def _alternatives(
    outline: Outline, options: PlanOptions, dtype: KvCacheDtype, devices: DeviceOptions, gpu: PlannedGpu
) -> tuple[Alternative, ...]:
    """One change each, the least intrusive first, with which all is on the GPUs."""
    ctx, parallel = options.ctx or 1, options.parallel
    asked = DeviceModel(outline, dtype, devices, gpu)
    candidates = [("--kv-cache-dtype int8", DeviceModel(outline, "int8", devices, gpu), ctx, parallel)]
    narrow = DeviceModel(outline.quantized(find_recipe(NARROW)), dtype, devices, gpu)
    if narrow.num_weight_bytes < asked.num_weight_bytes:
        candidates.append((f"--quantize {NARROW}", narrow, ctx, parallel))
    for name in _GROUP_SIZES:
        for more in _more_gpus(devices, name, outline.spec):
            shared = DeviceModel(outline, dtype, more, gpu)
            candidates.append((f"--{name.replace('_', '-')} {getattr(more, name)}", shared, ctx, parallel))
    if fewer := asked.largest_parallel(ctx):
        candidates.append((f"--parallel {fewer}", asked, ctx, fewer))
    if shorter := asked.largest_ctx(parallel):
        candidates.append((f"--ctx {shorter}", asked, shorter, parallel))
    return tuple(_fitting(candidates))


def _more_gpus(devices: DeviceOptions, name: str, spec: ModelSpec) -> Iterator[DeviceOptions]:
    """With more of them in the group of that name, as far as the model lets."""
    heads = min(layer.mixer.num_heads for layer in spec.layers if isinstance(layer.mixer, AttentionSpec))
    most = heads if name == "tensor_parallel_size" else spec.num_layers
    for times in _SIZES:
        size = times * getattr(devices, name)
        if size <= most and times * devices.parts.num_ranks <= MAX_PARALLEL_SIZE:
            changes: dict[str, Any] = {name: size, "gpu_layers": None}
            yield replace(devices, **changes)


def _fitting(candidates: list[tuple[str, DeviceModel, int, int]]) -> Iterator[Alternative]:
    """Those with which all is on the GPUs; of numbers of GPUs only the least of each kind."""
    found: set[str] = set()
    for change, model, ctx, parallel in candidates:
        name = change.partition(" ")[0]
        is_again = name.endswith("-parallel-size") and name in found
        if is_again or model.num_host_layers or not model.fits(ctx, parallel):
            continue
        found.add(name)
        need = model.need(ctx, parallel)
        num_bytes = need.weight_bytes + need.kv_cache_bytes + need.workspace_bytes
        yield Alternative(change=change, peak_own_bytes=num_bytes)
