"""How weights get into the C++ runtime: a few at a time, each read once; rotary rows are made when reached."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from support.random_models import decoder, layer, random_weights
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.backends.cpu import _native, native_model
from tuili.errors import UnsupportedModelError
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import RopeSpec
from tuili.quant.format import Tensor

K = _native.kernels  # type: ignore[attr-defined]
OPTIONS = BackendOptions(max_model_len=64, num_threads=2)


class MadeWhenAsked(Mapping[str, Tensor]):
    """Copies of weights, watched: which were asked for, and how many are alive when another is."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._made: list[weakref.ref[np.ndarray]] = []
        self.asked: list[str] = []
        self.most_alive = 0

    def __getitem__(self, name: str) -> Tensor:
        self.most_alive = max(self.most_alive, sum(made() is not None for made in self._made))
        self.asked.append(name)
        tensor = self._weights[name]
        data = tensor.data.copy()
        self._made.append(weakref.ref(data))
        return Tensor(tensor.format, tensor.shape, data)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@pytest.mark.parametrize(("batch_bytes", "most_alive"), [(1, 0), (10_000, 10)])
def test_every_tensor_is_read_once_and_gone_soon(
    monkeypatch: pytest.MonkeyPatch, batch_bytes: int, most_alive: int
) -> None:
    monkeypatch.setattr(native_model, "BATCH_BYTES", batch_bytes)
    spec = decoder()
    weights = MadeWhenAsked(random_weights(spec, "Q8_0"))
    load_backend("cpu", spec, weights, OPTIONS)
    assert sorted(weights.asked) == sorted(tensor_shapes(spec))
    assert weights.most_alive <= most_alive


def test_an_error_while_reading_comes_out_as_it_is() -> None:
    spec = decoder()

    class Refusing(MadeWhenAsked):
        def __getitem__(self, name: str) -> Tensor:
            if name.endswith("1.mlp_norm.weight"):
                raise UnsupportedModelError(f"{name} is odd")
            return super().__getitem__(name)

    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp_norm\.weight is odd"):
        load_backend("cpu", spec, Refusing(random_weights(spec)), OPTIONS)


def test_a_long_context_costs_nothing_until_it_is_used() -> None:
    spec = decoder(layer(rope=RopeSpec(dim=16)), max_position=1 << 22)
    weights = random_weights(spec)
    short = load_backend("cpu", spec, weights, OPTIONS)
    long = load_backend("cpu", spec, weights, BackendOptions(max_model_len=1 << 22, num_threads=2))
    assert long.weight_bytes == short.weight_bytes  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_positions", [1, 64, 1000])
def test_rotary_rows(num_threads: int, num_positions: int) -> None:
    frequencies = (10_000.0 ** -(np.arange(32) / 32)).astype(np.float32)
    cos, sin = np.empty((2, num_positions * 32), np.float32)
    K.rope_rows(frequencies, 1.25, num_threads, cos, sin)
    angles = (np.arange(num_positions, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    for rows, expected in ((cos, np.cos(angles)), (sin, np.sin(angles))):
        np.testing.assert_allclose(rows.reshape(-1, 32), expected * 1.25, rtol=1e-7, atol=1e-7)
