"""Both ways of computing a single row: which one is taken, and that both compute the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from support.batches import Driver, Work
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch import graphs
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.graphs import repeat
from tuili.backends.torch.one_row import VARIABLE, OneRow, one_row_of
from tuili.backends.torch.ops import DenseWeight, RowEntry
from tuili.backends.torch.ops.plain import PlainOps
from tuili.backends.torch.ops.triton_one_row import TritonRowProducts
from tuili.backends.torch.ops.triton_ops import TritonOps
from tuili.errors import InvalidRequestError
from tuili.models.spec import Activation, LayerSpec, MlpSpec, ModelSpec

CPU = torch.device("cpu")
OPTIONS = BackendOptions(max_model_len=48, device="cpu")
PLAIN = PlainOps()
TEXT = [5, 17, 3, 88, 41]


def model(**changes: object) -> ModelSpec:
    a_layer: LayerSpec = layer(MlpSpec(intermediate_size=96))
    return decoder(a_layer, replace(a_layer, norms="sandwich"), **changes)


def loaded(spec: ModelSpec, one_row: OneRow | None, monkeypatch: pytest.MonkeyPatch) -> TorchBackend:
    monkeypatch.setattr("tuili.backends.torch.model.one_row_of", lambda ops, device: one_row)
    backend = load_backend("torch", spec, random_weights(spec), OPTIONS)
    assert isinstance(backend, TorchBackend)
    return backend


class SlowProducts:
    """In plain torch."""

    def takes(self, weight: torch.Tensor) -> bool:
        return True

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        entry: RowEntry | None = None,
        activation: Activation | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert x.shape[0] == 1
        total = x if entry is None or entry.residual is None else entry.residual + entry.scale * x
        entered = total if entry is None else PLAIN.norm(total, entry.gain, None, entry.eps, "rms")
        out = PLAIN.linear(entered.double(), DenseWeight(weight.double()), bias).float()
        return (out if activation is None else PLAIN.activate(*out.chunk(2, -1), activation)), total


def new(is_forced: bool = False) -> OneRow:
    return OneRow(SlowProducts(), is_forced)


def greedy(backend: TorchBackend, num_tokens: int) -> list[int]:
    driver = Driver(backend)
    text = driver.text()
    last = int(driver.step([Work(text, TEXT)], want_logits=None).token_ids[0])
    found = [last]
    for _ in range(num_tokens - 1):
        last = int(driver.step([Work(text, [last])], want_logits=None).token_ids[0])
        found.append(last)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Steps take what is said, one after the other."""
    seconds: list[float] = []

    def took(work: Callable[[], None]) -> float:
        work()
        return seconds.pop(0)

    monkeypatch.setattr(graphs, "step_seconds", lambda device: took)
    yield lambda *values: seconds.extend(values)
    assert not seconds


@pytest.mark.parametrize("is_tied", [False, True])
def test_both_ways_write_the_same(is_tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = model(tie_word_embeddings=is_tied)
    forced = new(is_forced=True)
    assert greedy(loaded(spec, None, monkeypatch), 20) == greedy(loaded(spec, forced, monkeypatch), 20)
    assert [len(switch.sites) for switch in forced.switches] == [4, 4, 1]
    assert all(0 < switch.error() < 1 for switch in forced.switches)


def test_the_kernels_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = decoder(layer(MlpSpec(intermediate_size=32)))
    forced = OneRow(TritonRowProducts(num_processors=1), is_forced=True)  # few programs: the interpreter's are slow
    assert greedy(loaded(spec, None, monkeypatch), 3) == greedy(loaded(spec, forced, monkeypatch), 3)
    assert all(0 < switch.error() < 1 for switch in forced.switches)


def test_what_is_faster_is_taken(
    monkeypatch: pytest.MonkeyPatch, clock: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    one_row = new()
    backend = loaded(model(), one_row, monkeypatch)
    backend.graphs = backend.captured_by(repeat)
    clock(1e-3, 0.8e-3, 0.795e-3, 0.7e-3)  # a gain of less than a hundredth is none
    with caplog.at_level(logging.INFO, logger="tuili.backends.torch"):
        found = greedy(backend, 3)
    assert [switch.is_on for switch in one_row.switches] == [True, False, True]
    tried = "without 1000 us, entering products 800 us, leaving products 795 us, head 700 us"
    assert f"steps of one row, fused: entering products, head (a step: {tried})" in caplog.messages
    backend.graphs.forget()  # it stays as it was measured
    assert greedy(backend, 3) == found == greedy(loaded(model(), None, monkeypatch), 3)


def test_products_that_are_wrong_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, clock: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    one_row = new()
    backend = loaded(model(), one_row, monkeypatch)
    backend.graphs = backend.captured_by(repeat)

    def nan() -> float:
        return float("nan")

    def raises() -> float:
        raise RuntimeError("no such instruction")

    class Broken:
        name, sites, is_on = "broken", (1,), False
        error = staticmethod(nan)

    class Failing(Broken):
        name = "failing"
        error = staticmethod(raises)

    monkeypatch.setattr(OneRow, "switches", (Broken(), Failing(), one_row.head))
    clock(1e-3, 0.5e-3)
    assert len(greedy(backend, 3)) == 3
    assert one_row.head.is_on
    assert caplog.messages == [
        "products of one row (broken) are nan times their bound off: not used",
        "products of one row (failing) are not used: no such instruction",
    ]


def test_other_layers_keep_their_way() -> None:
    one_row = new()
    for changed in (
        replace(layer(MlpSpec(intermediate_size=96)), norms="post"),
        replace(layer(MlpSpec(intermediate_size=96)), norms="output"),
        layer(MlpSpec(intermediate_size=96, gated=False)),
        layer(MlpSpec(intermediate_size=96), qk_norm="full"),
    ):
        assert not entered(decoder(changed), one_row)
    assert not entered(replace(decoder(layer(MlpSpec(intermediate_size=96))), norm="layer"), one_row)
    assert entered(decoder(layer(MlpSpec(intermediate_size=96))), one_row)


def entered(spec: ModelSpec, one_row: OneRow) -> bool:
    from tuili.backends.torch.building import Builder
    from tuili.backends.torch.one_row import EnteredLayer
    from tuili.backends.torch.weights import WeightReader
    from tuili.models.shapes import tensor_shapes

    reader = WeightReader(random_weights(spec), tensor_shapes(spec), dtype=torch.float32, device=CPU, keep_packed=False)
    return isinstance(Builder(spec, reader, TritonOps(CPU, False), None, one_row).layer(0), EnteredLayer)


def test_who_has_the_choice() -> None:
    fast, cuda = TritonOps(CPU, False), torch.device("cuda")
    assert one_row_of(PlainOps(), cuda, {}) is None
    assert one_row_of(TritonOps(CPU, True), cuda, {VARIABLE: "on"}) is None
    assert one_row_of(fast, CPU, {}) is None
    assert one_row_of(fast, cuda, {VARIABLE: "off"}) is None
    measured, forced = one_row_of(fast, cuda, {}), one_row_of(fast, CPU, {VARIABLE: "on"})
    assert measured is not None
    assert not measured.is_settled
    assert forced is not None
    assert all(switch.is_on for switch in forced.switches)
    with pytest.raises(InvalidRequestError, match="TUILI_TORCH_ONE_ROW=yes"):
        one_row_of(fast, cuda, {VARIABLE: "yes"})
