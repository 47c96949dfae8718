"""The torch backend: any decoder on CUDA, XPU, MPS or the CPU, with paged keys and values and packed weights."""

from collections.abc import Mapping

from tuili.backend import Backend, BackendOptions
from tuili.backends.torch.backend import load as load_alone
from tuili.models.spec import ModelSpec
from tuili.quant.format import Tensor
from tuili.weights.quantizing import Quantizer, quantize_tensor

__all__ = ["load", "quantizer"]


def load(spec: ModelSpec, weights: Mapping[str, Tensor], options: BackendOptions) -> Backend:
    """Into this process, or into as many as the options ask for. Raises as backend.load and parallel.load_group."""
    if options.tensor_parallel_size == options.pipeline_parallel_size == 1:
        return load_alone(spec, weights, options)
    from tuili.backends.torch.parallel import load_group

    return load_group(spec, weights, options)


def quantizer(num_threads: int) -> Quantizer:
    """The Quantizer of this backend: one thread, whatever their number."""
    return quantize_tensor
