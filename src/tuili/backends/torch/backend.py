"""TorchBackend: a batch in, a step's handle out. Knows the batch's fields; the mathematics is in the modules."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tuili.backend import (
    BackendOptions,
    Batch,
    CacheGroup,
    Choices,
    DeviceRoom,
    Float32,
    Int32,
    SamplingArrays,
    StepHandle,
    UInt32,
    refuse_unread,
)
from tuili.backends.torch.cache import PagedCache, is_out_of_memory
from tuili.backends.torch.devices import (
    BATCHED_TOKENS,
    cache_dtype,
    check_cache_dtype,
    choose_device,
    choose_dtype,
    current,
    release_memory,
    warn_of_tf32,
)
from tuili.backends.torch.divided import StepDivider, sample_in_parts
from tuili.backends.torch.fixed_shapes import FixedShapeOps
from tuili.backends.torch.graphs import Capture, CudaCapture, Decoded, DecodeGraphs, GraphLimits
from tuili.backends.torch.memory import device_memory, largest_batch, measure_room, num_blocks
from tuili.backends.torch.model import Model, build_model
from tuili.backends.torch.ops import Ops, choose_ops
from tuili.backends.torch.ops.plain import PlainOps
from tuili.backends.torch.placement import model_sizes, num_host_layers, tell_split
from tuili.backends.torch.rows import GreedyStep, RunningStep, carried_rows, is_greedy, keep_states, run_rows
from tuili.backends.torch.sampling import Chosen, RowRules, choose_tokens, plan_draws
from tuili.backends.torch.shard import Ranks, Shard, Stage
from tuili.backends.torch.split import HOST, build_split_model
from tuili.backends.torch.stage_graphs import StageGraphs
from tuili.backends.torch.staged import SentStep, StagedModel, WeightsWithout, build_staged_model
from tuili.backends.torch.step import StepInputs, Uploader, upload_batch
from tuili.backends.torch.weights import WeightReader
from tuili.backends.torch_sizes.footprint import SUPPORTED, StepFootprint, StepSize
from tuili.checks import check_count, refusal
from tuili.config import MAX_NUM_SEQS, EngineConfig
from tuili.errors import EngineUnavailableError, InsufficientMemoryError, UnsupportedModelError
from tuili.machine import available_memory
from tuili.models.features import unsupported_features
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.quant.format import Tensor as FileTensor

_MAX_THREADS = 1024
_FIRST_MATRIX = "layers.0.o_proj.weight"


@torch.inference_mode()
def load(
    spec: ModelSpec,
    weights: Mapping[str, FileTensor],
    options: BackendOptions,
    shard: Shard | None = None,
    stage: Stage | None = None,
) -> TorchBackend:
    """Reads every weight once, to the device; returns a backend without a cache. Nothing of `weights` is needed then.

    num_threads, where it is not 0, is set for the whole process. Of a model that lies in several processes each loads
    its own: shard says what spec and weights are of it, stage which of their layers are this process's.

    Raises UnsupportedModelError naming what the backend lacks, ModelFileError for weights that are not the spec's,
    InvalidRequestError for an option, InsufficientMemoryError.
    """
    if options.isa is not None:
        raise refusal("isa", options.isa, "None for the torch backend")
    if missing := unsupported_features(spec, SUPPORTED):
        raise UnsupportedModelError(f"{spec.family}: the torch backend does not implement {', '.join(missing)}")
    check_count("num_threads", options.num_threads, 0, _MAX_THREADS)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    device = choose_device(options.device)
    check_cache_dtype(options.kv_cache_dtype, device)
    stored = weights[_FIRST_MATRIX].format.name if _FIRST_MATRIX in weights else ""
    dtype = choose_dtype(options.dtype, device, stored)
    warn_of_tf32(device, dtype)
    try:
        with current(device):
            model = _model(spec, weights, options, device=device, dtype=dtype, shard=shard, stage=stage)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        message = f"{spec.family}: the weights do not fit on {device}"  # a traceback would keep what was loaded so far
        raise InsufficientMemoryError(message) from error.with_traceback(None)
    whole = spec if shard is None else replace(spec, vocab_size=shard.vocab_size)
    return TorchBackend(whole, model, options, device=device, dtype=dtype)


def _model(
    spec: ModelSpec,
    weights: Mapping[str, FileTensor],
    options: BackendOptions,
    *,
    device: torch.device,
    dtype: torch.dtype,
    shard: Shard | None,
    stage: Stage | None,
) -> Model:
    """On one device if it fits there, or else, where it is whole, with its first layers on the host."""
    shapes = tensor_shapes(spec)
    if stage is not None:
        own = {name: shape for name, shape in shapes.items() if stage.has(name, spec.tie_word_embeddings)}
        shapes, weights = own, WeightsWithout(weights, shapes.keys() - own.keys())
    ops = _ops(device, options.deterministic)
    keep_packed = not isinstance(ops, PlainOps)
    reader = WeightReader(weights, shapes, dtype=dtype, device=device, keep_packed=keep_packed)
    if stage is not None:
        return build_staged_model(spec, reader, ops, options.max_model_len, shard, stage)
    if shard is not None:
        return build_model(spec, reader, ops, options.max_model_len, shard)
    sizes = model_sizes(spec, {}, dtype, options.max_model_len)
    if num_host := num_host_layers(sizes, options, device):
        sizes = model_sizes(spec, weights if keep_packed else {}, dtype, options.max_model_len)  # which reads them
        num_host = num_host_layers(sizes, options, device)
    if not num_host:
        return build_model(spec, reader, ops, options.max_model_len)
    tell_split(sizes, num_host, device)
    host = WeightReader(weights, shapes, dtype=dtype, device=HOST, keep_packed=False), _ops(HOST, options.deterministic)
    return build_split_model(spec, host, (reader, ops), num_host, options.max_model_len)


def _ops(device: torch.device, deterministic: bool) -> Ops:
    is_plain = device.type == "cpu"  # where no kernel of ours runs
    return FixedShapeOps() if deterministic and is_plain else choose_ops(device, deterministic)


class TorchBackend:
    """A loaded model, its cache and the token each slot sampled last, all on one device.

    is_asynchronous and graphs, the decode steps that are captured, may be changed before the first step.
    """

    num_stages = 1  # of several, this is one

    def __init__(
        self, spec: ModelSpec, model: Model, options: BackendOptions, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._spec = spec
        self._model: Model | None = model
        self.device = device
        self.dtype = dtype
        mixers = [y.mixer for y in spec.layers if isinstance(y.mixer, AttentionSpec)]
        layers = None if model.stage is None else model.stage.layers
        self._goes_on = model.stage is not None and not model.stage.is_last  # in another stage, which chooses tokens
        self._cache = PagedCache(mixers, cache_dtype(options.kv_cache_dtype, dtype), device, model.num_host, layers)
        # Draws have their own: a step's inputs are read when they are sent.
        self._uploader, self._draw_uploader = Uploader(device), Uploader(device)
        self._last_tokens = torch.zeros(MAX_NUM_SEQS + 1, dtype=torch.int32, device=device)
        self._last_states = torch.full(self._last_tokens.shape, torch.nan, device=device)  # of samplers, by slot
        self.one_row = model.one_row
        self._max_model_len, self._footprint = options.max_model_len, StepFootprint(spec, dtype.itemsize)
        self._step_scale = 1.0  # of what steps take, as measured, to what was reckoned
        self.batched_tokens = BATCHED_TOKENS.get(device.type)  # that a step should have room for; None: any
        self.memory = device_memory(device)
        self._steps = StepDivider(self._run, self.copy_blocks, self.release, str(device))
        self.is_asynchronous = device.type == "cuda" and not model.num_host  # elsewhere copies of results would wait
        self.graphs: DecodeGraphs | None = None
        if device.type == "cuda" and not model.num_host and not options.enforce_eager:
            with current(device):
                self.graphs = self.captured_by(CudaCapture(device))

    @property
    def vocab_size(self) -> int:
        return self._spec.vocab_size

    @property
    def num_threads(self) -> int:
        """Of a step on the CPU."""
        return torch.get_num_threads()

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take on the device."""
        return self._open_model.num_bytes

    @property
    def ranks(self) -> list[Ranks]:
        """Those with whom it shares its layers, and those who have others."""
        parts = (self._open_model.shard, self._open_model.stage)
        return [part.ranks for part in parts if part is not None]

    @property
    def _open_model(self) -> Model:
        if self._model is None:
            raise EngineUnavailableError("the torch backend is closed")
        return self._model

    def abort(self) -> None:
        """Ends what is under way with other ranks, of which one is gone. For any thread."""
        for ranks in self.ranks:
            ranks.abort()

    def cache_groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        """One group per window; also fixes the block size of the next allocate_cache."""
        return self._cache.groups(block_size)

    @torch.inference_mode()
    def allocate_cache(self, num_blocks: ListLike[int]) -> None:
        """Empty blocks for every group; what was cached before is gone. Raises InsufficientMemoryError."""
        if self.graphs is not None:
            self.graphs.forget()
        with current(self.device):
            self._cache.allocate(num_blocks)

    @torch.inference_mode()
    def measure_room(self, config: EngineConfig, utilization: float) -> DeviceRoom | None:
        """See MeasuredBackend. Raises InsufficientMemoryError."""
        if self.memory is None:
            return None
        groups, count = self.cache_groups(config.block_size), num_blocks(config)
        largest = largest_batch(config, groups, self.vocab_size)

        def run_largest() -> int:
            self.allocate_cache([count] * len(groups))
            self._run(largest).result()
            self._cache.layers = []
            return count * sum(group.block_bytes for group in groups) - self.graph_bytes

        with current(self.device):
            room = measure_room(self.memory, run_largest, str(self.device), config, utilization)
        self._step_scale = max(0, room.step_bytes - self.graph_bytes) / self._reckoned_bytes(largest)
        return room

    def step_bytes(self, batch: Batch) -> int:
        """Memory that a step is reckoned to take besides weights, cache and graphs."""
        return int(self._step_scale * self._reckoned_bytes(batch))

    def _reckoned_bytes(self, batch: Batch) -> int:
        kept = 0 if batch.want_logits is None else int(batch.want_logits.sum())
        size = StepSize(
            num_tokens=len(batch.input_ids),
            num_rows=len(batch.sample_rows),
            num_sequences=len(batch.seq_lens),
            context_len=int(batch.seq_lens.max(initial=1)),
            num_kept_rows=kept,
        )
        return self._footprint.step_bytes(size)

    @property
    def graph_bytes(self) -> int:
        """Memory that graphs are reckoned to come to take."""
        if self.graphs is None:
            return 0
        return self._footprint.graph_bytes(self.graphs.max_rows, self._max_model_len, has_head=not self._goes_on)

    def reserve(self, num_bytes: int) -> None:
        """Sees to it that steps find so much memory: torch takes it and keeps it. Raises InsufficientMemoryError."""
        try:
            if self.memory is not None:
                self.release()  # or what was reserved before, which is less, would stay beside it
                torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
            elif num_bytes > available_memory():  # which the system would promise
                raise torch.OutOfMemoryError
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            message = f"{num_bytes / 2**20:.0f} MiB for a step are not free on {self.device}"
            raise InsufficientMemoryError(message) from error.with_traceback(None)

    @torch.inference_mode()
    def execute(self, batch: Batch) -> StepHandle:
        """Puts the step on the device and returns at once; the handle waits.

        Where it finds no memory, it is computed in parts, one after the other, and the result says so.
        Raises UnsupportedModelError naming a field it does not read, InsufficientMemoryError.
        """
        refuse_unread(batch, "torch")
        with current(self.device):
            # Where others compute the same step, it cannot be divided here alone.
            return self._run(batch) if self.ranks else self._steps.execute(batch)

    def _run(self, batch: Batch) -> StepHandle:
        model = self._open_model
        if self.graphs is not None and (decoded := self.graphs.run(batch, self._cache.block_size)) is not None:
            if self._goes_on:
                return SentStep(batch, self.vocab_size, self._spec.hidden_size)
            try:
                return self._decoded(batch, decoded)
            except RuntimeError:
                self.graphs.undo(decoded)  # the step may be computed again, in parts
                raise
        step = upload_batch(batch, self._uploader)
        if len(batch.block_copies):
            self._cache.copy_blocks(batch.block_copies, step.block_copies)
        input_ids = self._input_ids(step)
        flow = model.hidden(input_ids, step, self._cache)
        if self._goes_on:
            return SentStep(batch, self.vocab_size, self._spec.hidden_size)
        hidden = model.finish(flow, step.sample_rows)
        wanted = hidden if batch.want_hidden else None
        carried = carried_rows(input_ids.index_select(0, step.sample_rows), self._last_states, step)
        rows = run_rows(
            lambda tile: model.logits(hidden[tile]), wanted, batch, step, self.vocab_size, self._draw_uploader, carried
        )
        handle = RunningStep(rows)
        # Last, once nothing can fail any more: a step that is computed again reads what was kept before.
        kept = Chosen(*(found.index_select(0, step.kept_rows) for found in rows.chosen))
        self._keep(kept.token_ids, step.kept_slots)
        keep_states(batch, kept.sampler_state, step.kept_slots, self._last_states)
        return handle

    def _decoded(self, batch: Batch, decoded: Decoded) -> StepHandle:
        """The rest of a step that a graph has run, which has kept the largest logits' tokens."""
        if is_greedy(batch):
            return GreedyStep(decoded.token_ids)
        logits, step = decoded.logits, decoded.step
        carried, slots = carried_rows(decoded.carried, self._last_states, step), step.kept_slots[: len(logits)]
        rows = run_rows(lambda tile: logits[tile], None, batch, step, self.vocab_size, self._draw_uploader, carried)
        self._keep(rows.chosen.token_ids, slots)
        keep_states(batch, rows.chosen.sampler_state, slots, self._last_states)
        return RunningStep(rows)

    def _keep(self, token_ids: Tensor, slots: Tensor) -> None:
        # Where nothing could be chosen there is no token to go on from, but one to look up if the slot runs on.
        self._last_tokens.index_copy_(0, slots.long(), self._open_model.agreed(token_ids).clamp(min=0))

    def captured_by(self, capture: Capture) -> DecodeGraphs:
        """Graphs of this model's decode steps, none of them captured yet."""
        model = self._open_model
        limits = GraphLimits(self.vocab_size, self._max_model_len, None if model.shard is None else model.shard.ranks)
        if isinstance(model, StagedModel):
            return StageGraphs(model, self._cache, self._input_ids, self._last_tokens, limits, capture)
        return DecodeGraphs(self._decode, self._last_tokens, limits, capture, self.one_row)

    def _decode(self, step: StepInputs) -> Tensor:
        """Logits [rows, vocab] of a step in which each token is a row."""
        model = self._open_model
        return model.logits(model.finish(model.hidden(self._input_ids(step), step, self._cache), None))

    @torch.inference_mode()
    def allocate_swap(self, num_blocks: ListLike[int]) -> float:
        """See SwappingBackend. Raises InsufficientMemoryError."""
        with current(self.device):
            return self._cache.allocate_swap(num_blocks)

    @torch.inference_mode()
    def swap_out(self, copies: Int32) -> None:
        """See SwappingBackend."""
        with current(self.device):
            self._cache.swap_out(copies)

    @torch.inference_mode()
    def swap_in(self, copies: Int32) -> None:
        """See SwappingBackend."""
        with current(self.device):
            self._cache.swap_in(copies)

    @torch.inference_mode()
    def copy_blocks(self, copies: Int32) -> None:
        """As a batch's block_copies. Raises what is_out_of_memory knows."""
        with current(self.device):
            self._cache.copy_blocks(copies, torch.from_numpy(copies).to(self.device))

    def release(self) -> None:
        """Gives back what torch keeps without using it."""
        release_memory(self.device)

    @torch.inference_mode()
    def sample(self, logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
        """Raises InsufficientMemoryError."""
        with current(self.device):
            return sample_in_parts(self._sample, self.release, logits, sampling, allow_mask)

    def _sample(self, logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
        targets = np.full(len(logits), -1, np.int32)
        rules = RowRules(sampling, allow_mask, targets)
        draws = plan_draws(rules, max(1, len(logits)), logits.shape[-1], self._draw_uploader, self.device)
        on_device = torch.from_numpy(logits.copy()).to(self.device)
        chosen = choose_tokens(on_device, 0, draws, torch.from_numpy(targets).to(self.device))
        return Choices(chosen.token_ids.cpu().numpy(), chosen.sampler_state.cpu().numpy())

    def close(self) -> None:
        """Gives the memory back; the backend is of no use afterwards."""
        self._model = self.graphs = None
        self._cache.layers = []
        release_memory(self.device)

    def _input_ids(self, step: StepInputs) -> Tensor:
        slots = step.carry_slots
        if slots is None or self._goes_on:
            return step.input_ids
        return torch.where(slots >= 0, self._last_tokens.index_select(0, slots.clamp(min=0)), step.input_ids)
