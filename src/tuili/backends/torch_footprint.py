"""What the torch backend takes of a GPU's memory, as arithmetic. Knows a spec's numbers; needs no torch.

The backend checks these numbers against its own measurement where it makes one; `tuili plan` has nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec

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


def layers_that_fit(layers: Sequence[int], caches: Sequence[int], room: int) -> int:
    """How many of the last layers have room with their weights and caches, in bytes of each layer."""
    fitting = 0
    for layer, cache in zip(reversed(layers), reversed(caches), strict=True):
        room -= layer + cache
        if room < 0:
            break
        fitting += 1
    return fitting


def largest_share(spec: ModelSpec, size: int) -> ModelSpec:
    """The most that one of `size` processes has of a model, but for whole groups that quantized columns are cut at."""
    if size == 1:
        return spec
    layers = tuple(_layer_share(layer, size) for layer in spec.layers)
    return replace(spec, layers=layers, vocab_size=-(-spec.vocab_size // size))


def _layer_share(layer: LayerSpec, size: int) -> LayerSpec:
    a, m = layer.mixer, layer.mlp
    assert isinstance(a, AttentionSpec), "the torch backend runs no other"
    assert isinstance(m, MlpSpec), "the torch backend runs no other"
    per_kv = a.num_heads // a.num_kv_heads
    if a.num_kv_heads >= size:
        num_kv = -(-a.num_kv_heads // size)
        num_heads = num_kv * per_kv
    else:  # several have the same key-value head and share its query heads
        num_kv, num_heads = 1, -(-per_kv // (size // a.num_kv_heads))
    mixer = replace(a, num_heads=num_heads, num_kv_heads=num_kv)
    return replace(layer, mixer=mixer, mlp=replace(m, intermediate_size=-(-m.intermediate_size // size)))
