"""Tokens per second to expect: a model's bytes and operations over what this machine was just seen to do.

A step reads every weight once and multiplies it with every row; the shares of a machine's peak that the kernels
reach in a whole step are measured ones (docs/performance.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter, process_time

from tuili.backend import CacheGroup
from tuili.backends.cpu import _native
from tuili.models.spec import AttentionSpec, ModelSpec

PREFILL_SHARE = 0.44  # of the peak of integer products
DECODE_SHARE = 0.33
ATTENTION_SHARE = 0.30  # of the peak of float32
STEP_S, LAYER_S = 40e-6, 20e-6  # of Python between steps, and of waiting between a layer's stages
TOLERANCE = 0.2  # how far measured speeds lie from expected ones, on a machine that does nothing else
QUIET_SHARE = 0.9  # of the processors' time; with less, something else worked beside the probe
_PROBE_BYTES = 128 << 20  # beyond what caches hold
_PREFILL_LEN = 512
_FLOAT_FORMATS = frozenset(("F32", "F16", "BF16"))

Groups = tuple[CacheGroup, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSpeed:
    """What the threads do together, per second.

    cpu_share: how much of the threads' time the system gave them meanwhile; 1: nothing else worked.
    """

    num_threads: int
    read_bytes: float
    int8_operations: float
    float32_operations: float
    cpu_share: float = 1.0

    @property
    def is_quiet(self) -> bool:
        return self.cpu_share >= QUIET_SHARE

    @staticmethod
    def measure(num_threads: int, seconds: float = 1.0) -> MachineSpeed:
        """Half the time for memory, half for operations; touching the memory comes on top."""
        begun, begun_cpu = perf_counter(), process_time()
        peak = _native.peak_ops(num_threads, seconds / 2)
        read_bytes = _native.read_bandwidth(num_threads, _PROBE_BYTES, seconds / 2)
        elapsed_s, cpu_s = perf_counter() - begun, process_time() - begun_cpu
        return MachineSpeed(
            num_threads=num_threads,
            read_bytes=read_bytes,
            cpu_share=min(1.0, cpu_s / (elapsed_s * num_threads)),
            int8_operations=peak["int8"],
            float32_operations=peak["float32"],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelWork:
    """What a step does: products with integer and float weights, of layers and of the head; bytes it reads."""

    layer_weights: dict[bool, int]  # is a float format -> number of weights
    head_weights: dict[bool, int]
    read_bytes: int
    num_layers: int
    attention: tuple[tuple[int, int | None], ...]  # of each layer: heads times their dimension, window
    cache_groups: Groups

    @staticmethod
    def of(
        spec: ModelSpec,
        stored: dict[str, tuple[str, tuple[int, ...]]],
        weight_bytes: int,
        groups: tuple[CacheGroup, ...],
    ) -> ModelWork:
        head = "embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
        layers, heads, unread = {False: 0, True: 0}, {False: 0, True: 0}, 0
        for name, (weight_format, shape) in stored.items():
            if name == head:
                heads[weight_format in _FLOAT_FORMATS] += math.prod(shape)
            elif name.startswith("layers.") and len(shape) == 2:
                layers[weight_format in _FLOAT_FORMATS] += math.prod(shape)
            elif name == "embed_tokens.weight":  # a row of it for each token
                unread = weight_bytes * math.prod(shape) // sum(math.prod(s) for _, s in stored.values())
        mixers = [y.mixer for y in spec.layers if isinstance(y.mixer, AttentionSpec)]
        return ModelWork(
            layer_weights=layers,
            head_weights=heads,
            read_bytes=weight_bytes - unread,
            num_layers=spec.num_layers,
            attention=tuple((a.num_heads * a.head_dim, a.sliding_window) for a in mixers),
            cache_groups=groups,
        )

    def prefill_tokens_per_s(self, machine: MachineSpeed, ctx: int) -> float:
        """Of one prompt of _PREFILL_LEN tokens, or of the context where that is shorter."""
        length = min(_PREFILL_LEN, ctx)
        products = length * _product_s(self.layer_weights, machine, PREFILL_SHARE)
        attention = length * self._attention_s(machine, length / 2)
        return length / (products + attention + self._fixed_s())

    def decode_tokens_per_s(self, machine: MachineSpeed, num_seqs: int, context_len: int) -> float:
        """Of `num_seqs` sequences together, each with so many tokens behind it."""
        cached = sum(g.block_bytes / g.block_size * _seen(context_len, g.window) for g in self.cache_groups)
        read_s = (self.read_bytes + num_seqs * cached) / machine.read_bytes
        products = sum(_product_s(w, machine, DECODE_SHARE) for w in (self.layer_weights, self.head_weights))
        compute_s = num_seqs * (products + self._attention_s(machine, context_len))
        # Reading goes on while products are computed, but not perfectly so.
        return num_seqs / (math.hypot(read_s, compute_s) + self._fixed_s())

    def _attention_s(self, machine: MachineSpeed, context_len: float) -> float:
        """Of one token: scores and weighted sum, two operations a key and a value's entry."""
        entries = sum(size * _seen(context_len, window) for size, window in self.attention)
        return 4 * entries / (machine.float32_operations * ATTENTION_SHARE)

    def _fixed_s(self) -> float:
        return STEP_S + self.num_layers * LAYER_S


def _seen(context_len: float, window: int | None) -> float:
    """How many of the tokens behind it a layer looks at."""
    return context_len if window is None else min(context_len, window)


def _product_s(weights: dict[bool, int], machine: MachineSpeed, share: float) -> float:
    """Of one row."""
    rates = {False: machine.int8_operations, True: machine.float32_operations}
    return sum(2 * count / (rates[is_float] * share) for is_float, count in weights.items())
