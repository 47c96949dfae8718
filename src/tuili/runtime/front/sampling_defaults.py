"""Where a sampling parameter's value comes from: the request, else the model's layers, else the library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from tuili.sampling_params import SamplingParams

LIBRARY, REQUEST, MODELFILE = "library", "request", "modelfile"
_SHARED = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """SamplingParams fields a generation_config sets; do_sample false means greedy, as transformers has it."""
    defaults = {name: generation_config[name] for name in _SHARED if generation_config.get(name) is not None}
    if generation_config.get("do_sample") is False:
        defaults["temperature"] = 0.0
    if generation_config.get("max_new_tokens") is not None:
        defaults["max_tokens"] = generation_config["max_new_tokens"]
    return defaults


@dataclass(frozen=True, slots=True)
class SamplingDefaults(Mapping[str, Any]):
    """What a model asks of sampling: the values of its layers, of which later ones win."""

    layers: tuple[tuple[str, Mapping[str, Any]], ...]  # (name, SamplingParams fields)
    _values: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_values", {name: v for _, values in self.layers for name, v in values.items()})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def only(self, *names: str) -> SamplingDefaults:
        """The same with those layers alone."""
        return SamplingDefaults(tuple(layer for layer in self.layers if layer[0] in names))

    def layer_of(self, name: str) -> str:
        """The layer that decides a parameter which the request leaves open."""
        return next((layer for layer, values in reversed(self.layers) if name in values), LIBRARY)


def configured_sampling(
    of_the_model: Mapping[str, Any], generation_config: str, override: Mapping[str, Any]
) -> SamplingDefaults:
    """The model's defaults as vLLM's settings of the same names have them: "vllm" leaves only what a Modelfile says."""
    found = of_the_model if isinstance(of_the_model, SamplingDefaults) else SamplingDefaults((("model", of_the_model),))
    kept = found.only(MODELFILE) if generation_config == "vllm" else found
    return SamplingDefaults((*kept.layers, ("override_generation_config", sampling_defaults(override))))


class EffectiveValue(NamedTuple):
    """A parameter, the value in effect and the layer it comes from."""

    name: str
    value: Any
    source: str


def effective_params(params: SamplingParams | None, defaults: Mapping[str, Any]) -> list[EffectiveValue]:
    """Every parameter in effect for a Python caller, whose own `params` leave nothing to the model."""
    if params is None:
        return effective_sampling(SamplingParams(**defaults), defaults, {})
    return effective_sampling(params, {}, params.changed())


def effective_sampling(
    params: SamplingParams, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> list[EffectiveValue]:
    """Every parameter of `params`, which were made of what is `given` over `defaults`."""

    def source(name: str) -> str:
        if name in given:
            return REQUEST
        if isinstance(defaults, SamplingDefaults):
            return defaults.layer_of(name)
        return "model" if name in defaults else LIBRARY

    return [EffectiveValue(f.name, getattr(params, f.name), source(f.name)) for f in fields(SamplingParams)]
