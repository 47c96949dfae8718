"""Steps that find no memory: computed in parts, with the result of the whole to the last bit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from support.batches import Driver, Work, sampling_arrays
from support.random_models import decoder, layer, random_weights
from tuili.backend import Backend, BackendOptions, Batch, StepResult
from tuili.backends import load_backend
from tuili.backends.torch import backend as backend_module
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.cache import PagedCache
from tuili.backends.torch.graphs import repeat
from tuili.backends.torch.model import Model
from tuili.errors import InsufficientMemoryError

SPEC = decoder(layer(), layer(sliding_window=9))
WEIGHTS = random_weights(SPEC)
TEXT = np.random.default_rng(3).integers(0, SPEC.vocab_size, 64).tolist()
ROWS: list[dict[str, Any]] = [
    {"temperature": 0.9, "top_p": 0.8, "seed": 5, "position": 9, "history": {3: 1, 7: 0}, "repetition_penalty": 1.3},
    {},
    {"temperature": 1.2, "seed": 6, "position": 31, "bias": {2: 3.0, 9: -np.inf}},
    {"temperature": 1.2, "seed": 6, "position": 31, "sample_index": 1, "dry": {4: 1.0}},
    {"temperature": 1.0, "seed": 2, "position": 14, "chain": [(4, 0.9, 1), (8, 1.0, 0, 1)]},
]


def loaded() -> Backend:
    return load_backend("torch", SPEC, WEIGHTS, BackendOptions(max_model_len=64, device="cpu", deterministic=True))


def batch(driver: Driver) -> Batch:
    """A decode behind a carried token, a long chunk scored in part, two answers of one text, a text of one token."""
    decoding, chunked, forked, single = (driver.text() for _ in range(4))
    driver.step([Work(decoding, TEXT[:9]), Work(chunked, TEXT[5:11], 0), Work(forked, TEXT[30:50])])
    made = driver.batch(
        [Work(decoding, [0], carry=True), Work(chunked, TEXT[11:31], 6), Work(forked, TEXT[50:53]), Work(single, [8])]
    )
    is_scored = [False, *[True] * 5, *[False] * 4]
    order = made.sample_rows[[0, 1, 2, 3, 4, 5, 6, 7, 7, 8]]  # of those: six of the chunk, two of the answers
    plain: list[dict[str, Any]] = [{}] * 5
    mask = np.full((10, -(-SPEC.vocab_size // 32)), 0xFFFFFFFF, np.uint32)
    mask[6] = 0x10F0F0F0
    return replace(
        made,
        sample_rows=order,
        targets=np.where(is_scored, 7, -1).astype(np.int32),
        num_logprobs=np.array([2, *[3] * 5, -1, 0, 5, -1], np.int32),
        sampling=sampling_arrays([ROWS[0], *plain, *ROWS[1:]]),
        allow_mask=mask,
        want_logits=np.array([True, *[False] * 6, True, True, False]),
        want_hidden=True,
    )


def fails_where(is_too_much: Callable[[Any, Any], bool], calls: list[int] | None = None) -> Any:
    """Model.hidden on a device whose memory ends."""
    real = Model.hidden

    def hidden(self: Model, input_ids: Any, step: Any, cache: PagedCache) -> Any:
        if calls is not None:
            calls.append(len(input_ids))
        if is_too_much(input_ids, step):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, input_ids, step, cache)

    return hidden


def assert_equal(found: StepResult, expected: StepResult) -> None:
    for f in fields(StepResult):
        if f.name not in ("failures", "max_tokens"):
            np.testing.assert_array_equal(getattr(found, f.name), getattr(expected, f.name), err_msg=f.name)


@pytest.mark.parametrize("most", [1, 2, 5, 14, 24])
def test_parts_find_what_the_whole_finds(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, divided = Driver(loaded()), Driver(loaded())
    steps = batch(whole), batch(divided)
    expected = whole.backend.execute(steps[0]).result()
    assert (expected.token_ids >= 0).all()
    with monkeypatch.context() as patch:
        patch.setattr(Model, "hidden", fails_where(lambda ids, _: len(ids) > most))
        found = divided.backend.execute(steps[1]).result()
    assert_equal(found, expected)
    assert found.failures == {}
    assert found.max_tokens is not None
    assert found.max_tokens <= most
    following = []
    for driver, step in ((whole, steps[0]), (divided, steps[1])):
        after = driver.batch([Work(driver.text(), TEXT[:3])])
        following.append(
            driver.backend.execute(replace(after, carry=np.ones(1, np.bool_), slots=step.slots[1:2])).result()
        )
    assert_equal(following[1], following[0])  # what the slot sampled last, and all that is cached


def test_the_size_that_fits_is_remembered_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(Model, "hidden", fails_where(lambda ids, _: len(ids) > 6, calls))
    driver = Driver(loaded())
    assert driver.step([Work(driver.text(), TEXT[:6], 6)]).max_tokens is None
    assert driver.step([Work(driver.text(), TEXT[:12], 12)]).max_tokens == 6
    assert calls == [6, 12, 6, 6]
    del calls[:]
    assert driver.step([Work(driver.text(), TEXT[:12], 12)]).max_tokens == 6
    assert calls == [6, 6]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["a step of 12 tokens found no memory left on cpu: from now on 6 tokens are computed at a time"]


def test_a_text_without_memory_for_one_token_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, divided = Driver(loaded()), Driver(loaded())
    expected = whole.backend.execute(batch(whole)).result()
    calls: list[int] = []
    with monkeypatch.context() as patch:
        step = batch(divided)
        assert step.seq_lens.tolist() == [10, 26, 23, 1]
        patch.setattr(Model, "hidden", fails_where(lambda _, inputs: int(inputs.plans[0].seq_lens.max()) > 16, calls))
        found = divided.backend.execute(step).result()
    assert list(found.failures) == [1, 2]
    assert all(isinstance(error, InsufficientMemoryError) for error in found.failures.values())
    assert "found no memory left on cpu: lower gpu_memory_utilization" in str(found.failures[1])
    assert found.token_ids.tolist()[1:9] == [-1] * 8
    for row in (0, 9):
        assert found.token_ids[row] == expected.token_ids[row]
        np.testing.assert_array_equal(found.top_logprobs[row], expected.top_logprobs[row])
    np.testing.assert_array_equal(found.logits_of(0), expected.logits_of(0))
    assert len(calls) < 25  # what belongs to a text that failed is not tried
    assert found.max_tokens is None  # it is not the size of steps that was wrong
    again = divided.backend.execute(divided.batch([Work(divided.text(), TEXT[:4])])).result()
    assert again.failures == {}


@pytest.mark.parametrize("is_drawn", [True, False])
def test_a_step_that_a_graph_has_run_can_be_computed_again(is_drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for fails in (False, True):
        backend = loaded()
        assert isinstance(backend, TorchBackend)
        backend.graphs = backend.captured_by(repeat)
        driver = Driver(backend)
        texts = [driver.text() for _ in range(3)]
        driver.step([Work(text, TEXT[i : i + 9]) for i, text in enumerate(texts)], want_logits=None)
        rows = [{"temperature": 1.5, "seed": i, "position": 10} if is_drawn else {} for i in range(3)]
        step = driver.batch(
            [Work(text, [0], carry=True) for text in texts], sampling=sampling_arrays(rows), want_logits=False
        )
        with monkeypatch.context() as patch:
            if fails:
                name = "RunningStep" if is_drawn else "GreedyStep"
                patch.setattr(backend_module, name, once_out_of_memory(getattr(backend_module, name)))
            found.append([backend.execute(step).result()])
        found[-1].append(driver.step([Work(text, [0], carry=True) for text in texts]))
    assert found[1][0].max_tokens == 1
    for one, other in zip(*found, strict=True):
        assert_equal(other, one)


def once_out_of_memory(real: Callable[..., Any]) -> Callable[..., Any]:
    left = [torch.OutOfMemoryError("CUDA out of memory.")]

    def made(*arguments: Any) -> Any:
        if left:
            raise left.pop()
        return real(*arguments)

    return made


def test_blocks_are_copied_once_before_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = []
    for most in (64, 2):
        driver = Driver(loaded())
        text = driver.text()
        driver.step([Work(text, TEXT[:20])])
        copies = []
        for g, table in enumerate(text.tables):
            copies.append((g, table[-1], driver.new_block(g)))
            table[-1] = copies[-1][2]
        made = driver.batch([Work(text, TEXT[20:28], 8)], copies)
        with monkeypatch.context() as patch:
            patch.setattr(Model, "hidden", fails_where(lambda ids, _, most=most: len(ids) > most))
            tokens.append(driver.backend.execute(made).result())
    assert_equal(tokens[1], tokens[0])


def test_a_step_whose_blocks_cannot_be_copied_fails_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(loaded())
    text = driver.text()
    driver.step([Work(text, TEXT[:3])])
    made = driver.batch([Work(text, TEXT[3:5])], [(0, text.tables[0][0], driver.new_block(0))])

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(PagedCache, "copy_blocks", fail)
    with pytest.raises(InsufficientMemoryError, match="not even a block can be copied on cpu"):
        driver.backend.execute(made)


def test_another_failure_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    driver = Driver(loaded())
    monkeypatch.setattr(Model, "hidden", fail)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        driver.step([Work(driver.text(), TEXT[:3])])


def test_given_logits_are_sampled_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = loaded()
    logits = np.random.default_rng(1).normal(0, 3, (5, SPEC.vocab_size)).astype(np.float32)
    mask = np.full((5, -(-SPEC.vocab_size // 32)), 0xFFFFFFFF, np.uint32)
    mask[3] = 0x0F0F0F0F
    expected = backend.sample(logits, sampling_arrays(ROWS), mask)
    real, most = backend_module.choose_tokens, 1

    def choose(rows: torch.Tensor, *rest: Any) -> Any:
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(rows, *rest)

    monkeypatch.setattr(backend_module, "choose_tokens", choose)
    found = backend.sample(logits, sampling_arrays(ROWS), mask)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    most = 0
    with pytest.raises(InsufficientMemoryError, match="choosing one of 101 tokens found no memory left"):
        backend.sample(logits, sampling_arrays(ROWS), mask)
