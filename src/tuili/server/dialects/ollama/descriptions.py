"""What Ollama's clients are told about a model, from its files' headers; never from a weight's value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuili.errors import ModelFileError, ModelNotFoundError
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.runtime.front.sampling_defaults import SamplingDefaults
from tuili.runtime.front.text_parts import chat_template_source
from tuili.weights.checkpoint import Checkpoint, open_checkpoint
from tuili.weights.mapped_file import file_stamps

MAX_ARRAY = 64  # elements of an array of metadata that are shown unless asked for all
_THINKING = ("enable_thinking", "reasoning_content", "reasoning_effort", "<think>")
_MAX_KNOWN = 256
_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the headers say.

    `metadata` are GGUF's keys, long arrays as None; for other files the keys that clients read.
    """

    details: Mapping[str, Any]
    metadata: Mapping[str, Any]
    template: str | None
    context_length: int
    license: str | None
    generation_config: Mapping[str, Any]

    @property
    def capabilities(self) -> list[str]:
        """What can be asked of the model here."""
        thinks = self.template is not None and any(word in self.template for word in _THINKING)
        return ["completion", *(("thinking",) if thinks else ())]


def read_facts(path: Path, quantization: str | None) -> Facts:
    """Raises what open_checkpoint raises. Files that have not changed are read once."""
    try:
        return _facts(path, quantization, file_stamps(path))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path.name}: removed from the disk") from None
    except OSError as error:
        raise ModelFileError(f"{path.name}: cannot be read: {error.strerror}") from None


@lru_cache(_MAX_KNOWN)
def _facts(path: Path, quantization: str | None, _stamps: object) -> Facts:
    checkpoint = open_checkpoint(path)
    family = checkpoint.spec.family
    return Facts(
        details={
            "parent_model": "",
            "format": "gguf" if checkpoint.source == "gguf" else "safetensors",
            "family": family,
            "families": [family],
            "parameter_size": human_count(_num_parameters(checkpoint)),
            "quantization_level": quantization or _main_format(checkpoint),
        },
        metadata={key: _short(value) for key, value in _metadata(checkpoint).items()},
        template=chat_template_source(checkpoint),
        context_length=checkpoint.spec.max_position,
        license=checkpoint.license_text or checkpoint.license,
        generation_config=checkpoint.generation_config,
    )


def human_count(count: int) -> str:
    """134515008 -> "134.52M", 8030261248 -> "8.0B"."""
    for scale, letter in _SCALES:
        if count >= scale:
            return f"{count / scale:.{2 if letter == 'M' else 1}f}{letter}"
    return str(count)


def full_metadata(path: Path) -> Mapping[str, Any]:
    """The metadata with every array whole, which may be tens of megabytes. Raises what open_checkpoint raises."""
    return _metadata(open_checkpoint(path))


def sampling_layers(sampling: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Sampling defaults under our names by where they come from, later ones winning."""
    layers = sampling.layers if isinstance(sampling, SamplingDefaults) else (("model", sampling),)
    return [(layer, dict(values)) for layer, values in layers]


def _main_format(checkpoint: Checkpoint) -> str:
    """The format most of the weights have."""
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.weights.values():
        sizes[tensor.format.name] += math.prod(tensor.shape)
    return sizes.most_common(1)[0][0]


def _num_parameters(checkpoint: Checkpoint) -> int:
    return sum(math.prod(tensor.shape) for tensor in checkpoint.weights.values())


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Without templates, which are shown by themselves."""
    found = checkpoint.config if checkpoint.source == "gguf" else _sizes(checkpoint.spec)
    kept = {key: value for key, value in found.items() if not key.startswith("tokenizer.chat_template")}
    return {**kept, "general.parameter_count": _num_parameters(checkpoint)}


def _short(value: Any) -> Any:
    return None if isinstance(value, list) and len(value) > MAX_ARRAY else value


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    """A spec's numbers under GGUF's keys."""
    arch = spec.family
    found: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.context_length": spec.max_position,
        f"{arch}.embedding_length": spec.hidden_size,
        f"{arch}.block_count": spec.num_layers,
        f"{arch}.vocab_size": spec.vocab_size,
    }
    mixer = spec.layers[0].mixer
    if isinstance(mixer, AttentionSpec):
        found[f"{arch}.attention.head_count"] = mixer.num_heads
        found[f"{arch}.attention.head_count_kv"] = mixer.num_kv_heads
        found[f"{arch}.attention.key_length"] = mixer.head_dim
    return found
