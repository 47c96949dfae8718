"""A model on GPUs: what it takes of each one's memory, and what is the most that fits. Needs no GPU and no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, get_args

from tuili.backends import expected_backend
from tuili.backends.torch_footprint import (
    LEAST_CONTEXT,
    MAX_GRAPH_LOGIT_BYTES,
    SUPPORTED,
    WORK_SHARE,
    StepFootprint,
    StepSize,
    largest_share,
    layers_that_fit,
)
from tuili.checks import check_choice, check_count, check_optional_count, check_optional_share, refusal
from tuili.config import DTYPES, GPU_MEMORY_UTILIZATION, MAX_PARALLEL_SIZE, EngineConfig, KvCacheDtype, store_dir
from tuili.engine.cache_plan import needed_bytes
from tuili.errors import InvalidRequestError, UnsupportedModelError
from tuili.models.features import unsupported_features
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.runtime.gpu_memory import gpu_memory
from tuili.runtime.modelfile_settings import model_context
from tuili.runtime.plan.memory import BLOCK_SIZE, MAX_PARALLEL, largest
from tuili.runtime.plan.outline import Outline, open_outline
from tuili.runtime.plan.plan import NARROW, Alternative, PlanOptions
from tuili.runtime.torch_memory import GPU_BATCHED_TOKENS, GPU_CONTEXT_BYTES, cache_groups, item_bytes, weight_bytes
from tuili.store.store import Store
from tuili.weights.recipes import find_recipe

_MAX_GRAPH_ROWS = 256
_PARTS = (2, 4, 8)  # GPUs that a plan proposes
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceOptions:
    """GPUs that are alike. memory_bytes: of each, with nothing on it; None: what `device`, of this machine, has."""

    device: str | None = None
    memory_bytes: int | None = None
    dtype: str = "auto"
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION
    tensor_parallel_size: int = 1
    gpu_layers: int | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequestError naming the field."""
        check_optional_count("device_memory", self.memory_bytes)
        check_choice("dtype", self.dtype, DTYPES)
        check_optional_share("gpu_memory_utilization", self.gpu_memory_utilization)
        check_count("tensor_parallel_size", self.tensor_parallel_size, 1, MAX_PARALLEL_SIZE)
        check_optional_count("gpu_layers", self.gpu_layers, 0)


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
    for name, default in (("tensor_parallel_size", 1), ("gpu_layers", None)):
        if getattr(options, name) != default:
            raise refusal(name, getattr(options, name), "left out without a GPU: --device-memory 80GiB plans for one")
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceNeed:
    """Bytes of the GPU that has most, at one context and concurrency; host_bytes are of layers on the CPU."""

    weight_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    host_bytes: int


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
    gpu_memory_utilization: float
    total_bytes: int
    free_bytes: int
    other_bytes: int  # of other programs, and of the driver for this one
    kv_limit_bytes: int
    kv_token_bytes: float
    need: DeviceNeed
    num_layers: int
    num_host_layers: int
    largest_ctx: int  # with this many sequences
    largest_parallel: int  # with this context
    alternatives: tuple[Alternative, ...]
    file_bytes: int
    num_fetched_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class DeviceModel:
    """One model with one kind of cache, on GPUs with so much memory free."""

    def __init__(self, outline: Outline, kv_cache_dtype: KvCacheDtype, options: DeviceOptions, gpu: PlannedGpu) -> None:
        """Raises UnsupportedModelError naming what the backend lacks, InvalidRequestError."""
        if missing := unsupported_features(outline.spec, SUPPORTED):
            raise UnsupportedModelError(
                f"{outline.spec.family}: the torch backend does not implement {', '.join(missing)}"
            )
        check_shareable(outline.spec, options.tensor_parallel_size)
        self.spec = outline.spec
        self.other_bytes = gpu.total_bytes - gpu.free_bytes + GPU_CONTEXT_BYTES
        self._item = item_bytes(options.dtype, "cuda")
        own = largest_share(outline.spec, options.tensor_parallel_size)
        self._layers, self._rest, self._embedding = _weights(outline, own, self._item)
        self._own = replace(own, vocab_size=outline.spec.vocab_size)  # whose logits every one has
        self._footprint = StepFootprint(self._own, self._item)
        self._granted = int(options.gpu_memory_utilization * gpu.total_bytes) - self.other_bytes
        self.num_host_layers = self._placed(options)
        first = self.num_host_layers
        on_gpu = replace(self._own, layers=self._own.layers[first:]) if first < len(self._layers) else self._own
        self.groups = cache_groups(on_gpu, kv_cache_dtype, self._item, BLOCK_SIZE)
        self.weight_bytes = sum(self._layers[first:]) + self._rest + (0 if first else self._embedding)
        self._host_weight_bytes = _host_bytes(outline, first, self._item)
        on_host = replace(own, layers=own.layers[:first])
        self._host_groups = cache_groups(on_host, kv_cache_dtype, self._item, BLOCK_SIZE)

    def _placed(self, options: DeviceOptions) -> int:
        """Layers on the CPU: those beyond gpu_layers, or as few as memory lets; none where GPUs share a model."""
        if options.gpu_layers is not None:
            return max(0, len(self._layers) - options.gpu_layers)
        if options.tensor_parallel_size > 1:
            return 0
        context = min(self.spec.max_position, LEAST_CONTEXT)
        mixers = [layer.mixer for layer in self.spec.layers]
        caches = [
            2 * a.num_kv_heads * a.head_dim * self._item * context for a in mixers if isinstance(a, AttentionSpec)
        ]
        room = int((1 - WORK_SHARE) * self._granted) - self._rest
        return len(self._layers) - layers_that_fit(self._layers, caches, room)

    @property
    def num_weight_bytes(self) -> int:
        """Of one GPU's part, were all of it there."""
        return sum(self._layers) + self._rest + self._embedding

    @property
    def kv_token_bytes(self) -> float:
        """Bytes of one GPU that one more token takes, as long as no window is full."""
        return sum(group.block_bytes for group in self.groups) / BLOCK_SIZE

    def need(self, ctx: int, parallel: int) -> DeviceNeed:
        """What `parallel` sequences of `ctx` tokens each take."""
        num_tokens = max(GPU_BATCHED_TOKENS, parallel)
        config = EngineConfig(
            max_model_len=ctx, max_num_seqs=parallel, max_num_batched_tokens=num_tokens, block_size=BLOCK_SIZE
        )
        host_cache = needed_bytes(self._host_groups, config, parallel) if self._host_groups else 0
        is_all_on_host = self.num_host_layers == len(self._layers)
        return DeviceNeed(
            weight_bytes=self.weight_bytes,
            kv_cache_bytes=0 if is_all_on_host else needed_bytes(self.groups, config, parallel),
            workspace_bytes=self._workspace_bytes(min(num_tokens, ctx * parallel), ctx, parallel),
            host_bytes=self._host_weight_bytes + host_cache,
        )

    def _workspace_bytes(self, num_tokens: int, ctx: int, parallel: int) -> int:
        """As a start measures it: every token scored, one drawn for each sequence; and graphs and rotary tables."""
        step = StepSize(
            num_tokens=num_tokens, num_rows=num_tokens, num_sequences=parallel, context_len=ctx, num_drawn=parallel
        )
        rows = min(_MAX_GRAPH_ROWS, max(1, MAX_GRAPH_LOGIT_BYTES // (_FLOAT_BYTES * self.spec.vocab_size)))
        mixers = [layer.mixer for layer in self.spec.layers if isinstance(layer.mixer, AttentionSpec)]
        ropes = {a.rope for a in mixers if a.rope is not None}
        tables = sum(ctx * rope.dim * _FLOAT_BYTES for rope in ropes)
        graphs = 0 if self.num_host_layers else self._footprint.graph_bytes(rows, ctx)
        return self._footprint.step_bytes(step) + graphs + tables

    def kv_limit_bytes(self, ctx: int, parallel: int) -> int:
        """What is left for a cache."""
        need = self.need(ctx, parallel)
        return max(0, self._granted - need.weight_bytes - need.workspace_bytes)

    def fits(self, ctx: int, parallel: int) -> bool:
        need = self.need(ctx, parallel)
        return need.weight_bytes + need.workspace_bytes + need.kv_cache_bytes <= self._granted

    def largest_ctx(self, parallel: int) -> int:
        """The longest context, at most the model's, that so many sequences can have at once; 0: none."""
        return largest(self.spec.max_position, lambda ctx: self.fits(ctx, parallel))

    def largest_parallel(self, ctx: int) -> int:
        """How many sequences, at most MAX_PARALLEL, can have that context at once; 0: none."""
        return largest(MAX_PARALLEL, lambda parallel: self.fits(ctx, parallel))


def check_shareable(spec: ModelSpec, size: int) -> None:
    """Raises InvalidRequestError for more GPUs than a layer has heads."""
    most = min(layer.mixer.num_heads for layer in spec.layers if isinstance(layer.mixer, AttentionSpec))
    if size > most:
        raise refusal("tensor_parallel_size", size, f"at most {most}, as a layer of the model has {most} heads")


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
        gpu_memory_utilization=devices.gpu_memory_utilization,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes,
        other_bytes=asked.other_bytes,
        kv_limit_bytes=asked.kv_limit_bytes(ctx, parallel),
        kv_token_bytes=asked.kv_token_bytes,
        need=asked.need(ctx, parallel),
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
    most = min(layer.mixer.num_heads for layer in outline.spec.layers if isinstance(layer.mixer, AttentionSpec))
    for size in _PARTS:
        if devices.tensor_parallel_size < size <= most:
            shared = DeviceModel(outline, dtype, replace(devices, tensor_parallel_size=size, gpu_layers=None), gpu)
            candidates.append((f"--tensor-parallel-size {size}", shared, ctx, parallel))
    if fewer := asked.largest_parallel(ctx):
        candidates.append((f"--parallel {fewer}", asked, ctx, fewer))
    if shorter := asked.largest_ctx(parallel):
        candidates.append((f"--ctx {shorter}", asked, shorter, parallel))
    return tuple(_fitting(candidates))


def _fitting(candidates: list[tuple[str, DeviceModel, int, int]]) -> Iterator[Alternative]:
    """Those with which all is on the GPUs; of numbers of GPUs only the least."""
    has_parts = False
    for change, model, ctx, parallel in candidates:
        is_part = change.startswith("--tensor-parallel-size")
        if model.num_host_layers or not model.fits(ctx, parallel) or (is_part and has_parts):
            continue
        has_parts |= is_part
        need = model.need(ctx, parallel)
        num_bytes = need.weight_bytes + need.kv_cache_bytes + need.workspace_bytes
        yield Alternative(change=change, peak_own_bytes=num_bytes)


def _weights(outline: Outline, own: ModelSpec, item: int) -> tuple[list[int], int, int]:
    """Bytes of one process's part: of each layer, of what else a GPU has in any case, and of an embedding beside it."""
    layers, rest, embedding = [0] * len(own.layers), 0, 0
    shapes = tensor_shapes(own)
    for name, (stored, shape) in outline.stored.items():
        whole = weight_bytes({name: (stored, shape)}, item, keeps_packed=True)
        num_bytes = whole * math.prod(shapes[name]) // math.prod(shape)
        if name.startswith("layers."):
            layers[int(name.split(".")[1])] += num_bytes
        elif name.startswith(("embed_", "project_in")) and not (
            own.tie_word_embeddings and name == "embed_tokens.weight"
        ):
            embedding += num_bytes
        else:
            rest += num_bytes
    return layers, rest, embedding


def _host_bytes(outline: Outline, num_layers: int, item: int) -> int:
    """Of the first layers and the embedding in host memory, where nothing stays packed."""
    if not num_layers:
        return 0
    kept = {
        name: weight
        for name, weight in outline.stored.items()
        if name.startswith(("embed_", "project_in")) or _layer_of(name) < num_layers
    }
    return weight_bytes(kept, item)


def _layer_of(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("layers.") else 1 << 30
