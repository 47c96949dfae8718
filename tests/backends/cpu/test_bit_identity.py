"""One text, one set of bits: whatever the batch, the chunks, the blocks and the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from support.batches import Driver, Text, Work, sampling_arrays
from support.random_models import decoder, layer, random_weights
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.models.spec import MlpSpec, ModelSpec, QueryScaling, RopeSpec

MAX_LEN = 1100
TEXT = np.random.default_rng(3).integers(0, 101, 700).tolist()
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 17}

Load = Callable[..., Backend]


def plain() -> ModelSpec:
    return decoder()


def windowed() -> ModelSpec:
    """Windows narrower and wider than a chunk of 256 beside full attention, normed heads, every norm placement."""
    sandwich = {"norms": "sandwich"}
    return decoder(
        layer(layer_changes=sandwich, sliding_window=40, qk_norm="head", logit_softcap=30.0),
        layer(layer_changes=sandwich, sliding_window=300, head_dim=24, rope=RopeSpec(dim=16)),
        layer(layer_changes=sandwich, qk_norm="full"),
        hidden_size=96,
    )


def side_by_side() -> ModelSpec:
    """LayerNorm, ALiBi, sinks, normed and projected embeddings, attention beside the MLP on one norm or two."""
    own = {"rope": None, "sinks": True, "qk_norm": "each_head"}
    growing = QueryScaling(beta=0.3, original_max_position=100)
    return decoder(
        layer(layer_changes={"parallel": True, "residual_scale": 0.7}, sliding_window=40, **own),
        layer(layer_changes={"parallel": True, "parallel_norms": 2}, query_scaling=growing, **own),
        layer(mlp=MlpSpec(intermediate_size=64, activation="relu", gated=False, bias=True), **own),
        norm="layer",
        norm_bias=True,
        position="alibi",
        embedding_norm=True,
        embedding_size=32,
        hidden_size=96,
    )


def learned() -> ModelSpec:
    """Learned positions, and RMS norms whose factors wait for two products beside each other."""
    one, two = {"parallel": True}, {"parallel": True, "parallel_norms": 2}
    layers = (layer(layer_changes=changes, rope=None) for changes in (one, two, None, one))
    return decoder(*layers, position="learned", position_offset=2)


@pytest.fixture(
    scope="module",
    params=[
        (plain, "F32", "bfloat16"),
        (plain, "Q4_1", "bfloat16"),
        (windowed, "Q8_0", "bfloat16"),
        (plain, "Q4_1", "int8"),
        (windowed, "Q8_0", "int8"),
        (side_by_side, "Q8_0", "bfloat16"),
        (learned, "Q4_1", "int8"),
    ],
    ids=["F32", "Q4_1", "windows", "Q4_1-int8", "windows-int8", "side-by-side", "learned-int8"],
)
def load(request: pytest.FixtureRequest) -> Load:
    make_spec, format_name, kv_cache_dtype = request.param
    spec = make_spec()
    weights = random_weights(spec, format_name)

    def load(**options: Any) -> Backend:
        return load_backend(
            "cpu", spec, weights, BackendOptions(max_model_len=MAX_LEN, kv_cache_dtype=kv_cache_dtype, **options)
        )

    return load


@pytest.fixture(scope="module")
def expected(load: Load) -> np.ndarray:
    """Logits of every position, the whole text in one step on one thread."""
    return Driver(load(num_threads=1), block_size=64).logits(TEXT)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_do_not_matter(load: Load, expected: np.ndarray, num_threads: int) -> None:
    logits = Driver(load(num_threads=num_threads), block_size=64).logits(TEXT)
    assert np.array_equal(logits, expected)


@pytest.mark.parametrize(("chunk", "block_size"), [(16, 16), (64, 256), (512, 32), (255, 128)])
def test_chunks_and_blocks_do_not_matter(load: Load, expected: np.ndarray, chunk: int, block_size: int) -> None:
    driver = Driver(load(), block_size=block_size, seed=chunk)
    assert np.array_equal(driver.logits(TEXT, chunk=chunk), expected)


def test_decoding_token_by_token(load: Load, expected: np.ndarray) -> None:
    """Positions around the edges of chunks and windows, each computed alone, split over two threads."""
    for num_threads in (1, 2):
        driver = Driver(load(num_threads=num_threads), block_size=32)
        for first in (0, 38, 254, 298, 510, 690):
            text = driver.text()
            if first:
                driver.step([Work(text, TEXT[:first], 1)])
            rows = [driver.step([Work(text, [token])]).logits for token in TEXT[first : first + 5]]
            assert np.array_equal(np.concatenate([r for r in rows if r is not None]), expected[first : first + 5])
            driver = Driver(driver.backend, block_size=32)


def test_a_batch_of_32_at_all_stages(load: Load, expected: np.ndarray) -> None:
    """Prompts of other lengths beside it, some prefilling, some decoding."""
    backend = load()
    driver = Driver(backend, num_blocks=400, block_size=16)
    generator = np.random.default_rng(1)
    others = [driver.text() for _ in range(31)]
    ours = driver.text()
    for first, end in ((0, 100), (100, 101), (101, 102), (102, 300)):
        works = [Work(other, generator.integers(0, 101, generator.integers(1, 20)).tolist()) for other in others]
        works.insert(7, Work(ours, TEXT[first:end], end - first))
        logits = driver.step(works).logits
        assert logits is not None
        assert np.array_equal(logits[7 : 7 + end - first], expected[first:end])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_sequences_with_a_common_prefix(load: Load, expected: np.ndarray, num_threads: int) -> None:
    """Decoding together over shared blocks: the same first 512 tokens for all, 640 for some, different tails."""
    driver = Driver(load(num_threads=num_threads), num_blocks=300, block_size=32)
    first = driver.text()
    driver.step([Work(first, TEXT[:690], 1)])
    texts = [first]
    for shared in (512, 640, 512, 640, 513):
        text = driver.text()
        text.length = shared // 32 * 32
        text.tables = [table[: text.length // 32] for table in first.tables]
        driver.step([Work(text, TEXT[text.length : 690], 1)])
        texts.append(text)
    for position in range(690, 693):
        logits = driver.step([Work(text, [TEXT[position]]) for text in texts]).logits
        assert logits is not None
        assert np.array_equal(logits, np.repeat(expected[position : position + 1], len(texts), 0))


def continuation(driver: Driver, text: Text, others: list[Text], params: dict[str, Any], num_tokens: int) -> list[int]:
    """Tokens of `text` from its first 20, with others decoding beside it."""
    works = [Work(text, TEXT[:20]), *(Work(other, TEXT[i : i + 9]) for i, other in enumerate(others))]
    tokens: list[int] = []
    for _ in range(num_tokens):
        rows = [params | {"position": text.length + len(works[0].token_ids)}] + [{}] * len(others)
        result = driver.step(works, sampling=sampling_arrays(rows), want_logits=False)
        tokens.append(int(result.token_ids[0]))
        works = [Work(work.text, [0], carry=True) for work in works]
    return tokens


@pytest.mark.parametrize("params", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_chosen_tokens(load: Load, params: dict[str, Any]) -> None:
    alone, crowded = Driver(load(num_threads=1)), Driver(load(num_threads=2), num_blocks=200)
    tokens = continuation(alone, alone.text(), [], params, 24)
    assert continuation(crowded, crowded.text(), [crowded.text() for _ in range(5)], params, 24) == tokens
    assert len(set(tokens)) > 3 or not params


def test_instruction_sets_agree(load: Load, expected: np.ndarray) -> None:
    """The contract asks for equality within one; the kernels fix lanes and fused steps, so all give the same bits but
    those that round what multiplies bfloat16."""
    if (best := load().isa).endswith("_bf16"):
        plain = Driver(load(isa=best.removesuffix("_bf16")), block_size=64).logits(TEXT[:300])
        assert np.abs(expected[:300] - plain).max() < 0.05 * np.abs(plain).max()
    else:
        plain = expected[:300]
    for isa in ("avx2", "scalar"):
        logits = Driver(load(isa=isa), block_size=64).logits(TEXT[:300])
        assert np.array_equal(logits, plain), isa
