"""The backends that compute in float32: logits do not depend on chunks, blocks or neighbours, and every Batch field
does what it says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support import tiny_models
from support.batches import UNREAD, Driver, Work, greedy, sampling_arrays
from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.errors import UnsupportedModelError
from tuili.models.families import for_hf
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor

TEXT = np.random.default_rng(5).integers(0, 97, 43).tolist()
OPTIONS = BackendOptions(max_model_len=64, device="cpu")
GEMMA = {
    "head_dim": 8,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


def parts(model_type: str, **config: Any) -> tuple[ModelSpec, dict[str, Tensor]]:
    model = tiny_models.build(model_type, **config)
    spec = tiny_models.spec_of(model)
    return spec, tiny_models.canonical(model, for_hf(model_type), spec)


@pytest.fixture(scope="module", params=["reference", "torch"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def gemma(name: str) -> Backend:
    """Two cache groups: full attention and a window of 7."""
    return load_backend(name, *parts("gemma3_text", **GEMMA), OPTIONS)


@pytest.fixture(scope="module")
def llama(name: str) -> Backend:
    return load_backend(name, *parts("llama"), OPTIONS)


def close(ours: np.ndarray | None, expected: np.ndarray | None) -> None:
    assert ours is not None
    assert expected is not None
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 16, 42])
def test_chunks_do_not_matter(gemma: Backend, chunk: int) -> None:
    whole = Driver(gemma).logits(TEXT)
    close(Driver(gemma).logits(TEXT, chunk=chunk), whole)


@pytest.mark.parametrize("block_size", [16, 32])
def test_blocks_may_lie_anywhere(gemma: Backend, block_size: int) -> None:
    whole = Driver(gemma, block_size=64, seed=1).logits(TEXT)
    close(Driver(gemma, block_size=block_size, seed=2).logits(TEXT, chunk=10), whole)


def test_neighbours_do_not_matter(gemma: Backend) -> None:
    other = TEXT[::-1]
    alone = Driver(gemma).logits(TEXT)[[19, 20, 21, 42]]
    driver = Driver(gemma)
    first, second = driver.text(), driver.text()
    driver.step([Work(first, TEXT[:19])])
    mixed = driver.step([Work(second, other[:30]), Work(first, TEXT[19:22], 3)])
    close(mixed.logits[1:], alone[:3])  # type: ignore[index]
    mixed = driver.step([Work(first, TEXT[22:], 1), Work(second, other[30:], 1)])
    close(mixed.logits[:1], alone[3:])  # type: ignore[index]


def test_a_window_never_reads_the_blocks_behind_it(gemma: Backend) -> None:
    whole = Driver(gemma).logits(TEXT)
    driver = Driver(gemma)
    text = driver.text()
    driver.step([Work(text, TEXT[:40])])
    window = next(g for g, group in enumerate(driver.groups) if group.kind == "window")
    text.tables[window][:2] = [-1, -1]  # positions 0 to 31; position 40 sees 34 and later
    close(driver.step([Work(text, TEXT[40:], 3)]).logits, whole[40:])


def test_a_copied_block_continues_a_text_of_its_own(gemma: Backend) -> None:
    expected = Driver(gemma).logits([*TEXT[:20], *TEXT[:5]])[20:]
    driver = Driver(gemma)
    first = driver.text()
    driver.step([Work(first, TEXT[:20])])
    fork, copies = driver.fork(first)
    assert len(copies) == len(driver.groups)
    batch = driver.batch([Work(first, TEXT[20:25], 5), Work(fork, TEXT[:5], 5)], copies)
    logits = gemma.execute(batch).result().logits
    assert logits is not None
    close(logits[5:], expected)
    close(logits[:5], Driver(gemma).logits(TEXT[:25])[20:])


def test_carry_feeds_the_token_sampled_last_for_the_slot(llama: Backend) -> None:
    driver = Driver(llama)
    first, second = driver.text(), driver.text()
    sampled = driver.step([Work(first, TEXT[:9]), Work(second, TEXT[9:14])]).token_ids
    carried = driver.step([Work(second, [0], carry=True), Work(first, [0], carry=True)])
    close(carried.logits[1:], Driver(llama).logits([*TEXT[:9], int(sampled[0])])[-1:])  # type: ignore[index]
    close(carried.logits[:1], Driver(llama).logits([*TEXT[9:14], int(sampled[1])])[-1:])  # type: ignore[index]


def test_scoring_a_target_leaves_the_carried_token_alone(llama: Backend) -> None:
    driver = Driver(llama)
    text = driver.text()
    targets = np.array([TEXT[1], TEXT[2], -1], np.int32)
    result = driver.step([Work(text, TEXT[:3], 3)], targets=targets, num_logprobs=np.array([0, 2, 1], np.int32))
    assert result.token_ids[:2].tolist() == TEXT[1:3]
    carried = driver.step([Work(text, [0], carry=True)])
    close(carried.logits, Driver(llama).logits([*TEXT[:3], int(result.token_ids[2])])[-1:])


def test_logprobs_are_of_the_raw_logits(llama: Backend) -> None:
    driver, text = Driver(llama), None
    text = driver.text()
    sampling = sampling_arrays([{"temperature": 0.5, "bias": {3: 50.0}}, {}, {}, {}])
    counts = np.array([2, -1, 0, 3], np.int32)
    targets = np.array([-1, -1, TEXT[3], -1], np.int32)
    result = driver.step([Work(text, TEXT[:4], 4)], sampling=sampling, num_logprobs=counts, targets=targets)
    assert result.logits is not None
    logits = result.logits.astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert result.token_ids[0] == 3  # the bias decides, the logprob ignores it
    for r, token in ((0, 3), (2, TEXT[3]), (3, int(logits[3].argmax()))):
        assert result.logprobs[r] == pytest.approx(expected[r, token], abs=1e-5)
        assert result.ranks[r] == 1 + (logits[r] > logits[r, token]).sum()
    assert np.isnan(result.logprobs[1])
    assert result.ranks[1] == 0
    order = np.argsort(-logits, axis=-1)
    assert result.top_ids.tolist() == [
        [*order[0, :2], -1],
        [-1, -1, -1],
        [-1, -1, -1],
        order[3, :3].tolist(),
    ]
    np.testing.assert_allclose(result.top_logprobs[3], expected[3, order[3, :3]], atol=1e-5)
    assert np.isnan(result.top_logprobs[1:3]).all()


def test_allowed_ids_and_wanted_outputs(llama: Backend) -> None:
    driver = Driver(llama)
    mask = np.zeros((1, 4), np.uint32)
    mask[0, 95 // 32] = 1 << (95 % 32)
    result = driver.step([Work(driver.text(), TEXT[:4])], allow_mask=mask, want_hidden=True, want_logits=False)
    assert result.token_ids.tolist() == [95]
    assert result.logits is None
    assert result.hidden is not None
    assert result.hidden.shape == (1, 32)
    result = driver.step([Work(driver.text(), TEXT[:4])])
    assert result.hidden is None
    assert result.logits is not None
    assert llama.sample(result.logits, greedy(1), mask).token_ids.tolist() == [95]
    assert llama.sample(result.logits, greedy(1), None).token_ids.tolist() == result.token_ids.tolist()


def test_raw_logits_of_some_rows_alone(llama: Backend) -> None:
    """More rows than are computed at a time."""
    wanted = np.arange(40) % 7 == 3
    whole = Driver(llama).logits(TEXT[:40])
    driver = Driver(llama)
    result = driver.step([Work(driver.text(), TEXT[:40], 40)], want_logits=wanted)
    assert result.logits is not None
    assert result.logits.shape == (6, whole.shape[1])
    assert result.logit_rows is not None
    assert result.logit_rows.tolist() == [3, 10, 17, 24, 31, 38]
    close(result.logits, whole[wanted])
    close(result.logits_of(17), whole[17])
    with pytest.raises(AssertionError, match="not asked for"):
        result.logits_of(18)


def test_a_step_without_rows(llama: Backend) -> None:
    driver = Driver(llama)
    text = driver.text()
    result = driver.step([Work(text, TEXT[:10], 0)])
    assert result.token_ids.shape == (0,)
    assert result.top_ids.shape == (0, 0)
    close(driver.step([Work(text, TEXT[10:12], 2)]).logits, Driver(llama).logits(TEXT[:12])[10:])


def test_cache_groups_state_what_their_layers_need(gemma: Backend, llama: Backend) -> None:
    full, window = gemma.cache_groups(16)
    assert (full.kind, full.window, window.kind, window.window) == ("full", None, "window", 7)
    layer_bytes = 2 * 16 * 2 * 8 * 4  # keys and values, tokens, kv heads, head_dim, float32
    assert (full.block_bytes, window.block_bytes) == (layer_bytes, 2 * layer_bytes)
    assert [g.kind for g in llama.cache_groups(16)] == ["full"]
    assert llama.vocab_size == 97


@pytest.mark.parametrize(("changes", "field"), UNREAD)
def test_fields_it_does_not_read_are_refused_by_name(
    name: str, llama: Backend, changes: dict[str, Any], field: str
) -> None:
    driver = Driver(llama)
    with pytest.raises(UnsupportedModelError, match=f"{name} backend does not implement {field}"):
        driver.step([Work(driver.text(), [1])], **changes)


def test_close_may_be_called_twice() -> None:
    backend = load_backend("reference", *parts("llama"), OPTIONS)
    backend.close()
    backend.close()
