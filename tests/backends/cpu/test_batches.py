"""What the CPU backend does with each field of a Batch, and how it refuses what is out of range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from support.batches import UNREAD, Driver, Work, greedy, sampling_arrays
from support.random_models import decoder, layer, random_weights
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.errors import (
    EngineUnavailableError,
    InsufficientMemoryError,
    InvalidRequestError,
    ModelFileError,
    UnsupportedModelError,
)
from tuili.models.spec import DeltaNetSpec, MlaSpec, ModelSpec, MoeSpec, RelativeBiasSpec, RopeSpec
from tuili.quant import BY_NAME
from tuili.quant.format import Tensor

TEXT = np.random.default_rng(5).integers(0, 101, 43).tolist()
OPTIONS = BackendOptions(max_model_len=64)
SPEC = decoder(layer(sliding_window=7), layer())


def loaded(spec: ModelSpec = SPEC, format_name: str = "Q8_0", **options: Any) -> Backend:
    return load_backend("cpu", spec, random_weights(spec, format_name), replace(OPTIONS, **options))


@pytest.fixture(scope="module")
def backend() -> Backend:
    """Two cache groups: full attention and a window of 7."""
    return loaded()


def same(ours: np.ndarray | None, expected: np.ndarray | None) -> None:
    assert ours is not None
    assert expected is not None
    assert np.array_equal(ours, expected)


def test_a_window_never_reads_the_blocks_behind_it(backend: Backend) -> None:
    whole = Driver(backend).logits(TEXT)
    driver = Driver(backend)
    text = driver.text()
    driver.step([Work(text, TEXT[:40])])
    text.tables[1][:2] = [-1, -1]  # positions 0 to 31; position 40 sees 34 and later
    same(driver.step([Work(text, TEXT[40:], 3)]).logits, whole[40:])
    text.tables[0][0] = -1
    with pytest.raises(InvalidRequestError, match=r"batch: block_tables\[0\] is -1, allowed is \[0, 64\)"):
        driver.step([Work(text, [1])])


def test_a_copied_block_continues_a_text_of_its_own(backend: Backend) -> None:
    expected = Driver(backend).logits([*TEXT[:20], *TEXT[:5]])[20:]
    driver = Driver(backend)
    first = driver.text()
    driver.step([Work(first, TEXT[:20])])
    fork, copies = driver.fork(first)
    assert len(copies) == len(driver.groups)
    batch = driver.batch([Work(first, TEXT[20:25], 5), Work(fork, TEXT[:5], 5)], copies)
    logits = backend.execute(batch).result().logits
    assert logits is not None
    same(logits[5:], expected)
    same(logits[:5], Driver(backend).logits(TEXT[:25])[20:])


def test_carry_feeds_the_token_sampled_last_for_the_slot(backend: Backend) -> None:
    driver = Driver(backend)
    first, second = driver.text(), driver.text()
    targets = np.array([5, -1, -1], np.int32)  # scoring a target leaves the carried token alone
    works = [Work(first, TEXT[:9], 2), Work(second, TEXT[9:14])]
    sampled = driver.step(works, targets=targets).token_ids
    carried = driver.step([Work(second, [0], carry=True), Work(first, [0], carry=True)])
    assert carried.logits is not None
    same(carried.logits[1:], Driver(backend).logits([*TEXT[:9], int(sampled[1])])[-1:])
    same(carried.logits[:1], Driver(backend).logits([*TEXT[9:14], int(sampled[2])])[-1:])
    unknown = driver.text()
    unknown.slot = 77
    with pytest.raises(InvalidRequestError, match="carry: slot 77 has sampled nothing yet"):
        driver.step([Work(unknown, [0], carry=True)])


def test_a_step_without_rows(backend: Backend) -> None:
    driver = Driver(backend)
    text = driver.text()
    result = driver.step([Work(text, TEXT[:10], 0)])
    assert result.token_ids.shape == (0,)
    assert result.top_ids.shape == (0, 0)
    same(driver.step([Work(text, TEXT[10:12], 2)]).logits, Driver(backend).logits(TEXT[:12])[10:])


def test_several_rows_of_one_token(backend: Backend) -> None:
    """As n > 1 asks for; sandwich norms finish a row more than once if done in place."""
    spec = decoder(layer(layer_changes={"norms": "sandwich"}))
    driver = Driver(loaded(spec))
    rows = np.array([8, 8, 8], np.int32)
    none, result = np.full(3, -1, np.int32), None
    result = driver.step(
        [Work(driver.text(), TEXT[:9])], sample_rows=rows, targets=none, num_logprobs=none, sampling=greedy(3)
    )
    assert result.logits is not None
    same(result.logits, np.repeat(driver.step([Work(driver.text(), TEXT[:9])]).logits, 3, axis=0))  # type: ignore[arg-type]


def test_hidden_states_make_the_logits(backend: Backend) -> None:
    weights = random_weights(SPEC, "F32")
    driver = Driver(load_backend("cpu", SPEC, weights, OPTIONS))
    result = driver.step([Work(driver.text(), TEXT, 43)], want_hidden=True)
    assert result.hidden is not None
    expected = result.hidden @ weights["lm_head.weight"].dequantize().T
    np.testing.assert_allclose(result.logits, expected, atol=1e-5)


def test_a_batch_may_come_again_with_other_values(backend: Backend) -> None:
    whole = Driver(backend).logits(TEXT)
    driver = Driver(backend)
    driver.step([Work(text := driver.text(), TEXT[:20])])
    batch = driver.batch([Work(text, TEXT[20:21], 1)], want_logits=False)
    found = []
    for position in range(20, 30):
        if position > 20:
            values = driver.batch([Work(text, TEXT[position : position + 1], 1)])
            for name in ("input_ids", "positions", "seq_lens", "slot_mapping"):
                getattr(batch, name)[:] = getattr(values, name)
            batch.block_tables[:] = values.block_tables[:, :, : batch.block_tables.shape[2]]
            batch.sampling.position[:] = values.sampling.position
        found.append(backend.execute(batch).result())
    assert [int(result.token_ids[0]) for result in found] == whole[20:30].argmax(axis=1).tolist()


def test_arrays_need_not_be_contiguous(backend: Backend) -> None:
    driver = Driver(backend)
    batch = driver.batch([Work(driver.text(), TEXT[:20], 20), Work(driver.text(), TEXT[:7], 7)])
    expected = backend.execute(batch).result()
    strided = replace(
        batch, block_tables=batch.block_tables.copy(order="F"), input_ids=np.repeat(batch.input_ids, 2)[::2]
    )
    for _ in range(2):
        same(backend.execute(strided).result().logits, expected.logits)


def test_the_cache_may_be_allocated_again(backend: Backend) -> None:
    expected = Driver(backend, num_blocks=3).logits(TEXT)
    same(Driver(backend, num_blocks=70, block_size=32).logits(TEXT), expected)
    with pytest.raises(InsufficientMemoryError, match=r"a cache of \d+ MiB does not fit: \d+ MiB are free"):
        backend.allocate_cache([10**9, 10**9])
    driver = Driver(backend)
    batch = driver.batch([Work(driver.text(), TEXT, 43)])
    with pytest.raises(InvalidRequestError, match="batch: the cache is not allocated"):
        loaded().execute(batch)
    same(backend.execute(batch).result().logits, expected)


def test_cache_groups_state_what_their_layers_need(backend: Backend) -> None:
    full, window = backend.cache_groups(16)
    assert (full.kind, full.window, window.kind, window.window) == ("full", None, "window", 7)
    assert (
        full.block_bytes == window.block_bytes == 2 * 16 * 2 * 16 * 2
    )  # k and v, tokens, kv heads, head_dim, bfloat16
    with pytest.raises(InvalidRequestError, match=r"block_size must be one of \(16, 32, 64, 128, 256\), got 24"):
        backend.cache_groups(24)


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": int32(1, 101)}, r"input_ids\[1\] is 101, allowed is \[0, 101\)"),
    ({"input_ids": int32(-1, 1)}, r"input_ids\[0\] is -1, allowed is \[0, 101\)"),
    ({"input_ids": np.array([1, 2])}, "input_ids has dtype int64, not int32"),
    ({"positions": int32(0, 2)}, r"positions\[1\] is 2, allowed is 1 \(seq_lens less what follows\)"),
    ({"positions": int32(0)}, r"positions has shape \[1\], not \[2\]"),
    ({"query_start": int32(0, 3)}, r"query_start\[1\] is 3, allowed is 2"),
    ({"query_start": int32(1, 2)}, r"query_start\[0\] is 1, allowed is 0"),
    ({"seq_lens": int32(65), "positions": int32(63, 64)}, r"seq_lens\[0\] is 65, allowed is \[1, 65\)"),
    ({"block_tables": np.full((2, 1, 1), 64, np.int32)}, r"block_tables\[0\] is 64, allowed is \[0, 64\)"),
    ({"block_tables": np.zeros((1, 1, 1), np.int32)}, r"block_tables has shape \[1, 1, 1\], not \[2, 1, any\]"),
    ({"slot_mapping": np.full((2, 2), 64 * 16, np.int32)}, r"slot_mapping\[0\] is 1024, allowed is \[0, 1024\)"),
    ({"slot_mapping": np.full((2, 2), -1, np.int32)}, r"slot_mapping\[0\] is -1"),
    ({"block_copies": int32(2, 0, 0)[None]}, r"block_copies group\[0\] is 2, allowed is \[0, 2\)"),
    ({"block_copies": int32(0, 0, 64)[None]}, r"block_copies\[1\] is 64, allowed is \[0, 64\)"),
    ({"slots": int32(-1)}, r"slots\[0\] is -1"),
    ({"carry": int32(0)}, "carry has dtype int32, not bool"),
    ({"sample_rows": int32(2)}, r"sample_rows\[0\] is 2, allowed is \[0, 2\)"),
    ({"targets": int32(101)}, r"targets\[0\] is 101, allowed is \[-1, 101\)"),
    ({"num_logprobs": int32(102)}, r"num_logprobs\[0\] is 102, allowed is \[-1, 102\)"),
    ({"sampling": greedy(2)}, r"temperature has shape \[2\], not \[1\]|history_start has shape"),
    ({"sampling": sampling_arrays([{"temperature": -1}])}, "temperature must be >= 0"),
    ({"sampling": sampling_arrays([{"top_k": -1}])}, r"top_k\[0\] is -1, allowed is at least 0"),
    ({"sampling": sampling_arrays([{"bias": {101: 1.0}}])}, r"bias_ids\[0\] is 101, allowed is \[0, 101\)"),
    ({"sampling": sampling_arrays([{"history": {-5: 1}}])}, r"history_ids\[0\] is -5"),
    ({"sampling": replace(greedy(1), bias_start=int32(0, 1))}, r"bias_start\[1\] is 1, allowed is 0"),
    (
        {"sampling": replace(greedy(1), seed=np.frombuffer(bytes(9), np.uint8)[1:].view(np.uint64))},
        "seed is not aligned",
    ),
    ({"allow_mask": np.zeros((1, 3), np.uint32)}, r"allow_mask has shape \[1, 3\], not \[1, 4\]"),
]


@pytest.mark.parametrize(
    ("changes", "message"), BAD_FIELDS, ids=[f"{next(iter(c))}-{i}" for i, (c, _) in enumerate(BAD_FIELDS)]
)
def test_fields_out_of_range_are_refused_by_name(backend: Backend, changes: dict[str, Any], message: str) -> None:
    driver = Driver(backend)
    with pytest.raises(InvalidRequestError, match=f"batch: ({message})"):
        driver.step([Work(driver.text(), [1, 2])], **changes)


@pytest.mark.parametrize(("changes", "name"), UNREAD)
def test_fields_it_does_not_read_are_refused_by_name(backend: Backend, changes: dict[str, Any], name: str) -> None:
    driver = Driver(backend)
    with pytest.raises(UnsupportedModelError, match=f"cpu backend does not implement {name}"):
        driver.step([Work(driver.text(), [1])], **changes)


def test_spec_members_it_does_not_run_are_refused_by_name() -> None:
    plain = layer()
    moe = replace(plain, mlp=MoeSpec(num_experts=4, num_experts_per_tok=2, expert=plain.mlp))  # type: ignore[arg-type]
    latent = MlaSpec(
        num_heads=4,
        q_lora_rank=None,
        kv_lora_rank=16,
        nope_head_dim=8,
        rope_head_dim=8,
        value_head_dim=8,
        scale=0.25,
        rope=RopeSpec(dim=8),
    )
    delta = DeltaNetSpec(num_key_heads=2, num_value_heads=2, key_head_dim=8, value_head_dim=8, conv_kernel=4)
    for spec, name in (
        (decoder(moe), "mlp=MoeSpec"),
        (decoder(replace(plain, mixer=latent)), "mixer=MlaSpec"),
        (decoder(replace(plain, mixer=delta)), "mixer=DeltaNetSpec"),
        (decoder(layer(causal=False)), "causal=False"),
        (decoder(layer(relative_bias=RelativeBiasSpec(num_buckets=8, max_distance=16))), "relative_bias"),
        (decoder(kind="encoder"), "kind=encoder"),
    ):
        with pytest.raises(UnsupportedModelError, match=f"test: the cpu backend does not implement {name}"):
            load_backend("cpu", spec, {}, OPTIONS)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_learned_positions_limit_the_text(name: str) -> None:
    spec = decoder(layer(rope=None), position="learned", max_position=64)
    with pytest.raises(InvalidRequestError, match=r"max_model_len must be in \[1, 64\] for this model, got 65"):
        load_backend(name, spec, random_weights(spec), BackendOptions(max_model_len=65))
    assert Driver(load_backend(name, spec, random_weights(spec), BackendOptions(max_model_len=64))).logits([1]).size


def test_weights_must_be_the_specs() -> None:
    weights = random_weights(SPEC, "F32")
    with pytest.raises(ModelFileError, match=r"norm\.weight"):
        load_backend("cpu", SPEC, {k: t for k, t in weights.items() if k != "norm.weight"}, OPTIONS)
    with pytest.raises(ModelFileError, match=r"norm\.weight"):
        load_backend("cpu", SPEC, weights | {"norm.weight": weights["lm_head.weight"]}, OPTIONS)
    short = Tensor(BY_NAME["F32"], (101, 64), np.zeros((101, 255), np.uint8))
    with pytest.raises(ModelFileError, match=r"lm_head\.weight: 25755 bytes are not 101 rows of 256"):
        load_backend("cpu", SPEC, weights | {"lm_head.weight": short}, OPTIONS)


def test_options_out_of_range() -> None:
    with pytest.raises(
        InvalidRequestError,
        match=r"isa must be one of avx512_bf16, avx512, .*, scalar_bf16, got 'sse'",
    ):
        loaded(isa="sse")
    with pytest.raises(InvalidRequestError, match=r"num_threads must be .*, got -1"):
        loaded(num_threads=-1)


def test_close_gives_everything_back() -> None:
    backend = loaded()
    backend.close()
    backend.close()
    with pytest.raises(EngineUnavailableError, match="the cpu backend is closed"):
        backend.cache_groups(16)
