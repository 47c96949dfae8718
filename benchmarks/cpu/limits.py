"""What a model asks of the machine: bytes read per decoded token, operations per prefilled token. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu.session import OURS, Row

from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec
from tuili.runtime.bench.workload import Workload
from tuili.weights.checkpoint import open_checkpoint

KV_BYTES = 2  # bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCost:
    """Counts of one model, from its file."""

    weight_bytes: int  # read for one token: every tensor but an embedding that is not the head too
    body_parameters: int  # of the matrices a prompt token goes through: without embedding and head
    kv_bytes_per_token: list[int]  # of each layer
    windows: list[int | None]  # of each layer
    attention_width: list[int]  # heads x head_dim of each layer

    def decode_bytes(self, context: float) -> float:
        """Read from memory to decode one token of one sequence with `context` tokens before it."""
        seen = [min(context, window or context) for window in self.windows]
        return self.weight_bytes + sum(n * s for n, s in zip(self.kv_bytes_per_token, seen, strict=True))

    def prefill_ops(self, num_tokens: int) -> float:
        """Two per multiply-add, scores and values of causal attention included; the head is for one row only."""
        pairs = [min(num_tokens, w or num_tokens) * num_tokens / 2 for w in self.windows]
        attention = sum(4 * width * count for width, count in zip(self.attention_width, pairs, strict=True))
        return 2.0 * self.body_parameters * num_tokens + attention

    def share(self, workload: Workload, row: Row) -> float | None:
        """Of the read probe for one decoding sequence, of the int8 probe for prefill; None where neither applies."""
        rate = row.tokens_per_s[OURS]
        if workload.output_len == 0:
            ops_per_s = self.prefill_ops(workload.prompt_len) / workload.prompt_len * rate
            return ops_per_s / row.peak_int8_ops if row.peak_int8_ops else None
        if workload.num_seqs > 1:
            return None
        context = workload.prompt_len + workload.output_len / 2
        return self.decode_bytes(context) * rate / (row.bandwidth_gb_s * 1e9)


def model_cost(path: Path) -> ModelCost:
    """Counts what a model file holds. Raises what open_checkpoint raises."""
    checkpoint = open_checkpoint(path)
    spec = checkpoint.spec
    weights = {name: tensor.data.nbytes for name, tensor in checkpoint.weights.items()}
    if not spec.tie_word_embeddings:
        weights = {name: size for name, size in weights.items() if not name.startswith("embed_tokens")}
    shapes = {name: shape for name, shape in tensor_shapes(spec).items() if len(shape) == 2}
    body = sum(a * b for name, (a, b) in shapes.items() if not name.startswith(("embed_tokens", "lm_head")))
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    return ModelCost(
        weight_bytes=sum(weights.values()),
        body_parameters=body,
        kv_bytes_per_token=[2 * m.num_kv_heads * m.head_dim * KV_BYTES for m in mixers],
        windows=[m.sliding_window for m in mixers],
        attention_width=[m.num_heads * m.head_dim for m in mixers],
    )
