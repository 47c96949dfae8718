"""A model of which other processes have the layers before and behind. Knows modules, and who is next to whom.

Ids come from the last stage, which chooses tokens, where a step goes on from those of the step before. The first stage
therefore begins a step of prompts while the others are still at the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from tuili.backend import Batch, StepResult, empty_result
from tuili.backends.torch.building import Builder
from tuili.backends.torch.cache import PagedCache
from tuili.backends.torch.layers import Flow
from tuili.backends.torch.model import Model
from tuili.backends.torch.ops import Ops
from tuili.backends.torch.positions import PositionTables
from tuili.backends.torch.shard import Shard, Stage
from tuili.backends.torch.step import StepInputs
from tuili.backends.torch.weights import WeightReader
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.quant.format import Tensor as FileTensor


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedModel(Model):
    """One stage: the modules of its layers; those of others are not there."""

    stage: Stage
    hidden_size: int
    num_entering: int  # tensors that come from the stage before: x, and what it is to be added to
    num_leaving: int  # to the next one
    dtype: torch.dtype

    def hidden(self, input_ids: Tensor, step: StepInputs, cache: PagedCache) -> Flow:
        """See Model.hidden: what leaves this stage's last layer, which the next stage has been sent then."""
        entering = self.enter(input_ids, is_carried=step.carry_slots is not None)
        return self.leave(self.compute(entering, step, cache))

    def enter(self, input_ids: Tensor, *, is_carried: bool) -> Tensor:
        """Where the stage starts from: ids [T] for the first one, a flow [n, T, hidden] for others.

        input_ids are whole on the last stage, and where nothing is carried.
        """
        stage, ranks = self.stage, self.stage.ranks
        if is_carried and stage.is_last:
            ranks.send(input_ids, 0)
        if stage.is_first:
            return ranks.receive(torch.empty_like(input_ids), stage.size - 1) if is_carried else input_ids
        shape = (self.num_entering, len(input_ids), self.hidden_size)
        return ranks.receive(torch.empty(shape, dtype=self.dtype, device=input_ids.device), ranks.rank - 1)

    def compute(self, entering: Tensor, step: StepInputs, cache: PagedCache) -> Flow:
        """What leaves the last layer that is here."""
        if self.stage.is_first:
            flow: Flow = (self.embed(entering, step.positions), None)
        else:
            x, *rest = entering.unbind()
            flow = (x, rest[0] if rest else None)
        return self.through(flow, range(len(self.layers)), self.tables, step, cache)

    def leave(self, flow: Flow) -> Flow:
        """The same, once the next stage has been sent it, if there is one."""
        if not self.stage.is_last:
            self.send(stacked(flow))
        return flow

    def send(self, flow: Tensor) -> None:
        """A flow [n, T, hidden] to the next stage."""
        self.stage.ranks.send(flow, self.stage.ranks.rank + 1)


def stacked(flow: Flow) -> Tensor:
    """As one tensor [n, T, hidden]."""
    x, residual = flow
    return x[None] if residual is None else torch.stack((x, residual))


def build_staged_model(
    spec: ModelSpec, reader: WeightReader, ops: Ops, context_len: int, shard: Shard | None, stage: Stage
) -> StagedModel:
    """As build_model, of one stage's layers."""
    builder = Builder(spec, reader, ops, shard)
    is_tied = spec.tie_word_embeddings
    table = reader.matrix("embed_tokens") if stage.has("embed_tokens.weight", is_tied) else None
    embed = _elsewhere if not stage.is_first or table is None else builder.embedding(table)
    builder.begin_at(stage.layers.start)
    num_entering = _num_tensors(builder)
    layers = tuple(builder.layer(i) for i in stage.layers)
    num_leaving = _num_tensors(builder)
    mixers = [spec.layers[i].mixer for i in stage.layers]
    final = builder.join("norm" if spec.final_norm else None) if stage.is_last else _elsewhere
    head = builder.head(table) if stage.is_last else _elsewhere
    reader.report()
    return StagedModel(
        ops=ops,
        embed=embed,
        layers=layers,
        tables=PositionTables([a for a in mixers if isinstance(a, AttentionSpec)], context_len, reader.device),
        final=final,
        head=head,
        logit_scale=spec.logit_scale,
        logit_softcap=spec.logit_softcap,
        num_bytes=reader.num_bytes,
        shard=shard,
        stage=stage,
        hidden_size=spec.hidden_size,
        num_entering=num_entering,
        num_leaving=num_leaving,
        dtype=reader.dtype,
    )


def _num_tensors(builder: Builder) -> int:
    """Of the flow at the layer that comes next."""
    return 1 if builder.pending is None else 2


def _elsewhere(*_: object, **__: object) -> NoReturn:
    raise AssertionError("another stage has this part of the model")


class WeightsWithout(Mapping[str, FileTensor]):
    """Weights by name but for some, which are another's. What is no weight of the model at all stays to be found."""

    def __init__(self, whole: Mapping[str, FileTensor], others: AbstractSet[str]) -> None:
        self._whole = whole
        self._names = [name for name in whole if name not in others]

    def __getitem__(self, name: str) -> FileTensor:
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SentStep:
    """The handle of a step that goes on in the next stage: this one chooses nothing."""

    def __init__(self, batch: Batch, vocab_size: int, hidden_size: int) -> None:
        self._shape = (batch, vocab_size, hidden_size)

    def result(self) -> StepResult:
        """Of the batch's shapes, with nothing in it."""
        return empty_result(*self._shape)
