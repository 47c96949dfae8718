"""The forward pass: a ModelSpec and its float32 weights make hidden states and logits. Knows no sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tuili.backend import Batch, Float32, Int32
from tuili.backends.reference.cache import PagedCache
from tuili.backends.reference.layers import (
    ACTIVATIONS,
    attend,
    attention_weights,
    normalize,
    query_factors,
    rotate,
    rotation,
    softcap,
)
from tuili.models.alibi import alibi_slopes
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec

Observer = Callable[[int, Float32], None]  # layer number, array
Rotations = Mapping[RopeSpec, tuple[Float32, Float32]]


@dataclass(frozen=True, slots=True)
class Step:
    """What every layer of one step needs: the batch, and cos and sin of its positions for each rotary embedding."""

    batch: Batch
    rotations: Rotations


class Forward:
    """Runs any decoder of softmax attention and dense MLPs.

    weights: canonical names -> float32 arrays, exactly those of tensor_shapes(spec). context_len is the longest text
    there will be (max_model_len); rotary frequencies depend on it. Observers are shown, of each layer, the hidden
    states [T, hidden] that leave it (as layer -1 those that enter the first), and the attention weights
    [num_heads, queries, keys] of each sequence.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Float32],
        context_len: int,
        *,
        observe_hidden: Observer | None = None,
        observe_attention: Observer | None = None,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._context_len = context_len
        self._observe_hidden = observe_hidden
        self._observe_attention = observe_attention
        self._mixers = tuple(y.mixer for y in spec.layers if isinstance(y.mixer, AttentionSpec))
        assert len(self._mixers) == len(spec.layers)

    def hidden(self, batch: Batch, input_ids: Int32, cache: PagedCache) -> Float32:
        """Hidden states [T, hidden] after the last layer, before the final norm; keys and values go to the cache."""
        cache.copy_blocks(batch.block_copies)
        ropes = {a.rope for a in self._mixers if a.rope is not None}
        step = Step(batch, {rope: rotation(rope, batch.positions, self._context_len) for rope in ropes})
        x = self._embed(input_ids, batch.positions)
        if self._observe_hidden is not None:
            self._observe_hidden(-1, x)
        for i, layer in enumerate(self._spec.layers):
            x = self._layer(i, layer, x, step, cache)
            if self._observe_hidden is not None:
                self._observe_hidden(i, x)
        return x

    def final_norm(self, x: Float32) -> Float32:
        return self._norm("norm", x) if self._spec.final_norm else x

    def logits(self, x: Float32) -> Float32:
        """Raw logits [R, vocab] of normed hidden states [R, hidden]."""
        spec = self._spec
        if "project_out.weight" in self._weights:
            x = self._linear("project_out", x)
        if spec.tie_word_embeddings:
            logits = x @ self._weights["embed_tokens.weight"].T
            logits = logits + self._weights["lm_head.bias"] if spec.lm_head_bias else logits
        else:
            logits = self._linear("lm_head", x)
        if spec.logit_scale != 1.0:
            logits = logits * np.float32(spec.logit_scale)
        return logits if spec.logit_softcap is None else softcap(logits, spec.logit_softcap)

    def _embed(self, input_ids: Int32, positions: Int32) -> Float32:
        spec = self._spec
        x: Float32 = self._weights["embed_tokens.weight"][input_ids] * np.float32(spec.embedding_scale)
        if "project_in.weight" in self._weights:
            x = self._linear("project_in", x)
        if spec.position == "learned":
            x = x + self._weights["embed_positions.weight"][positions + spec.position_offset]
        return self._norm("embed_norm", x) if spec.embedding_norm else x

    def _layer(self, i: int, layer: LayerSpec, x: Float32, step: Step, cache: PagedCache) -> Float32:
        def norm(name: str, value: Float32) -> Float32:
            return self._norm(f"layers.{i}.{name}", value)

        assert isinstance(layer.mlp, MlpSpec)
        scale = np.float32(layer.residual_scale)
        if layer.parallel:
            h = norm("attn_norm", x)
            mlp_input = norm("mlp_norm", x) if layer.parallel_norms == 2 else h
            return x + scale * (self._attention(i, h, step, cache) + self._mlp(i, layer.mlp, mlp_input))
        is_input_normed, is_output_normed = layer.norms in ("pre", "sandwich"), layer.norms in ("sandwich", "output")
        h = self._attention(i, norm("attn_norm", x) if is_input_normed else x, step, cache)
        x = x + scale * (norm("attn_post_norm", h) if is_output_normed else h)
        x = norm("attn_post_norm", x) if layer.norms == "post" else x
        h = self._mlp(i, layer.mlp, norm("mlp_norm", x) if is_input_normed else x)
        x = x + scale * (norm("mlp_post_norm", h) if is_output_normed else h)
        return norm("mlp_post_norm", x) if layer.norms == "post" else x

    def _attention(self, i: int, x: Float32, step: Step, cache: PagedCache) -> Float32:
        a, group = self._mixers[i], cache.group_of(i)
        queries = self._heads(i, "q", x, a.num_heads, step)
        if a.query_scaling is not None:
            queries = queries * query_factors(a.query_scaling, step.batch.positions)
        keys = self._heads(i, "k", x, a.num_kv_heads, step)
        values = self._linear(f"layers.{i}.v_proj", x).reshape(len(x), a.num_kv_heads, a.head_dim)
        cache.write(i, step.batch.slot_mapping[group], keys, values)
        slopes = self._alibi_slopes(a)
        sinks = self._weights[f"layers.{i}.sinks.weight"] if a.sinks else None
        out = np.empty((len(x), a.num_heads * a.head_dim), np.float32)
        bounds = step.batch.query_start.tolist()
        for s, (begin, end) in enumerate(pairwise(bounds)):
            seq_len = int(step.batch.seq_lens[s])
            query_start = seq_len - (end - begin)
            key_start = 0 if a.sliding_window is None else max(0, query_start - a.sliding_window + 1)
            seen_keys, seen_values = cache.read(i, step.batch.block_tables[group, s], key_start, seq_len)
            where = (query_start, key_start, slopes, sinks)
            out[begin:end] = attend(a, queries[begin:end], seen_keys, seen_values, *where)
            if self._observe_attention is not None:
                weights = attention_weights(a, queries[begin:end], seen_keys, *where)
                self._observe_attention(i, weights.reshape(a.num_heads, end - begin, -1))
        return self._linear(f"layers.{i}.o_proj", out)

    def _alibi_slopes(self, a: AttentionSpec) -> Float32 | None:
        if self._spec.position != "alibi":
            return None
        return np.array(alibi_slopes(a.num_heads, self._spec.alibi_scale), np.float32)

    def _heads(self, i: int, which: str, x: Float32, num_heads: int, step: Step) -> Float32:
        """Normed and rotated queries or keys [T, num_heads, head_dim]."""
        a, norm = self._mixers[i], f"layers.{i}.{which}_norm"
        heads = self._linear(f"layers.{i}.{which}_proj", x)
        if a.qk_norm == "full":
            heads = self._norm(norm, heads)
        heads = heads.reshape(len(x), num_heads, a.head_dim)
        if a.qk_norm in ("head", "each_head"):  # gains are [head_dim] or [num_heads, head_dim]
            heads = self._norm(norm, heads)
        return heads if a.rope is None else rotate(heads, *step.rotations[a.rope])

    def _mlp(self, i: int, m: MlpSpec, x: Float32) -> Float32:
        activation, up = ACTIVATIONS[m.activation], self._linear(f"layers.{i}.up_proj", x)
        inner = activation(self._linear(f"layers.{i}.gate_proj", x)) * up if m.gated else activation(up)
        return self._linear(f"layers.{i}.down_proj", inner)

    def _linear(self, name: str, x: Float32) -> Float32:
        y: Float32 = x @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: Float32) -> Float32:
        gain, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        return normalize(x, gain, bias, self._spec.norm_eps, self._spec.norm)
