"""A whole model: token ids to hidden states to logits. Knows modules and the cache; no batch, no sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tuili.backends.torch.building import Builder
from tuili.backends.torch.cache import PagedCache
from tuili.backends.torch.layers import Flow, Join, Layer, LayerStep
from tuili.backends.torch.one_row import OneRow, one_row_of
from tuili.backends.torch.ops import Ops
from tuili.backends.torch.positions import PositionTables
from tuili.backends.torch.shard import Shard, Stage
from tuili.backends.torch.step import StepInputs
from tuili.backends.torch.weights import WeightReader
from tuili.models.spec import AttentionSpec, ModelSpec


@dataclass(frozen=True, slots=True)
class Model:
    """The modules of a spec, front to back."""

    ops: Ops
    embed: Callable[[Tensor, Tensor], Tensor]
    layers: tuple[Layer, ...]
    tables: PositionTables
    final: Join
    head: Callable[[Tensor], Tensor]
    logit_scale: float
    logit_softcap: float | None
    num_bytes: int  # on the device
    num_host: int = 0  # of the layers: those before that are on the host, whose steps wait for the device
    shard: Shard | None = None
    stage: Stage | None = None
    one_row: OneRow | None = None

    def hidden(self, input_ids: Tensor, step: StepInputs, cache: PagedCache) -> Flow:
        """What leaves the last layer [T, hidden]; keys and values go to the cache."""
        flow: Flow = (self.embed(input_ids, step.positions), None)
        return self.through(flow, range(len(self.layers)), self.tables, step, cache)

    def through(self, flow: Flow, layers: range, tables: PositionTables, step: StepInputs, cache: PagedCache) -> Flow:
        """What leaves the last of some layers; the rest is where these are."""
        positions = tables.at(step.positions)
        x, residual = flow
        for i in layers:
            group = cache.group_of[i]
            where = LayerStep(
                positions[tables.kind_of[i]], step.plans[group], step.slot_mapping[group], cache.layers[i]
            )
            x, residual = self.layers[i](x, residual, where)
        return x, residual

    def finish(self, flow: Flow, rows: Tensor | None) -> Tensor:
        """The final norm of some rows, or of all: [R, hidden]."""
        x, residual = flow
        if rows is not None:
            x, residual = x.index_select(0, rows), None if residual is None else residual.index_select(0, rows)
        normed, _ = self.final(x, residual)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Raw logits float32 [R, vocab] of normed hidden states [R, hidden]."""
        return self.ops.finish_logits(self.head(hidden), self.logit_scale, self.logit_softcap)

    def agreed(self, token_ids: Tensor) -> Tensor:
        """Those that the first process chose: all go on from them."""
        if self.shard is None or not len(token_ids):
            return token_ids
        return self.shard.ranks.share(token_ids, 0)


def build_model(spec: ModelSpec, reader: WeightReader, ops: Ops, context_len: int, shard: Shard | None = None) -> Model:
    """Reads every weight once, front to back. context_len: the longest text there will be, for rotary frequencies.

    shard: what spec and weights are of a model that lies in several processes.
    """
    one_row = one_row_of(ops, reader.device) if shard is None else None
    builder = Builder(spec, reader, ops, shard, one_row)
    table = reader.matrix("embed_tokens")
    embed = builder.embedding(table)
    layers = tuple(builder.layer(i) for i in range(len(spec.layers)))
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    final = builder.join("norm" if spec.final_norm else None)
    head = builder.head(table)
    reader.report()
    return Model(
        ops=ops,
        embed=embed,
        layers=layers,
        tables=PositionTables(mixers, context_len, reader.device),
        final=final,
        head=head,
        logit_scale=spec.logit_scale,
        logit_softcap=spec.logit_softcap,
        num_bytes=reader.num_bytes,
        shard=shard,
        one_row=one_row,
    )
