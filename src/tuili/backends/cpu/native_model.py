"""From a ModelSpec and its weights to the C++ model: what is refused, what layers share, how bytes are handed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuili.backend import BackendOptions, Float32
from tuili.backends.cpu import _native
from tuili.checks import check_choice, check_count, refusal
from tuili.config import KV_CACHE_DTYPES
from tuili.errors import (
    InsufficientMemoryError,
    ModelFileError,
    TuiliError,
    UnsupportedModelError,
)
from tuili.machine import thread_limits
from tuili.models.alibi import alibi_slopes
from tuili.models.features import unsupported_features
from tuili.models.rope import attention_factor, inverse_frequencies
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import AttentionSpec, ModelSpec, RopeSpec
from tuili.quant.format import Tensor

ISAS = ("avx512_bf16", "avx512", "avx_vnni", "avx2", "scalar", "scalar_bf16")

SUPPORTED = frozenset(
    (
        *("activation=gelu", "activation=gelu_tanh", "activation=relu", "activation=relu2", "gated=False", "mlp.bias"),
        *("q_bias", "k_bias", "v_bias", "out_bias", "qk_norm=head", "qk_norm=each_head", "qk_norm=full"),
        *("rope=None", "sliding_window", "attention.logit_softcap", "sinks", "query_scaling"),
        *("norms=post", "norms=sandwich", "norms=output", "parallel", "parallel_norms=2", "residual_scale"),
        *("norm=layer", "norm_bias", "final_norm=False", "embedding_norm", "embedding_scale", "embedding_size"),
        *("logit_scale", "logit_softcap", "lm_head_bias", "position=learned", "position=alibi", "position=none"),
    )
)

_MAX_DIM = 2**31 - 1
BATCH_BYTES = 256 << 20  # of tensors read before they are packed

SourceTensor = tuple[str, tuple[int, ...], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """Which layers share a block table: those of full attention, then one group per window, narrowest first."""

    windows: tuple[int | None, ...]  # of each group
    of_layer: tuple[int, ...]

    @staticmethod
    def of(spec: ModelSpec) -> LayerGroups:
        layer_windows = [a.sliding_window for a in attention_specs(spec)]
        windows = tuple(sorted(set(layer_windows), key=lambda window: window or 0))
        return LayerGroups(windows, tuple(windows.index(window) for window in layer_windows))


def attention_specs(spec: ModelSpec) -> list[AttentionSpec]:
    """Every layer's mixer, once check_supported has seen that they are attention."""
    return [layer.mixer for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]


def check_supported(spec: ModelSpec) -> None:
    """Raises UnsupportedModelError naming every feature of `spec` that the C++ runtime lacks."""
    if missing := unsupported_features(spec, SUPPORTED):
        raise UnsupportedModelError(f"{spec.family}: the cpu backend does not implement {', '.join(missing)}")


def load_model(
    spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions, groups: LayerGroups
) -> _native.Model:
    """Packs the weights, a few at a time; nothing of `weights` is needed afterwards.

    Raises UnsupportedModelError, ModelFileError, InvalidRequestError (isa, num_threads) and InsufficientMemoryError.
    """
    check_supported(spec)
    _check_options(options)
    _check_names(spec, weights)
    ropes = sorted({a.rope for a in attention_specs(spec) if a.rope is not None}, key=repr)
    try:
        return _native.Model(
            spec,
            max_model_len=options.max_model_len,
            layer_groups=list(groups.of_layer),
            layer_slopes=[_slopes(a, spec) for a in attention_specs(spec)],
            layer_ropes=[-1 if a.rope is None else ropes.index(a.rope) for a in attention_specs(spec)],
            ropes=[_rope(rope, options.max_model_len) for rope in ropes],
            read_tensors=lambda names: _first_tensors(weights, names),
            isa=options.isa,
            num_threads=options.num_threads or min(thread_limits(0).num_threads, _native.MAX_THREADS),
        )
    except TuiliError:  # what went wrong with a weight while it was read
        raise
    except MemoryError as error:
        raise InsufficientMemoryError(f"{spec.family}: the weights do not fit in memory") from error
    except ValueError as error:
        raise ModelFileError(f"{spec.family}: {error}") from error


def _check_options(options: BackendOptions) -> None:
    if options.isa is not None:
        check_choice("isa", options.isa, ISAS)
        if not _native.has_isa(options.isa):
            raise refusal("isa", options.isa, "one this processor runs")
    check_count("num_threads", options.num_threads, 0, _native.MAX_THREADS)
    check_choice("kv_cache_dtype", options.kv_cache_dtype, tuple(KV_CACHE_DTYPES))
    check_choice("device", options.device, (None, "auto", "cpu"))


def _rope(rope: RopeSpec, max_model_len: int) -> tuple[Float32, float]:
    """Radians per position of each rotated pair, and the factor of cosines and sines."""
    return np.array(inverse_frequencies(rope, max_model_len), np.float32), attention_factor(rope, max_model_len)


def _slopes(a: AttentionSpec, spec: ModelSpec) -> tuple[float, ...]:
    return alibi_slopes(a.num_heads, spec.alibi_scale) if spec.position == "alibi" else ()


def _check_names(spec: ModelSpec, weights: Mapping[str, Tensor]) -> None:
    """Raises ModelFileError unless these are the spec's weights; their shapes are checked when they are read."""
    for name in sorted(tensor_shapes(spec).keys() ^ weights.keys()):
        raise ModelFileError(f"weight {name}: {'not one of this model' if name in weights else 'missing'}")


def _first_tensors(weights: Mapping[str, Tensor], names: list[str]) -> list[SourceTensor]:
    """The first of `names`, as many as BATCH_BYTES hold and at least one.

    Not all, as what a transform makes is a copy; not one by one, as each time waits for the interpreter's lock.
    """
    tensors: list[SourceTensor] = []
    num_bytes = 0
    for name in names:
        if num_bytes >= BATCH_BYTES:
            break
        tensors.append(_source_tensor(name, weights[name]))
        num_bytes += tensors[-1][2].nbytes
    return tensors


def _source_tensor(name: str, tensor: Tensor) -> SourceTensor:
    """Matrices as they are, vectors as float32, and so the gains of several heads, one after the other.

    Raises ModelFileError for a dimension that no int32 holds.
    """
    if max(tensor.shape) > _MAX_DIM:
        raise ModelFileError(f"weight {name} has shape {list(tensor.shape)}, dimensions below 2^31 are allowed")
    if len(tensor.shape) == 1 or name.endswith("norm.weight"):
        values = np.ascontiguousarray(tensor.dequantize(), np.float32).reshape(-1)
        return "F32", values.shape, values.view(np.uint8)[None]
    return tensor.format.name, tensor.shape, tensor.data
