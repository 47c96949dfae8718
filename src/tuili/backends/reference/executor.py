"""The Backend of the reference: a batch in, a StepResult out. Knows the batch's fields; the mathematics is below."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ListLike

import numpy as np

from tuili.backend import (
    Backend,
    BackendOptions,
    Batch,
    CacheGroup,
    Choices,
    Float32,
    Int32,
    SamplingArrays,
    StepHandle,
    StepResult,
    UInt32,
    empty_result,
    refuse_unread,
)
from tuili.backends.reference.cache import PagedCache
from tuili.backends.reference.forward import Forward
from tuili.backends.reference.sampling import choose, choose_row, score
from tuili.checks import check_choice, refusal
from tuili.config import KV_CACHE_DTYPES
from tuili.errors import ModelFileError, UnsupportedModelError
from tuili.models.features import unsupported_features
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.quant.format import Tensor

ROW_TILE = 64  # rows whose logits exist at one time

SUPPORTED = frozenset(
    (
        *("activation=gelu", "activation=gelu_tanh", "activation=relu", "activation=relu2", "gated=False", "mlp.bias"),
        *("q_bias", "k_bias", "v_bias", "out_bias", "qk_norm=head", "qk_norm=each_head", "qk_norm=full"),
        *(
            "rope=None",
            "sinks",
            "sliding_window",
            "attention.logit_softcap",
            "norms=post",
            "norms=sandwich",
            "norms=output",
        ),
        *(
            "parallel",
            "residual_scale",
            "norm=layer",
            "norm_bias",
            "final_norm=False",
            "embedding_norm",
            "embedding_scale",
        ),
        *("embedding_size", "logit_scale", "logit_softcap", "lm_head_bias", "parallel_norms=2", "query_scaling"),
        *("position=learned", "position=alibi", "position=none"),
    )
)


def load(spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions) -> Backend:
    """Dequantizes every weight to float32 and returns a backend without a cache.

    Raises UnsupportedModelError naming what the reference lacks, ModelFileError for weights that are not the spec's.
    """
    if options.isa is not None:
        raise refusal("isa", options.isa, "None for the reference backend")
    check_choice("kv_cache_dtype", options.kv_cache_dtype, tuple(KV_CACHE_DTYPES))
    check_choice("device", options.device, (None, "auto", "cpu"))
    if missing := unsupported_features(spec, SUPPORTED):
        raise UnsupportedModelError(f"{spec.family}: the reference backend does not implement {', '.join(missing)}")
    return ReferenceBackend(spec, _dequantized(weights, tensor_shapes(spec)), options)


def _dequantized(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Float32]:
    if wrong := sorted(weights.keys() ^ shapes.keys()):
        raise ModelFileError(f"weights missing or not the spec's: {', '.join(wrong[:4])}")
    arrays = {}
    for name, tensor in weights.items():
        if tensor.shape != shapes[name]:
            raise ModelFileError(f"weight {name} has shape {tensor.shape}; allowed: {shapes[name]}")
        values = np.ascontiguousarray(tensor.dequantize(), np.float32)
        # Float32 weights are views of the mapped file, which may shrink once the model is loaded.
        arrays[name] = values.copy() if np.may_share_memory(values, tensor.data) else values
    return arrays


class ReferenceBackend:
    """A loaded model, its cache and the token each slot sampled last."""

    is_asynchronous = False
    num_stages = 1

    def __init__(self, spec: ModelSpec, weights: dict[str, Float32], options: BackendOptions) -> None:
        self._spec = spec
        self._weights = weights
        self._forward = Forward(spec, weights, options.max_model_len)
        mixers = tuple(y.mixer for y in spec.layers if isinstance(y.mixer, AttentionSpec))
        self._cache = PagedCache(mixers, options.kv_cache_dtype)
        self._last_tokens: dict[int, int] = {}

    @property
    def vocab_size(self) -> int:
        return self._spec.vocab_size

    def cache_groups(self, block_size: int) -> tuple[CacheGroup, ...]:
        return self._cache.groups(block_size)

    def allocate_cache(self, num_blocks: ListLike[int]) -> None:
        self._cache.allocate(num_blocks)

    def execute(self, batch: Batch) -> StepHandle:
        """Runs the step at once; the handle is ready. Raises UnsupportedModelError naming a field it does not read."""
        refuse_unread(batch, "reference")
        x = self._forward.hidden(batch, self._input_ids(batch), self._cache)
        hidden = self._forward.final_norm(x[batch.sample_rows])
        result = self._rows(batch, hidden)
        self._remember(batch, result.token_ids)
        return _Finished(result)

    def sample(self, logits: Float32, sampling: SamplingArrays, allow_mask: UInt32 | None) -> Choices:
        return choose(logits, sampling, allow_mask)

    def close(self) -> None:
        """Gives the memory back by forgetting it; the backend is of no use afterwards."""
        self._weights.clear()
        self._cache = PagedCache(())

    def _input_ids(self, batch: Batch) -> Int32:
        ids = batch.input_ids.copy()
        for s in np.flatnonzero(batch.carry):
            ids[batch.query_start[s + 1] - 1] = self._last_tokens[int(batch.slots[s])]
        return ids

    def _remember(self, batch: Batch, token_ids: Int32) -> None:
        """A slot's last token is the one chosen for it; scored targets leave it as it is."""
        for r in np.flatnonzero(batch.targets < 0):
            s = int(np.searchsorted(batch.query_start, batch.sample_rows[r], side="right")) - 1
            self._last_tokens[int(batch.slots[s])] = int(token_ids[r])

    def _rows(self, batch: Batch, hidden: Float32) -> StepResult:
        """Logits, choices and scores of the R rows, a few rows at a time."""
        result = empty_result(batch, self.vocab_size, hidden.shape[1])
        token_ids, logit_rows = result.token_ids, result.logit_rows
        token_ids[:] = batch.targets
        for start in range(0, len(hidden), ROW_TILE):
            logits = self._forward.logits(hidden[start : start + ROW_TILE])
            if result.logits is not None and logit_rows is not None:
                first, end = np.searchsorted(logit_rows, (start, start + ROW_TILE))
                result.logits[first:end] = logits[logit_rows[first:end] - start]
            for r, row in enumerate(logits, start):
                if token_ids[r] < 0 and np.isfinite(row.max()):
                    token_ids[r], result.sampler_state[r] = choose_row(row, batch.sampling, r, batch.allow_mask)
                if batch.num_logprobs[r] >= 0 and token_ids[r] >= 0:
                    scored = score(row, int(token_ids[r]), int(batch.num_logprobs[r]))
                    result.logprobs[r], result.ranks[r] = scored.logprob, scored.rank
                    result.top_ids[r, : len(scored.top_ids)] = scored.top_ids
                    result.top_logprobs[r, : len(scored.top_ids)] = scored.top_logprobs
        if result.hidden is not None:
            result.hidden[:] = hidden
        return result


class _Finished:
    """The handle of a step that is done already."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        return self._result
