"""A model's facts from its spec and its files' headers: sizes, formats, layers in words, the cache."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tuili import quant
from tuili.backend import CacheGroup
from tuili.models.shapes import norm_names, tensor_shapes
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec
from tuili.quant.format import Tensor
from tuili.runtime.explain.facts import CacheFacts, LayerGroup, Matrix, ModelFacts
from tuili.weights.checkpoint import Checkpoint
from tuili.weights.quantizing import target_format
from tuili.weights.recipes import find_recipe
from tuili.weights.tensor_table import TensorTable

_POSITIONS = {
    "rope": "rotary (RoPE): queries and keys are turned by an angle that grows with their position",
    "learned": "learned: a vector per position is added to the embedding",
    "alibi": "ALiBi: the farther a key lies back, the more is subtracted from its score",
    "none": "none",
}
_NORMS = {"rms": "RMSNorm", "layer": "LayerNorm"}
_MIN_CURVE_BLOCKS = 8
_MAX_STAIRS = 64


def describe_as_run(checkpoint: Checkpoint, quantization: str | None) -> Checkpoint:
    """The checkpoint with weights in the formats they are loaded in; those of a recipe have sizes and no values."""
    if quantization in (None, "gguf"):
        return checkpoint
    recipe, spec = find_recipe(str(quantization)), checkpoint.spec

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        stored = quant.BY_NAME[checkpoint.weights.stored_format(name)]
        found = target_format(stored, shape, recipe, name, spec)
        size = math.prod(shape[:-1]), found.row_bytes(shape[-1])
        return Tensor(found, shape, np.broadcast_to(np.uint8(0), size))  # takes no memory

    weights = TensorTable({name: partial(weight, name, shape) for name, shape in tensor_shapes(spec).items()})
    return replace(checkpoint, weights=weights)


def model_facts(name: str, checkpoint: Checkpoint) -> ModelFacts:
    """Sizes and formats, from headers."""
    spec, formats = checkpoint.spec, Counter[str]()
    num_parameters = 0
    for tensor in checkpoint.weights.values():
        formats[tensor.format.name] += tensor.num_bytes
        num_parameters += math.prod(tensor.shape)
    return ModelFacts(
        name=name,
        family=spec.family,
        num_parameters=num_parameters,
        num_bytes=formats.total(),
        formats=tuple(formats.most_common()),
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        max_position=spec.max_position,
        norm=_NORMS[spec.norm],
        position=_POSITIONS[spec.position],
        is_head_tied=spec.tie_word_embeddings,
        read_per_token=_read_per_token(checkpoint),
    )


def _read_per_token(checkpoint: Checkpoint) -> tuple[tuple[str, int], ...]:
    """Experts count whole, though a token needs few of them."""
    head = "embed_tokens.weight" if checkpoint.spec.tie_word_embeddings else "lm_head.weight"
    parts = Counter[str]()
    for name, tensor in checkpoint.weights.items():
        leaf = name.split(".")[-2]
        if leaf in ("q_proj", "k_proj", "v_proj", "o_proj"):
            parts["attention"] += tensor.num_bytes
        elif leaf in ("gate_proj", "up_proj", "down_proj"):
            parts["MLP"] += tensor.num_bytes
        elif name == head:
            parts["head"] += tensor.num_bytes
    return tuple(parts.most_common())


def layer_groups(checkpoint: Checkpoint, kv_bytes_per_value: float) -> tuple[LayerGroup, ...]:
    """Layers that are alike, together, in the order in which each kind first appears."""
    spec, alike = checkpoint.spec, dict[LayerSpec, list[int]]()
    for i, layer in enumerate(spec.layers):
        alike.setdefault(layer, []).append(i)
    return tuple(_group(checkpoint, layer, numbers, kv_bytes_per_value) for layer, numbers in alike.items())


def _group(checkpoint: Checkpoint, layer: LayerSpec, numbers: Sequence[int], value_bytes: float) -> LayerGroup:
    a = layer.mixer
    assert isinstance(a, AttentionSpec)
    prefix = f"layers.{numbers[0]}."
    matrices = tuple(
        Matrix(name.removeprefix(prefix), tensor.shape, tensor.format.name, tensor.num_bytes)
        for name in tensor_shapes(checkpoint.spec)
        if name.startswith(prefix) and (tensor := checkpoint.weights[name])
    )
    return LayerGroup(
        attention=_attention_kind(a),
        num_heads=a.num_heads,
        num_kv_heads=a.num_kv_heads,
        layers=tuple(numbers),
        steps=tuple(_steps(checkpoint.spec, layer, a)),
        matrices=matrices,
        kv_bytes_per_token=round(2 * a.num_kv_heads * a.head_dim * value_bytes),
        window=a.sliding_window,
    )


def _attention_kind(a: AttentionSpec) -> str:
    if a.num_kv_heads == a.num_heads:
        return "MHA"
    return "MQA" if a.num_kv_heads == 1 else "GQA"


def _steps(spec: ModelSpec, layer: LayerSpec, a: AttentionSpec) -> Iterable[str]:
    """What one such layer does to a hidden state x [hidden], in order."""
    hidden, norm, names = spec.hidden_size, _NORMS[spec.norm], norm_names(layer)
    if "attn_norm" in names:
        yield f"{norm} scales x [{hidden}] to unit size, times learned gains"
    heads, kv_heads = _heads(a.num_heads), _heads(a.num_kv_heads)
    yield f"x becomes queries ({heads}), keys and values ({kv_heads} each) of {a.head_dim} numbers"
    if a.qk_norm != "none":
        yield "queries and keys are normed too, so that scores stay in range"
    if a.rope is not None:
        turned = "" if a.rope.dim == a.head_dim else f" the first {a.rope.dim} numbers of"
        yield f"RoPE turns{turned} queries and keys by angles that grow with position (base {a.rope.theta:g})"
    elif spec.position == "alibi":
        yield "scores lose a head's slope times the distance (ALiBi)"
    yield "the key and the value go into the KV cache; earlier tokens' are read back from it"
    reach = "all tokens up to its own" if a.sliding_window is None else f"the last {a.sliding_window} tokens"
    yield f"each query scores {reach} (q . k x {a.scale:.4g}), softmax makes weights of it that sum to 1"
    per_kv = a.num_heads // a.num_kv_heads
    shared = (
        "every query head has a key and value head of its own" if per_kv == 1 else f"{per_kv} query heads share one"
    )
    yield f"values are added up by these weights ({_attention_kind(a)}: {shared}); o_proj makes [{hidden}] of them"
    if "attn_post_norm" in names:
        yield f"{norm} once more, after attention"
    if layer.parallel:
        yield "the MLP works on the same input at the same time, and both are added to x"
    else:
        yield "the result is added to x (the residual stream)"
    yield from _mlp_steps(layer.mlp, hidden, norm if "mlp_norm" in names else None)
    if "mlp_post_norm" in names:
        yield f"{norm} once more, after the MLP"
    yield "and added to x again" if not layer.parallel else "x goes on to the next layer"


def _heads(count: int) -> str:
    return "1 head" if count == 1 else f"{count} heads"


def _mlp_steps(mlp: MlpSpec | MoeSpec, hidden: int, norm: str | None) -> Iterable[str]:
    if norm is not None:
        yield f"{norm} again, for the MLP"
    if isinstance(mlp, MoeSpec):
        yield f"a router sends x to {mlp.num_experts_per_tok} of {mlp.num_experts} MLPs"
        mlp = mlp.expert
    wide = mlp.intermediate_size
    gate = f"{mlp.activation}(gate) x up" if mlp.gated else f"{mlp.activation}(up)"
    yield f"the MLP widens x from {hidden} to {wide} numbers, {gate}, and back: {hidden}"


def cache_facts(
    spec: ModelSpec, groups: Sequence[CacheGroup], num_prompt: int, num_tokens: int, max_len: int
) -> CacheFacts:
    """What the cache holds after the prompt, after the answer and at max_len tokens."""
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    kv_heads, heads = sum(a.num_kv_heads * a.head_dim for a in mixers), sum(a.num_heads * a.head_dim for a in mixers)
    bytes_per_token = sum(group.block_bytes // group.block_size for group in groups)
    return CacheFacts(
        bytes_per_number=bytes_per_token / (2 * kv_heads),
        block_size=groups[0].block_size,
        bytes_per_token=bytes_per_token,
        bytes_after_prompt=_cache_bytes(groups, num_prompt),
        bytes_after_answer=_cache_bytes(groups, num_tokens),
        max_len=max_len,
        bytes_at_max_len=_cache_bytes(groups, max_len),
        as_many_kv_heads=heads / kv_heads,
        growth=_growth(groups, num_tokens, max_len),
    )


def _growth(groups: Sequence[CacheGroup], num_tokens: int, max_len: int) -> tuple[tuple[int, int], ...]:
    """Both ends of each block, for long enough to see this text and, where there are windows, their end."""
    block = groups[0].block_size
    longest = min(
        max(_MIN_CURVE_BLOCKS * block, 2 * num_tokens, *(2 * (group.window or 0) for group in groups)), max_len
    )
    starts = range(0, longest, block * -(-longest // (_MAX_STAIRS * block)))
    ends = sorted({place for start in starts for place in (start, min(start + 1, longest))} | {longest})
    return tuple((tokens, _cache_bytes(groups, tokens)) for tokens in ends)


def _cache_bytes(groups: Sequence[CacheGroup], num_tokens: int) -> int:
    """Bytes of the blocks that a text of this length holds; a window holds one block more than it spans."""
    total = 0
    for group in groups:
        needed = -(-num_tokens // group.block_size)
        if group.window is not None:
            needed = min(needed, -(-group.window // group.block_size) + 1)
        total += needed * group.block_bytes
    return total
