"""What the torch backend takes of a GPU's memory, as arithmetic. Knows a spec's numbers; needs no torch.

The backend checks these numbers against its own measurement where it makes one; `tuili plan` has nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tuili.backend import CacheGroup, window_groups
from tuili.config import KvCacheDtype
from tuili.models.spec import AttentionSpec, MlpSpec, ModelSpec, MoeSpec
from tuili.quant import BY_NAME

CHUNK = 256  # keys that a decode's attention folds at a time
DECODE_SCRATCH = 128 << 20  # bytes of chunks' sums that exist at one time, unless a single text needs more
TILE_LOGITS = 1 << 27  # that exist at one time
PART_LOGITS = 1 << 24  # drawn at one time
WORK_SHARE = 0.1  # of what is granted, where layers are placed: steps work in it
LEAST_CONTEXT = 4096  # tokens that a cache then has room for, whatever else there is
MAX_GRAPH_LOGIT_BYTES = 1 << 28  # of the buffer that all graphs write their logits to
SUPPORTED = frozenset(
    (
        *("activation=gelu", "activation=gelu_tanh", "activation=relu", "activation=relu2", "gated=False", "mlp.bias"),
        *("q_bias", "k_bias", "v_bias", "out_bias", "qk_norm=head", "qk_norm=each_head", "qk_norm=full"),
        *("rope=None", "sliding_window", "attention.logit_softcap", "sinks", "query_scaling"),
        *("norms=post", "norms=sandwich", "norms=output", "parallel", "parallel_norms=2", "residual_scale"),
        *("norm=layer", "norm_bias", "final_norm=False", "embedding_norm", "embedding_scale", "embedding_size"),
        *("logit_scale", "logit_softcap", "lm_head_bias", "position=learned", "position=alibi", "position=none"),
    )
)
PACKED = frozenset(("Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"))  # formats that stay packed on a GPU
CACHE_BYTES: Mapping[KvCacheDtype, int] = {"bfloat16": 2, "int8": 1, "fp8": 1}  # of a value; "auto": the model's dtype
_DRAW_BYTES = 60  # of each logit that is drawn with samplers
_FLOAT_BYTES = 4
_LOGIT_COPIES = 4  # as the head makes them, put side by side, as probabilities, and as scores
_SLACK = 1.25  # allocations are rounded up, and lie where others leave room


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSize:
    """What makes a step large."""

    num_tokens: int
    num_rows: int  # whose logits are computed
    num_sequences: int
    context_len: int  # of the longest text
    num_kept_rows: int = 0  # whose logits are handed out
    num_drawn: int | None = None  # rows with samplers; None: all


def decode_scratch_bytes(num_heads: int, head_dim: int, num_sequences: int, context_len: int) -> int:
    """Of the sums that a decode's attention merges, in one layer."""
    one = num_heads * -(-context_len // CHUNK) * (head_dim + 2) * _FLOAT_BYTES
    return one * min(num_sequences, max(1, DECODE_SCRATCH // one))


class StepFootprint:
    """Of one model's steps."""

    def __init__(self, spec: ModelSpec, item_bytes: int) -> None:
        """item_bytes: of the model's dtype."""
        mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
        widths = [_mixer_width(layer.mixer) for layer in spec.layers] + [_mlp_width(layer.mlp) for layer in spec.layers]
        self._vocab_size = spec.vocab_size
        self._flow_bytes = 4 * spec.hidden_size * item_bytes  # of a token, between layers
        self._token_bytes = self._flow_bytes + max(widths) * item_bytes  # within one
        self._heads = {(a.num_heads, a.head_dim, a.sliding_window) for a in mixers}

    def step_bytes(self, size: StepSize) -> int:
        """Of activations, logits and scratch, while the step runs."""
        layers = size.num_tokens * self._token_bytes + self._scratch_bytes(size.num_sequences, size.context_len)
        head = size.num_tokens * self._flow_bytes + logit_bytes(self._vocab_size, size)
        return int(_SLACK * max(layers, head))

    def graph_bytes(self, num_rows: int, context_len: int, *, has_head: bool = True) -> int:
        """Of the graphs of decode steps: logits as model and samplers have them, and the memory that they share."""
        decode = StepSize(num_tokens=num_rows, num_rows=0, num_sequences=num_rows, context_len=context_len, num_drawn=0)
        return 2 * _FLOAT_BYTES * self._vocab_size * num_rows * has_head + self.step_bytes(decode)

    def _scratch_bytes(self, num_sequences: int, context_len: int) -> int:
        """Of attention, in the layer that takes most."""
        seen = [(*heads, context_len if window is None else window + CHUNK) for *heads, window in self._heads]
        return max(
            decode_scratch_bytes(num_heads, head_dim, num_sequences, min(context_len, most))
            for num_heads, head_dim, most in seen
        )


def logit_bytes(vocab_size: int, size: StepSize) -> int:
    """Of logits and of what is made of them, a tile of rows at a time."""
    num_logits = size.num_rows * vocab_size
    drawn = num_logits if size.num_drawn is None else size.num_drawn * vocab_size
    tile = min(num_logits, max(TILE_LOGITS, vocab_size))
    part = min(drawn, max(PART_LOGITS, vocab_size))
    kept = 3 * size.num_kept_rows * vocab_size  # of each tile, together, and on their way back
    return _FLOAT_BYTES * (_LOGIT_COPIES * tile + kept) + _DRAW_BYTES * part


def _mixer_width(mixer: object) -> int:
    """Elements of one token: queries, keys, values, and what attention makes of them."""
    assert isinstance(mixer, AttentionSpec), "the torch backend runs no other"
    return 2 * (mixer.num_heads + mixer.num_kv_heads) * mixer.head_dim


def _mlp_width(mlp: MlpSpec | MoeSpec) -> int:
    assert isinstance(mlp, MlpSpec), "the torch backend runs no other"
    return (3 if mlp.gated else 2) * mlp.intermediate_size


def asked_host_layers(layers: Sequence[int], gpu_layers: int | None, offload_bytes: int) -> int:
    """How many of the first layers, of which the bytes are given, are asked to be on the host."""
    count = 0 if gpu_layers is None else max(0, len(layers) - gpu_layers)
    while count < len(layers) and sum(layers[:count]) < offload_bytes:
        count += 1
    return count


def layers_that_fit(layers: Sequence[int], caches: Sequence[int], room: int) -> int:
    """How many of the last layers have room with their weights and caches, in bytes of each layer."""
    fitting = 0
    for layer, cache in zip(reversed(layers), reversed(caches), strict=True):
        room -= layer + cache
        if room < 0:
            break
        fitting += 1
    return fitting


def kept_bytes(shape: tuple[int, ...], packed: str, item_bytes: int) -> int:
    """Of one weight: vectors are floats; a matrix is as its format has it, where that is in PACKED, else as items."""
    if len(shape) > 1 and packed in PACKED:
        kept = BY_NAME[packed]
        return math.prod(shape) // kept.group_size * kept.group_bytes
    return math.prod(shape) * (_FLOAT_BYTES if len(shape) == 1 else item_bytes)


def cache_groups(
    mixers: Sequence[AttentionSpec], value_bytes: int, block_size: int, own: range | None = None
) -> tuple[CacheGroup, ...]:
    """One group for the layers of full attention, one for each distinct window, in ascending order.

    value_bytes: of a key's or a value's element; single bytes have scales beside them. own: the layers whose bytes
    count, where others are elsewhere; the groups are all layers'.
    """
    windows = cache_windows(mixers)
    counted = mixers if own is None else mixers[own.start : own.stop]
    sizes = [block_size * token_bytes([a for a in counted if a.sliding_window == w], value_bytes) for w in windows]
    return window_groups(windows, sizes, block_size)


def cache_windows(mixers: Sequence[AttentionSpec]) -> tuple[int | None, ...]:
    """Of each group of a cache."""
    return tuple(sorted({a.sliding_window for a in mixers}, key=lambda window: window or 0))


def token_bytes(mixers: Sequence[AttentionSpec], value_bytes: int) -> int:
    """Of one token's keys and values in these layers."""
    scale = _FLOAT_BYTES if value_bytes == 1 else 0
    return sum(2 * a.num_kv_heads * (a.head_dim * value_bytes + scale) for a in mixers)


def largest_groups(of_ranks: Sequence[tuple[CacheGroup, ...]]) -> tuple[CacheGroup, ...]:
    """What every rank has, with the size that is the largest of any: a cache that fits there fits everywhere."""
    most = [max(group.block_bytes for group in same) for same in zip(*of_ranks, strict=True)]
    return tuple(replace(group, block_bytes=size) for group, size in zip(of_ranks[0], most, strict=True))
