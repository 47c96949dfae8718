"""The contract between the engine and whatever computes: plain NumPy arrays in, plain NumPy arrays out.

A backend package exports `load(spec, weights, options) -> Backend`. The engine sees only this
file; it knows token ids and blocks, never weights, text or devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tuili.checks import (
    check_choice,
    check_count,
    check_flag,
    check_optional_count,
    check_optional_share,
    check_optional_text,
    refusal,
)
from tuili.config import DTYPES, GPU_MEMORY_UTILIZATION, MAX_PARALLEL_SIZE, EngineConfig, KvCacheDtype, check_device
from tuili.errors import TuiliError, UnsupportedModelError

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
UInt32 = NDArray[np.uint32]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

MAX_MODEL_LEN = 2**31 - 1  # positions are int32
CacheKind = Literal["full", "window", "state", "cross"]


@dataclass(frozen=True, slots=True)
class WeightSource:
    """The files that weights are from, for processes that read their part themselves."""

    path: str
    quantization: str | None = None  # the recipe by which they are quantized as they are read


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendOptions:
    """What a backend must know to load. `max_model_len` fixes the RoPE tables; 0 threads means choose.

    kv_cache_dtype int8 and fp8 keep keys and values with one float32 scale per token and head: half the memory and
    traffic; "auto" is what the backend does best with. Of a GPU's memory gpu_memory_utilization may be used: layers
    that do not fit, those beyond gpu_layers, and cpu_offload_bytes of them at least, are the host's instead.
    deterministic asks for logits that do not depend on what else
    is in the batch, which the other backends give in any case; enforce_eager for no CUDA graphs.
    """

    max_model_len: int
    num_threads: int = 0
    kv_cache_dtype: KvCacheDtype = "auto"
    isa: str | None = None  # cpu backend: "avx512_bf16", "avx512", "avx_vnni", "avx2", "scalar"; None is the best
    device: str | None = None  # torch backend: "cuda", "cuda:1", "xpu", "mps", "cpu"; None is the best at hand
    dtype: str = "auto"  # torch backend: of weights and activations
    deterministic: bool = False
    enforce_eager: bool = False  # torch backend
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION  # torch backend, the next ones too
    gpu_layers: int | None = None
    cpu_offload_bytes: int = 0
    tensor_parallel_size: int = 1  # torch backend, the next one too
    pipeline_parallel_size: int = 1
    source: WeightSource | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequestError naming the field."""
        check_count("max_model_len", self.max_model_len, 1, MAX_MODEL_LEN)
        check_count("num_threads", self.num_threads, 0)
        check_choice("kv_cache_dtype", self.kv_cache_dtype, get_args(KvCacheDtype))
        check_optional_text("isa", self.isa)
        check_device("device", self.device)
        check_choice("dtype", self.dtype, DTYPES)
        check_flag("deterministic", self.deterministic)
        check_flag("enforce_eager", self.enforce_eager)
        check_optional_share("gpu_memory_utilization", self.gpu_memory_utilization)
        check_optional_count("gpu_layers", self.gpu_layers, 0)
        check_count("cpu_offload_bytes", self.cpu_offload_bytes, 0)
        check_count("tensor_parallel_size", self.tensor_parallel_size, 1, MAX_PARALLEL_SIZE)
        check_count("pipeline_parallel_size", self.pipeline_parallel_size, 1, MAX_PARALLEL_SIZE)
        if not isinstance(self.source, WeightSource | None):
            raise refusal("source", self.source, "a WeightSource or None")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheGroup:
    """Layers that share one block table.

    A `full` group keeps every token; a `window` group needs only the last `window` tokens, so the
    engine frees blocks that fall behind it (their table entries become -1).
    """

    kind: CacheKind
    block_bytes: int
    block_size: int
    window: int | None = None


def window_groups(windows: ListLike[int | None], block_bytes: ListLike[int], block_size: int) -> tuple[CacheGroup, ...]:
    """A group for each window, of which None is full attention, and what a block of each takes."""
    return tuple(
        CacheGroup(kind="full" if window is None else "window", block_bytes=size, block_size=block_size, window=window)
        for window, size in zip(windows, block_bytes, strict=True)
    )


CARRIED_STATE = -math.inf


class SamplerKind(IntEnum):
    """One step of a row's chain, and what its three values are; see docs/sampling.md for the definition."""

    PENALTIES = 0
    DRY = 1
    TOP_N_SIGMA = 2  # n
    TOP_K = 3  # k
    TYPICAL_P = 4  # mass, min_keep
    TOP_P = 5  # mass, min_keep
    MIN_P = 6  # share, min_keep
    XTC = 7  # probability, threshold, min_keep
    TEMPERATURE = 8  # temperature, range, exponent
    MIROSTAT_1 = 9  # tau, eta; only as the last step
    MIROSTAT_2 = 10  # tau, eta; only as the last step
    ADAPTIVE_P = 11  # target, decay; only as the last step


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingArrays:
    """How to choose a token for each sampled row r in [0, R). See docs/sampling.md for the definition.

    Sparse parts are CSR: row r owns entries start[r]:start[r + 1]. A row without a chain follows the default order,
    with temperature, top_k, top_p and min_p; a row with one follows that instead, and draws unless temperature is 0.
    """

    temperature: Float32  # [R] 0 is greedy
    top_k: Int32  # [R] 0 is all
    top_p: Float32  # [R] 1 is all
    min_p: Float32  # [R] 0 is all
    repetition_penalty: Float32  # [R] 1 is none
    presence_penalty: Float32  # [R]
    frequency_penalty: Float32  # [R]
    seed: UInt64  # [R]
    sample_index: Int32  # [R] which of n
    position: Int32  # [R] absolute position of the token being chosen
    history_start: Int32  # [R + 1] distinct ids seen by a row that has penalties; else empty
    history_ids: Int32  # [N] -1: the token a row is computed from, where that is carried; may be another id, too
    history_counts: Int32  # [N] occurrences in the output; 0: in the prompt only; of what is carried without that one
    bias_start: Int32  # [R + 1]
    bias_ids: Int32  # [M]
    bias_values: Float32  # [M] added to logits; -inf bans
    chain_start: Int32  # [R + 1]
    chain_kinds: Int32  # [C] of SamplerKind
    chain_values: Float32  # [C, 3]
    dry_start: Int32  # [R + 1]
    dry_ids: Int32  # [D] distinct in a row
    dry_values: Float32  # [D] subtracted from logits where the chain says so
    # [R] of rows whose last step carries one: at first as it defines, then StepResult's. CARRIED_STATE: what the step
    # before, which chooses the token that comes from its slot, leaves.
    sampler_state: Float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One step: S sequences, T tokens in sequence order, R rows that want logits, G cache groups.

    The same object may come again with other values in the same arrays: a backend may keep where they lie.
    """

    input_ids: Int32  # [T]
    positions: Int32  # [T], or [3, T] for multimodal rope
    query_start: Int32  # [S + 1] sequence s owns tokens query_start[s]:query_start[s + 1]
    seq_lens: Int32  # [S] tokens of context once this step is done
    block_tables: Int32  # [G, S, max_blocks] block of positions [i * block_size, ...); -1: none
    slot_mapping: Int32  # [G, T] block * block_size + offset each token's keys and values go to
    block_copies: Int32  # [N, 3] (group, src, dst), done before anything is written
    slots: Int32  # [S] a running sequence's fixed number, below max_num_seqs
    carry: Bool  # [S] the last input token is the one sampled last for this slot, not input_ids
    sample_rows: Int32  # [R] token indices, ascending
    targets: Int32  # [R] -1: choose a token; else only score this id (prompt logprobs)
    num_logprobs: Int32  # [R] -1: none; k: the chosen or target id's, and the k best
    sampling: SamplingArrays
    allow_mask: UInt32 | None = None  # [R, ceil(vocab / 32)] bit set: allowed
    adapter_ids: Int32 | None = None  # [S]
    input_embeds: Float32 | None = None  # [T, hidden]
    want_logits: Bool | None = None  # [R] rows whose raw logits are wanted
    want_hidden: bool = False  # final-norm hidden states of the R rows


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step found for its R rows. Logprobs are of the raw logits, before any sampling parameter.

    failures says why some sequences of the batch could not be computed, whose rows then mean nothing; max_tokens, how
    large steps had better be from now on, as larger ones found no memory.
    """

    token_ids: Int32  # [R] chosen, or the target; -1 where the logits hold no finite maximum to choose
    logprobs: Float32  # [R] of token_ids; NaN where not wanted
    ranks: Int32  # [R] 1 + the number of ids with a larger logit; 0 where not wanted
    top_ids: Int32  # [R, K] K = max(num_logprobs), best first, -1 beyond a row's own k
    top_logprobs: Float32  # [R, K]
    sampler_state: Float32  # [R] for the row's next token; NaN where the last step carries none
    logits: Float32 | None = None  # [W, vocab] of the W rows that want them, in their order
    logit_rows: Int64 | None = None  # [W] which these are, ascending
    hidden: Float32 | None = None  # [R, hidden]
    failures: Mapping[int, TuiliError] = field(default_factory=dict)  # by s in [0, S)
    max_tokens: int | None = None

    def logits_of(self, row: int) -> Float32:
        """The raw logits [vocab] of a row that wants them."""
        assert self.logits is not None
        assert self.logit_rows is not None
        place = int(np.searchsorted(self.logit_rows, row))
        assert self.logit_rows[place] == row, "a row's logits were not asked for"
        logits: Float32 = self.logits[place]
        return logits


def empty_result(batch: Batch, vocab_size: int, hidden_size: int) -> StepResult:
    """Arrays of a batch's shapes to be filled in: nothing is chosen, wanted or scored yet."""
    num_rows, k = len(batch.sample_rows), min(vocab_size, int(batch.num_logprobs.max(initial=0)))
    logit_rows = None if batch.want_logits is None else np.flatnonzero(batch.want_logits)
    return StepResult(
        token_ids=np.full(num_rows, -1, np.int32),
        logprobs=np.full(num_rows, np.nan, np.float32),
        ranks=np.zeros(num_rows, np.int32),
        top_ids=np.full((num_rows, k), -1, np.int32),
        top_logprobs=np.full((num_rows, k), np.nan, np.float32),
        sampler_state=np.full(num_rows, np.nan, np.float32),
        logits=None if logit_rows is None else np.empty((len(logit_rows), vocab_size), np.float32),
        logit_rows=logit_rows,
        hidden=np.empty((num_rows, hidden_size), np.float32) if batch.want_hidden else None,
    )


def refuse_unread(batch: Batch, backend_name: str) -> None:
    """Raises UnsupportedModelError naming the fields that no backend reads yet."""
    unread = {
        "adapter_ids": batch.adapter_ids is not None,
        "input_embeds": batch.input_embeds is not None,
        "positions [3, T]": batch.positions.ndim != 1,
    }
    if names := [name for name, is_used in unread.items() if is_used]:
        raise UnsupportedModelError(f"batch: the {backend_name} backend does not implement {', '.join(names)}")


class Choices(NamedTuple):
    """What was chosen from given logits."""

    token_ids: Int32  # [R]
    sampler_state: Float32  # [R] as in StepResult


class StepHandle(Protocol):
    """A step under way."""

    def result(self) -> StepResult:
        """Waits for the step. Raises EngineUnavailableError when the device failed."""


class Backend(Protocol):
    """A loaded model. One thread at a time."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def is_asynchronous(self) -> bool:
        """Whether execute() returns before the step is done: the next step may be handed over meanwhile.

        Steps are computed in the order in which they came. A batch may then `carry` what one before it chooses.
        """

    @property
    def num_stages(self) -> int:
        """Steps that it computes at the same time, each in another part of the model, as long as the later ones carry
        nothing; 1: one after the other. More only where it is asynchronous.
        """

    def cache_groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        """The block tables this model needs, and what a block of each costs."""

    def allocate_cache(self, num_blocks: ListLike[int]) -> None:
        """Allocates num_blocks[g] blocks for each group; may be called again to resize when idle.

        Raises InsufficientMemoryError.
        """

    def execute(self, batch: Batch) -> StepHandle:
        """Runs one step, or begins to; it reads the batch before it returns.

        Refuses by name any field it does not implement (UnsupportedModelError).
        """

    def sample(self, logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
        """The same sampler on given logits [R, vocab]."""

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRoom:
    """Bytes of a device's memory, measured: who has them, and what `utilization` of the whole leaves to a cache."""

    device: str
    total_bytes: int
    other_bytes: int  # of other processes and of the driver
    weight_bytes: int  # all that is kept from step to step
    step_bytes: int  # what the largest step takes beside that
    utilization: float

    @property
    def free_bytes(self) -> int:
        """What nobody has."""
        return max(0, self.total_bytes - self.other_bytes - self.weight_bytes - self.step_bytes)

    @property
    def cache_bytes(self) -> int:
        """What a cache may have."""
        return max(0, self.free_bytes - self.total_bytes + int(self.total_bytes * self.utilization))


@runtime_checkable
class MeasuredBackend(Protocol):
    """A backend that may have a device with a memory of its own."""

    def measure_room(self, config: EngineConfig, utilization: float) -> DeviceRoom | None:
        """Runs the largest step that the limits allow, without a cache to speak of; None where memory is the host's.

        What was cached before is gone. Raises InsufficientMemoryError where not even that step runs.
        """


@runtime_checkable
class SwappingBackend(Protocol):
    """A backend that can keep blocks of its cache in host memory."""

    def allocate_swap(self, num_blocks: ListLike[int]) -> float:
        """Makes room for so many blocks of each group there, beside a cache that is allocated already.

        Returns the seconds that a byte is under way. Raises InsufficientMemoryError.
        """

    def swap_out(self, copies: Int32) -> None:
        """[N, 3] (group, block, host block): after all steps so far, before all later ones."""

    def swap_in(self, copies: Int32) -> None:
        """[N, 3] (group, host block, block): the same."""


@runtime_checkable
class GivesBlocksBack(Protocol):
    """A Backend whose blocks can be without memory while nobody holds them."""

    def give_back_blocks(self, group: int, blocks: ListLike[int]) -> None:
        """Gives the memory of blocks back to the system and their content up. They take some again once written."""


class TokenConstraint(Protocol):
    """Limits what may be chosen next (grammars). Belongs to one sequence."""

    def fill(self, mask: UInt32) -> None:
        """Writes the allowed ids into mask [ceil(vocab / 32)]."""

    def commit(self, token_id: int) -> None: ...

    def rollback(self, num_tokens: int) -> None: ...
