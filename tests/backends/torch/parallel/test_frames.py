"""Frames come out as they went in, and one that is cut is no frame."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from support.batches import Driver, Work, sampling_arrays
from support.random_models import decoder, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch.parallel.batch_frames import batch_of, frame_of
from tuili.backends.torch.parallel.frames import Frame, read_frame
from tuili.backends.torch.rows import is_greedy


def test_frames_of_all_kinds_follow_each_other() -> None:
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "none": np.zeros((0, 3), np.int32)}
    arrays["flags"] = np.array([True, False])
    told = [Frame("step", {"n": 3, "text": "größe"}, arrays), Frame("close")]
    stream = BytesIO(b"".join(frame.encoded() for frame in told))
    first = read_frame(stream)
    assert first is not None
    assert (first.word, first.values) == ("step", {"n": 3, "text": "größe"})
    for name, array in arrays.items():
        assert first.arrays[name].dtype == array.dtype
        assert np.array_equal(first.arrays[name], array)
    assert read_frame(stream) == Frame("close", {}, {})
    assert read_frame(stream) is None


@pytest.mark.parametrize("size", [1, 7, 12, -1])
def test_a_frame_that_is_cut_is_told(size: int) -> None:
    data = Frame("step", {}, {"a": np.arange(4)}).encoded()
    with pytest.raises(EOFError, match="within a frame"):
        read_frame(BytesIO(data[:size]))


def test_another_ranks_batch_computes_the_same_rows() -> None:
    spec = decoder()
    driver = Driver(load_backend("reference", spec, random_weights(spec), BackendOptions(max_model_len=32)))
    batch = driver.batch([Work(driver.text(), [1, 2, 3], 2), Work(driver.text(), [4, 5])])
    frame = read_frame(BytesIO(frame_of(batch).encoded()))
    assert frame is not None
    expected = driver.backend.execute(batch).result()
    found = driver.backend.execute(batch_of(frame)).result()
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert found.logits is not None
    assert found.logits.shape == (0, spec.vocab_size)  # none are handed out


def test_a_step_goes_the_same_way_everywhere() -> None:
    spec = decoder()
    driver = Driver(load_backend("reference", spec, random_weights(spec), BackendOptions(max_model_len=32)))
    for row, num_logprobs, want_logits in (({}, -1, None), ({}, 3, None), ({"temperature": 0.5}, -1, True)):
        changes = {"sampling": sampling_arrays([row]), "num_logprobs": np.array([num_logprobs], np.int32)}
        batch = driver.batch([Work(driver.text(), [1, 2])], **changes, want_logits=want_logits)
        frame = read_frame(BytesIO(frame_of(batch).encoded()))
        assert frame is not None
        other = batch_of(frame)
        assert is_greedy(other) == is_greedy(batch)
        assert (other.want_logits is None) == (batch.want_logits is None)
        assert np.isnan(other.sampling.sampler_state).all()  # the first rank alone keeps what samplers go on from
