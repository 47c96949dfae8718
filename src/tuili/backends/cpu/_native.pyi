"""The C++ runtime (csrc/bindings/bindings.cpp). Arrays must have the dtype and shape that tuili.backend states."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tuili.backend import Batch, Float32, Int32, SamplingArrays, UInt32
from tuili.models.spec import ModelSpec

MAX_THREADS: int

class Model:
    """Raises ValueError naming a field that is out of range, MemoryError."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        max_model_len: int,
        layer_groups: list[int],
        layer_ropes: list[int],
        layer_slopes: list[tuple[float, ...]],
        ropes: list[tuple[Float32, float]],
        read_tensors: Callable[[list[str]], list[tuple[str, tuple[int, ...], NDArray[np.uint8]]]],
        isa: str | None,
        num_threads: int,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def cache_block_bytes(self, format: str, group: int, block_size: int) -> int: ...
    def allocate_cache(self, format: str, block_size: int, num_blocks: list[int]) -> None: ...
    def give_back_blocks(self, group: int, blocks: list[int]) -> None: ...
    def sample(
        self,
        logits: Float32,
        sampling: SamplingArrays,
        allow_mask: UInt32 | None,
        ids: Int32,
        sampler_state: Float32,
    ) -> None: ...

class Step:
    """A step over arrays that stay where they are; `run` reads what is in them then.

    With is_view it may run again. Raises ValueError naming an array or value, MemoryError.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        token_ids: Int32,
        logprobs: Float32,
        ranks: Int32,
        top_ids: Int32,
        top_logprobs: Float32,
        sampler_state: Float32,
        logits: Float32 | None,
        hidden: Float32 | None,
    ) -> None: ...
    def run(self) -> None: ...
    @property
    def is_view(self) -> bool: ...

def packed_bytes(format: str, rows: int, cols: int) -> int:
    """Bytes of a matrix of that format once it is packed. ValueError for a format without kernels."""

def cache_plane_bytes(format: str, head_dim: int, block_size: int) -> int:
    """Bytes of one KV head's keys and values in one block of one layer. ValueError."""

def cpu_name() -> str: ...
def cpu_features() -> list[str]: ...
def best_isa() -> str: ...
def has_isa(name: str) -> bool: ...
def quantize_weights(
    target: str,
    source: str,
    data: NDArray[np.uint8],
    cols: int,
    out: NDArray[np.uint8],
    num_threads: int,
    isa: str = "",
) -> bool:
    """Fills `out` [rows, row bytes]; False: a weight was not finite. Raises ValueError naming what does not fit."""

def read_bandwidth(num_threads: int, num_bytes: int, seconds: float, isa: str | None = None) -> float:
    """Bytes per second that the threads together read from one buffer: the median pass. MemoryError, ValueError."""

def peak_ops(num_threads: int, seconds: float, isa: str | None = None) -> dict[str, float]:
    """Operations per second (a multiply-add is two) of the threads together, in registers: `int8` dot products with
    exact sums, and `float32` multiply-adds. ValueError."""
