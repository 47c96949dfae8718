"""Serves texts of many sizes on a GPU that is not there and prints, as JSON, the kernels that each of them compiled."""

from __future__ import annotations

import json
import sys
from collections import Counter

import torch

from support.ahead_of_time import Variant, launching
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.graphs import repeat
from tuili.backends.torch.model import build_model
from tuili.backends.torch.ops.triton_ops import TritonOps
from tuili.backends.torch.weights import WeightReader
from tuili.config import EngineConfig
from tuili.engine.engine import Engine
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import MlpSpec, RopeSpec
from tuili.types import SamplingParams, TokenRequest

CPU = torch.device("cpu")
# Lengths of texts that come together, in rounds; after the second, every kernel has been launched.
ROUNDS = ((5,), (5, 9, 30), (1,) * 4, (16,), (17,) * 7, (1, 48, 64, 33, 2, 100, 7) * 3, (200,), (3,) * 64)


def engine(format_name: str) -> Engine:
    a_layer = layer(
        MlpSpec(intermediate_size=512), num_heads=4, num_kv_heads=2, head_dim=64, rope=RopeSpec(dim=64), qk_norm="head"
    )
    spec = decoder(a_layer, a_layer, hidden_size=256, vocab_size=1024, tie_word_embeddings=True)
    keep_packed = format_name != "F32"
    with torch.inference_mode():
        weights = random_weights(spec, format_name)
        reader = WeightReader(weights, tensor_shapes(spec), dtype=torch.bfloat16, device=CPU, keep_packed=keep_packed)
        model = build_model(spec, reader, TritonOps(CPU, False), 512)
    backend = TorchBackend(
        spec, model, BackendOptions(max_model_len=512, device="cpu"), device=CPU, dtype=torch.bfloat16
    )
    backend.graphs = backend.captured_by(repeat)
    config = EngineConfig(
        max_model_len=512, max_num_seqs=64, max_num_batched_tokens=128, kv_cache_memory_bytes=64 << 20,
        kv_cache_dtype="auto", enable_prefix_caching=False,
    )  # fmt: skip
    return Engine(backend, config)


def serve(engine: Engine, lengths: tuple[int, ...]) -> None:
    """What is computed means nothing: whether the texts end well does not, either."""
    for i, length in enumerate(lengths):
        sampling = SamplingParams(temperature=0, max_tokens=3 + i % 3, ignore_eos=True)
        tokens = tuple(range(length))
        engine.add(
            TokenRequest(request_id=str(i), prompt_token_ids=tokens, sampling=sampling, seed=0), lambda delta: None
        )
    while engine.step():
        pass


def main() -> None:
    torch.empty = torch.zeros  # what kernels would write must be finite
    rounds = []
    with launching() as found:
        served = engine(sys.argv[1])
        for lengths in ROUNDS:
            serve(served, lengths)
            rounds.append(Counter(map(_name, found)))
    sys.stdout.write(json.dumps(rounds))


def _name(variant: Variant) -> str:
    return variant.kernel


if __name__ == "__main__":
    main()
