"""What a model will take in the torch backend, told from its description. Imports no torch: a server asks, too."""

from __future__ import annotations

from collections.abc import Mapping

from tuili.backends import expected_backend
from tuili.models.spec import AttentionSpec, MlpSpec, ModelSpec

LIBRARY_BYTES = 400 << 20  # of a process that has imported torch
GPU_CONTEXT_BYTES = 600 << 20  # that the driver and its libraries take on a GPU for each process
GPU_BATCHED_TOKENS = 8192  # devices.BATCHED_TOKENS of the GPUs whose memory a server can count
_FLOAT = 4
_LOGITS = 3 << 23  # that exist at one time, as floats: raw, as the dtype has them, and one more while they are scored

Stored = Mapping[str, tuple[str, tuple[int, ...]]]  # weight -> format name and shape


def item_bytes(dtype: str, device: str | None) -> int:
    """Of a weight: as devices.choose_dtype chooses."""
    if dtype == "auto":
        is_cpu = device == "cpu" or (device in (None, "auto") and expected_backend(None, None) == "cpu")
        return _FLOAT if is_cpu else 2
    return _FLOAT if dtype in ("float", "float32") else 2


def workspace_bytes(spec: ModelSpec, *, num_tokens: int, num_positions: int) -> int:
    """Bytes that steps of up to `num_tokens` tokens come to work in: a layer's intermediates, rotary tables, logits."""
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    heads = max((2 * a.num_heads + 2 * a.num_kv_heads) * a.head_dim for a in mixers)
    inner = max(layer.mlp.intermediate_size for layer in spec.layers if isinstance(layer.mlp, MlpSpec))
    per_token = (4 * spec.hidden_size + 2 * heads + 4 * inner) * _FLOAT
    ropes = {a.rope for a in mixers if a.rope is not None}
    tables = sum(num_positions * rope.dim * _FLOAT for rope in ropes)
    return num_tokens * per_token + tables + max(_LOGITS, 3 * spec.vocab_size) * _FLOAT
