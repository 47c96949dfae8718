"""A model whose first layers run on the host. Knows modules and where they are; placement.py decides that."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuili.backends.torch.building import Builder
from tuili.backends.torch.cache import PagedCache
from tuili.backends.torch.layers import Flow
from tuili.backends.torch.model import Model
from tuili.backends.torch.ops import Ops
from tuili.backends.torch.positions import PositionTables
from tuili.backends.torch.step import StepInputs
from tuili.backends.torch.weights import WeightReader
from tuili.models.spec import AttentionSpec, ModelSpec

HOST = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitModel(Model):
    """The embedding and the first `num_host` layers are in host memory, with their caches."""

    host_tables: PositionTables

    def hidden(self, input_ids: Tensor, step: StepInputs, cache: PagedCache) -> Flow:
        """See Model.hidden. Waits for the device where the input ids come from there."""
        inputs = _on_host(step)
        flow: Flow = (self.embed(input_ids.to(HOST), inputs.positions), None)
        flow = self.through(flow, range(self.num_host), self.host_tables, inputs, cache)
        x, residual = flow
        device = step.positions.device
        moved = x.to(device), None if residual is None else residual.to(device)
        return self.through(moved, range(self.num_host, len(self.layers)), self.tables, step, cache)


def build_split_model(
    spec: ModelSpec, host: tuple[WeightReader, Ops], device: tuple[WeightReader, Ops], num_host: int, context_len: int
) -> SplitModel:
    """As build_model, with a reader and operations for either side."""
    builder = Builder(spec, *host)
    table = builder.reader.matrix("embed_tokens")
    embed = builder.embedding(table)
    layers = [builder.layer(i) for i in range(num_host)]
    builder.reader.report()
    builder.reader, builder.ops = reader, ops = device
    layers += [builder.layer(i) for i in range(num_host, len(spec.layers))]
    final = builder.join("norm" if spec.final_norm else None)
    head = builder.head(reader.matrix("embed_tokens") if spec.tie_word_embeddings else table)
    reader.report()
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    return SplitModel(
        ops=ops,
        embed=embed,
        layers=tuple(layers),
        tables=PositionTables(mixers, context_len, reader.device),
        final=final,
        head=head,
        logit_scale=spec.logit_scale,
        logit_softcap=spec.logit_softcap,
        num_bytes=reader.num_bytes,
        num_host=num_host,
        host_tables=PositionTables(mixers, context_len, HOST),
    )


def _on_host(step: StepInputs) -> StepInputs:
    """What the host's layers need of it."""
    plans = tuple(
        replace(
            plan,
            query_start=plan.query_start.to(HOST),
            seq_lens=plan.seq_lens.to(HOST),
            block_table=plan.block_table.to(HOST),
        )
        for plan in step.plans
    )
    return replace(step, positions=step.positions.to(HOST), slot_mapping=step.slot_mapping.to(HOST), plans=plans)
