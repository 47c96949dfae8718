"""Steps of a single row in fewer launches: products with the norm before and the activation behind them in one.

Which parts of a model take them is measured where its first graph of one row is captured. Knows modules and their
operations; the kernels are behind RowProducts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tuili.backends.torch.cache import is_out_of_memory
from tuili.backends.torch.layers import (
    AddNormed,
    Flow,
    GatedMlp,
    Heads,
    LayerStep,
    Linear,
    Norm,
    Normed,
    SequentialLayer,
)
from tuili.backends.torch.ops import DenseWeight, Ops, RowEntry, RowProducts
from tuili.errors import InvalidRequestError
from tuili.models.spec import Activation

VARIABLE = "TUILI_TORCH_ONE_ROW"  # on or off; unset: as measured
BOUNDS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # of a product's largest value
_GAIN = 0.99  # of the time that a step takes without
_ROUNDS = 5

Work = Callable[[], None]
_log = logging.getLogger(__name__)


class Site(Protocol):
    """A place in the model that has both ways."""

    def both(self) -> tuple[Tensor, Tensor]:
        """What each way makes of one made-up row: in one launch, and in several."""


@dataclass(slots=True)
class Switch:
    """Whether the places of one kind compute a single row in one launch."""

    name: str
    is_on: bool = False
    sites: list[Site] = field(default_factory=list)

    def takes(self, x: Tensor) -> bool:
        return self.is_on and x.shape[0] == 1

    def error(self) -> float:
        """The largest difference between both ways, as a share of its bound; NaN where there is one."""
        shares = []
        for site in self.sites:
            found, expected = site.both()
            scale = expected.float().abs().max().clamp(min=1e-9) * BOUNDS[_coarser(found, expected)]
            shares.append((found.float() - expected.float()).abs().max() / scale)
        return float(torch.stack(shares).max()) if shares else 0.0


def _coarser(*tensors: Tensor) -> torch.dtype:
    return max((tensor.dtype for tensor in tensors), key=lambda dtype: BOUNDS[dtype])


@dataclass(frozen=True, slots=True)
class RowLinear:
    """A product that is alone."""

    linear: Linear
    weight: Tensor
    products: RowProducts
    switch: Switch

    def __call__(self, x: Tensor) -> Tensor:
        return self._fused(x) if self.switch.takes(x) else self.linear(x)

    def _fused(self, x: Tensor) -> Tensor:
        return self.products(x, self.weight, self.linear.bias, out_dtype=self.linear.out_dtype)[0]

    def both(self) -> tuple[Tensor, Tensor]:
        x, _ = _made_up(self.weight)
        return self._fused(x), self.linear(x).to(x.dtype)


@dataclass(frozen=True, slots=True)
class EnteringProduct:
    """A sum, its norm, the product with one matrix, and the activation of what gates the rest."""

    norm: Norm
    scale: float | None  # of what is added to the residual; None: nothing is
    linear: Linear
    weight: Tensor
    activation: Activation | None
    products: RowProducts
    switch: Switch

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The product, and the sum."""
        return (self._fused if self.switch.takes(x) else self._apart)(x, residual)

    def _fused(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        scale = 1.0 if self.scale is None else self.scale
        entry = RowEntry(self.norm.gain, self.norm.eps, None if self.scale is None else residual, scale)
        return self.products(x, self.weight, self.linear.bias, entry, self.activation)

    def _apart(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        join = Normed(self.norm) if self.scale is None else AddNormed(self.norm, self.scale)
        entered, total = join(x, residual)
        out = self.linear(entered)
        if self.activation is None:
            return out, total
        gate, up = out.chunk(2, -1)
        return self.linear.ops.activate(gate, up, self.activation), total

    def both(self) -> tuple[Tensor, Tensor]:
        found, expected = (way(*_made_up(self.weight)) for way in (self._fused, self._apart))
        return torch.cat(found, -1), torch.cat(expected, -1)


@dataclass(frozen=True, slots=True)
class EnteredLayer:
    """A SequentialLayer whose norms belong to the products behind them."""

    layer: SequentialLayer
    heads: Heads
    widths: tuple[int, ...]  # of queries, keys and values
    down: Callable[[Tensor], Tensor]
    attention_entry: EnteringProduct
    mlp_entry: EnteringProduct

    def __call__(self, x: Tensor, residual: Tensor | None, step: LayerStep) -> Flow:
        made, residual = self.attention_entry(x, residual)
        x = self.layer.attention.mixed(*self.heads.shaped(list(made.split(self.widths, -1))), step)
        x = x if self.layer.attention_post is None else self.layer.attention_post(x)
        made, residual = self.mlp_entry(x, residual)
        x = self.down(made)
        return (x if self.layer.mlp_post is None else self.layer.mlp_post(x)), residual


class OneRow:
    """Builds the modules that have both ways, and decides between them."""

    def __init__(self, products: RowProducts, is_forced: bool = False) -> None:
        """is_forced: every part is on, unmeasured and in any step of one row. Else each is off until it is measured."""
        self._products, self.is_settled = products, is_forced
        self.entering, self.leaving, self.head = (
            Switch(name, is_forced) for name in ("entering products", "leaving products", "head")
        )
        self.step_seconds: dict[str, float] = {}  # of what was tried: without any, then with one more part each

    @property
    def switches(self) -> tuple[Switch, ...]:
        return self.entering, self.leaving, self.head

    def linear(self, linear: Linear, switch: Switch) -> Callable[[Tensor], Tensor]:
        weight = self._matrix(linear)
        if weight is None:
            return linear
        site = RowLinear(linear, weight, self._products, switch)
        switch.sites.append(site)
        return site

    def layer(self, layer: SequentialLayer) -> SequentialLayer | EnteredLayer:
        """The layer itself where its parts are others than there are kernels for."""
        attention, mlp = layer.attention, layer.mlp
        if not (isinstance(attention.heads, Heads) and isinstance(mlp, GatedMlp)):
            return layer
        groups = attention.heads.project.groups, mlp.gate_and_up.groups
        if any(len(group) != 1 for group in groups):
            return layer
        first = self._entering(layer.attention_join, groups[0][0][0], None)
        second = self._entering(layer.mlp_join, groups[1][0][0], mlp.activation)
        if first is None or second is None:
            return layer
        self.entering.sites += [first, second]
        return EnteredLayer(layer, attention.heads, groups[0][0][1], mlp.down, first, second)

    def _entering(self, join: object, linear: Linear, activation: Activation | None) -> EnteringProduct | None:
        weight = self._matrix(linear)
        if weight is None or not isinstance(join, Normed | AddNormed):
            return None
        if join.norm.kind != "rms" or join.norm.bias is not None:
            return None
        scale = join.scale if isinstance(join, AddNormed) else None
        return EnteringProduct(join.norm, scale, linear, weight, activation, self._products, self.entering)

    def _matrix(self, linear: Linear) -> Tensor | None:
        weight = linear.weight
        return weight.weight if isinstance(weight, DenseWeight) and self._products.takes(weight.weight) else None

    def fastest(self, captured: Callable[[], Work], clock: Callable[[Work], float]) -> Work:
        """What runs a step of one row again, captured with what makes it fastest; measured the first time."""
        if self.is_settled:
            return captured()
        best = captured()
        self.is_settled = True
        seconds = self.step_seconds["without"] = clock(best)
        for switch in self.switches:
            better = self._tried(switch, captured) if switch.sites else None
            if better is None:
                continue
            took = self.step_seconds[switch.name] = clock(better)
            switch.is_on = took < _GAIN * seconds
            if switch.is_on:
                best, seconds = better, took
        _log.info("steps of one row, fused: %s", self.told())
        return best

    def _tried(self, switch: Switch, captured: Callable[[], Work]) -> Work | None:
        """With that one on, too; None, and off again, where it is wrong or fails."""
        try:
            error = switch.error()
            if error <= 1:
                switch.is_on = True
                return captured()
            _log.warning("products of one row (%s) are %.3g times their bound off: not used", switch.name, error)
        except Exception as problem:
            why = "no memory" if isinstance(problem, RuntimeError) and is_out_of_memory(problem) else problem
            _log.warning("products of one row (%s) are not used: %s", switch.name, why)
        switch.is_on = False
        return None

    def told(self) -> str:
        """The parts that are on, and how long a step took with each that was tried."""
        tried = ", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in self.step_seconds.items())
        return f"{', '.join(s.name for s in self.switches if s.is_on) or 'nothing'} (a step: {tried})"


def one_row_of(ops: Ops, device: torch.device, environment: Mapping[str, str] | None = None) -> OneRow | None:
    """None where there is nothing to choose. Raises InvalidRequestError for another value of VARIABLE."""
    wanted = (os.environ if environment is None else environment).get(VARIABLE, "")
    if wanted not in ("", "on", "off"):
        raise InvalidRequestError(f"{VARIABLE}={wanted}; allowed: on, off, or unset")
    products = ops.row_products
    if products is None or wanted == "off" or not (wanted or device.type == "cuda"):
        return None
    return OneRow(products, wanted == "on")


def step_seconds(device: torch.device) -> Callable[[Work], float]:
    """How long work takes on the device, which is waited for: the least of a few rounds."""

    def on_host(work: Work) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    def on_device(work: Work) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    once = on_device if device.type == "cuda" else on_host
    return lambda work: min(once(work) for _ in range(_ROUNDS))


def _made_up(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A row that enters, and one that it is added to."""
    angles = torch.arange(weight.shape[1], dtype=torch.float32, device=weight.device)[None]
    return angles.sin().to(weight.dtype), angles.cos().to(weight.dtype)
