"""Models whose first layers run on the host: which these are, and that nobody can tell by the logits."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.batches import Driver, Work
from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.torch import backend as backend_module
from tuili.backends.torch import placement
from tuili.backends.torch.backend import TorchBackend
from tuili.backends.torch.layers import Flow
from tuili.backends.torch.model import Model
from tuili.backends.torch.ops import choose_ops
from tuili.backends.torch.placement import ModelSizes, model_sizes, num_host_layers
from tuili.backends.torch.split import SplitModel, build_split_model
from tuili.backends.torch.weights import WeightReader
from tuili.errors import InsufficientMemoryError
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OPTIONS = BackendOptions(max_model_len=64, device="cpu")
TEXT = np.random.default_rng(3).integers(0, 101, 40).tolist()
LAYERS = (layer(), layer(sliding_window=9), layer(), layer(sliding_window=9))
SPECS = {
    "tied": decoder(*LAYERS, tie_word_embeddings=True),
    "untied": decoder(*LAYERS, tie_word_embeddings=False),
    "post": decoder(*(replace(one, norms="post") for one in LAYERS)),
    "residual": decoder(*(replace(one, residual_scale=0.5) for one in LAYERS), embedding_scale=2.0),
}


def readers(spec: ModelSpec, weights: dict[str, Tensor], *, keep_packed: bool = False) -> list[WeightReader]:
    shapes = tensor_shapes(spec)
    sides = (False, keep_packed)
    return [WeightReader(weights, shapes, dtype=torch.float32, device=CPU, keep_packed=packed) for packed in sides]


def split_backend(
    spec: ModelSpec, weights: dict[str, Tensor], num_host: int
) -> tuple[TorchBackend, list[WeightReader]]:
    host, device = sides = readers(spec, weights)
    with torch.inference_mode():
        model = build_split_model(spec, (host, choose_ops(CPU)), (device, choose_ops(CPU)), num_host, 64)
    return TorchBackend(spec, model, OPTIONS, device=CPU, dtype=torch.float32), sides


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("num_host", [1, 3, 4])
def test_layers_on_the_host_change_no_bit_of_the_logits(name: str, num_host: int) -> None:
    spec = SPECS[name]
    weights = random_weights(spec)
    expected = Driver(load_backend("torch", spec, weights, OPTIONS)).logits(TEXT, chunk=7)
    backend, (host, device) = split_backend(spec, weights, num_host)
    np.testing.assert_array_equal(Driver(backend).logits(TEXT, chunk=7), expected)
    sizes = model_sizes(spec, {}, torch.float32, 64)
    table = spec.vocab_size * spec.hidden_size * 4
    assert host.num_bytes == sum(sizes.layers[:num_host]) + table
    assert device.num_bytes == backend.weight_bytes == sizes.num_bytes - sum(sizes.layers[:num_host])


def test_hidden_states_cross_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stretches: list[range] = []
    real = Model.through

    def through(self: Model, flow: Flow, layers: range, *rest: Any) -> Flow:
        stretches.append(layers)
        return real(self, flow, layers, *rest)

    backend, _ = split_backend(SPECS["tied"], random_weights(SPECS["tied"]), 3)
    monkeypatch.setattr(Model, "through", through)
    driver = Driver(backend)
    driver.step([Work(driver.text(), TEXT)])
    assert stretches == [range(3), range(3, 4)]


def test_a_cache_is_where_its_layers_are() -> None:
    spec = SPECS["tied"]
    whole = load_backend("torch", spec, random_weights(spec), OPTIONS)
    backend, _ = split_backend(spec, random_weights(spec), 3)
    full, window = (group.block_bytes for group in whole.cache_groups(16))
    assert [group.block_bytes for group in backend.cache_groups(16)] == [full, window // 2]  # a group all on the host
    backend.allocate_cache([4, 4])
    moved = np.array([(0, 1, 2), (1, 0, 3)], np.int32)
    assert backend.allocate_swap([4, 4]) > 0
    backend.swap_out(moved)


def test_packed_weights_are_counted_as_they_are_kept() -> None:
    wide = replace(layer(num_heads=16), mlp=replace(layer().mlp, intermediate_size=256))
    spec = decoder(wide, wide, hidden_size=256, tie_word_embeddings=True)
    weights = random_weights(spec, "Q4_0", down_proj="Q5_1")  # which has no kernel
    _, reader = readers(spec, weights, keep_packed=True)
    with torch.inference_mode():
        model = backend_module.build_model(spec, reader, choose_ops(CPU), 64)
    assert model_sizes(spec, weights, torch.float32, 64).num_bytes == model.num_bytes


class Card:
    """A device of 1000 bytes."""

    def __init__(self, free: int) -> None:
        self.free = free

    def total_bytes(self) -> int:
        return 1000

    def free_bytes(self) -> int:
        return self.free

    def reserved_bytes(self) -> int:
        return 0

    def peak_bytes(self) -> int:
        return 0

    def reset_peak(self) -> None: ...


SIZES = ModelSizes(layers=(90, 90, 90, 90), caches=(10, 10, 10, 10), rest=50)


@pytest.mark.parametrize(
    ("free", "options", "num_host"),
    [
        (1000, {}, 0),
        (600, {}, 0),  # of which 500 are granted, and 450 are not for steps
        (599, {}, 1),
        (420, {}, 2),
        (160, {}, 4),
        (600, {"gpu_memory_utilization": 0.8}, 1),
        (1000, {"gpu_layers": 3}, 1),
        (160, {"gpu_layers": 3}, 1),  # as it was asked for
        (1000, {"gpu_layers": 99}, 0),
        (1000, {"gpu_layers": 0}, 4),
        (1000, {"cpu_offload_bytes": 91}, 2),
        (420, {"cpu_offload_bytes": 1}, 2),
        (1000, {"cpu_offload_bytes": 10**9}, 4),
    ],
)
def test_as_many_layers_as_fit_are_on_the_device(
    free: int, options: dict[str, Any], num_host: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "device_memory", lambda _: Card(free))
    assert num_host_layers(SIZES, replace(OPTIONS, **options), GPU) == num_host
    assert num_host_layers(SIZES, replace(OPTIONS, **options), CPU) == 0


def test_a_device_too_small_for_the_head_is_an_error_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "device_memory", lambda _: Card(149))
    with pytest.raises(InsufficientMemoryError, match=r"not even the head's 0\.00 fit on cuda:0: .* is 0\.9$"):
        num_host_layers(SIZES, OPTIONS, GPU)


def test_what_runs_on_the_host_is_told_with_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = SPECS["tied"]
    weights = random_weights(spec)
    expected = Driver(load_backend("torch", spec, weights, OPTIONS)).logits(TEXT)
    monkeypatch.setattr(backend_module, "num_host_layers", lambda *_: 2)
    backend = load_backend("torch", spec, weights, OPTIONS)
    assert isinstance(backend, TorchBackend)
    assert isinstance(backend._open_model, SplitModel)
    np.testing.assert_array_equal(Driver(backend).logits(TEXT), expected)
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith(
        "layers 0 to 1 of 4, 0.00 GiB, run on the CPU, the others with the head, 0.00 GiB, on cpu: a "
    )
    assert "times as long as if all were there (memory is read at" in told
    monkeypatch.setattr(placement, "available_memory", lambda: 100)
    with pytest.raises(
        InsufficientMemoryError, match=r"2 of 4 layers would run on the CPU, whose memory has 0\.00 GiB"
    ):
        load_backend("torch", spec, weights, OPTIONS)
