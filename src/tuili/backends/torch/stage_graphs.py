"""Decode steps of one stage as captured graphs: what comes from other stages and goes to them does so outside of these.

A stage captures by itself: others may be at another size, or without graphs. Only rows that are somebody's are sent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tuili.backend import Batch
from tuili.backends.torch.cache import PagedCache
from tuili.backends.torch.graphs import NUM_ROWS, Capture, Decoded, DecodeGraphs, Graph, GraphLimits, GraphOutputs
from tuili.backends.torch.staged import StagedModel, stacked
from tuili.backends.torch.step import StepInputs


class StageGraphs(DecodeGraphs):
    """A replay reads what the stage has received and leaves what it will send, both at fixed addresses."""

    def __init__(
        self,
        model: StagedModel,
        cache: PagedCache,
        input_ids: Callable[[StepInputs], Tensor],
        last_tokens: Tensor,
        limits: GraphLimits,
        capture: Capture,
    ) -> None:
        """input_ids: those of a step, whole on the last stage."""
        super().__init__(self._logits, last_tokens, limits, capture)
        self._model, self._cache, self._input_ids = model, cache, input_ids
        stage, device, most = model.stage, last_tokens.device, NUM_ROWS[-1]
        ids = torch.zeros((1, most), dtype=torch.int32, device=device)
        flows = torch.zeros((model.num_entering, most, model.hidden_size), dtype=model.dtype, device=device)
        self._entering = ids if stage.is_first else flows
        self._leaving = flows.new_zeros((0 if stage.is_last else model.num_leaving, most, model.hidden_size))

    def _replayed(self, graph: Graph, batch: Batch) -> Decoded:
        model, count = self._model, len(batch.seq_lens)
        input_ids = self._input_ids(graph.step)[:count]
        self._entering[:, :count].copy_(model.enter(input_ids, is_carried=bool(batch.carry.any())))
        if model.stage.is_last:
            return super()._replayed(graph, batch)
        graph.replay()
        model.send(self._leaving[:, :count])
        return Decoded(self._leaving[0, :0], input_ids[:0], input_ids[:0], graph.step)

    def _made_outputs(self) -> GraphOutputs:
        if self._model.stage.is_last:
            return super()._made_outputs()
        nothing = self._last_tokens[:0]
        return GraphOutputs(nothing.float(), nothing, nothing, self._last_tokens)

    def _work(self, step: StepInputs, outputs: GraphOutputs, rows: int) -> None:
        if self._model.stage.is_last:
            super()._work(step, outputs, rows)
        else:
            self._leaving[:, :rows].copy_(stacked(self._flow(step)))

    def _logits(self, step: StepInputs) -> Tensor:
        return self._model.logits(self._model.finish(self._flow(step), None))

    def _flow(self, step: StepInputs) -> tuple[Tensor, Tensor | None]:
        entering = self._entering[:, : len(step.input_ids)]
        return self._model.compute(entering[0] if self._model.stage.is_first else entering, step, self._cache)
