"""Handing over a step asks the device for nothing: on a GPU each such question would wait for all that is under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from support.batches import Driver, Work, sampling_arrays
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.graphs import repeat
from tuili.backends.torch.model import build_model
from tuili.backends.torch.ops.plain import PlainOps
from tuili.backends.torch.weights import WeightReader
from tuili.models.shapes import tensor_shapes

CPU = torch.device("cpu")
METHODS = ("item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero", "is_nonzero", "equal")
OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")


class WaitedError(AssertionError):
    """Something asked for a number."""


class _Methods(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in METHODS:
            raise WaitedError(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in OPERATIONS or (name.startswith("index") and _has_mask(args[1:])):
            raise WaitedError(str(func))
        return func(*args, **(kwargs or {}))


def _has_mask(args: Any) -> bool:
    indices = [index for arg in args if isinstance(arg, list | tuple) for index in arg]
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


@contextmanager
def no_waits() -> Iterator[None]:
    """Raises WaitedError at once for whatever waits."""
    with _Methods(), _Operations():
        yield


class KernelLikeOps(PlainOps):
    """Plain ones; those that ask for lengths, for which a GPU has kernels, do so unseen."""

    def attend(self, *args: Any, **kwargs: Any) -> Any:
        with _unseen():
            return super().attend(*args, **kwargs)

    def write_cache(self, *args: Any, **kwargs: Any) -> None:
        with _unseen():
            super().write_cache(*args, **kwargs)


@contextmanager
def _unseen() -> Iterator[None]:
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def made(*, graphs: bool) -> TorchBackend:
    spec = decoder(layer(), layer(sliding_window=20))
    options = BackendOptions(max_model_len=64, device="cpu")
    with torch.inference_mode():
        reader = WeightReader(
            random_weights(spec), tensor_shapes(spec), dtype=torch.float32, device=CPU, keep_packed=False
        )
        model = build_model(spec, reader, KernelLikeOps(), options.max_model_len)
    backend = TorchBackend(spec, model, options, device=CPU, dtype=torch.float32)
    backend.graphs = backend.captured_by(repeat) if graphs else None
    return backend


ROWS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 7, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"bias": {5: 3.0}, "temperature": 0.5, "seed": 3},
    {"history": {2: 1, 9: 3}, "repetition_penalty": 1.4, "presence_penalty": 0.5},
]
STEPS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"sampling": sampling_arrays(ROWS)},
    "said": {"num_logprobs": np.array([0, 3, -1, 2], np.int32)},
    "limited": {"allow_mask": np.full((4, 4), 0x0F0F0F0F, np.uint32)},
    "told": {"want_logits": np.array([True, False, True, False])},
    "scored": {"targets": np.array([-1, 7, -1, -1], np.int32), "num_logprobs": np.full(4, 1, np.int32)},
    "copied": {"copies": [(0, 3, 60), (1, 3, 61)]},
}


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("changes", STEPS.values(), ids=STEPS)
def test_a_decode_step_is_handed_over_without_a_wait(changes: dict[str, Any], graphs: bool) -> None:
    driver = Driver(made(graphs=graphs))
    texts = [driver.text() for _ in range(4)]
    driver.step([Work(text, [1, 2, 3 + i]) for i, text in enumerate(texts)])
    for _ in range(3):  # in the second of them buffers and graphs are there
        batch = driver.batch([Work(text, [0], carry=True) for text in texts], **{"want_logits": None} | changes)
        with no_waits():
            step = driver.backend.execute(batch)
        assert len(step.result().token_ids) == 4


def test_a_step_of_prompts_is_handed_over_without_a_wait() -> None:
    driver = Driver(made(graphs=True))
    text = driver.text()
    driver.step([Work(text, [1, 2, 3])])
    batch = driver.batch([Work(text, [0], carry=True), Work(driver.text(), [5] * 20)], want_logits=None)
    with no_waits():
        step = driver.backend.execute(batch)
    assert len(step.result().token_ids) == 2


@pytest.mark.parametrize(
    "question",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: int(x.sum()),
        lambda x: x.clone().index_put_((x > 0,), torch.zeros(())),
        lambda x: x.unique(),
        lambda x: x.cpu(),
    ],
)
@torch.inference_mode()
def test_the_watch_sees_questions(question: Any) -> None:
    x = torch.arange(4.0)
    with pytest.raises(WaitedError), no_waits():
        question(x)


def test_the_watch_sees_them_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = made(graphs=False)
    keep = backend._keep
    monkeypatch.setattr(backend, "_keep", lambda ids, slots: keep(ids[ids >= 0], slots))
    driver = Driver(backend)
    batch = driver.batch([Work(driver.text(), [1, 2, 3])])
    with pytest.raises(WaitedError), no_waits():
        backend.execute(batch)
