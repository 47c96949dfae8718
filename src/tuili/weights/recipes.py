"""Which format each weight gets when a model is quantized, under llama.cpp's names: q4_k_m keeps most matrices in Q4_K
and gives those that matter most Q6_K.

Knows weight names, layers and formats; no numbers. Source of the mixes: llama-quantize without an importance matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tuili import quant
from tuili.errors import InvalidRequestError
from tuili.models.names import leaf
from tuili.models.spec import AttentionSpec, ModelSpec
from tuili.quant.format import QuantFormat

LayerRule = Callable[[int, ModelSpec], bool]
Rules = tuple[tuple[LayerRule, str], ...]


def _always(layer: int, spec: ModelSpec) -> bool:
    return True


def _first_eighth(layer: int, spec: ModelSpec) -> bool:
    return layer < spec.num_layers // 8


def _first_sixteenth(layer: int, spec: ModelSpec) -> bool:
    return layer < spec.num_layers // 16


def _first_two(layer: int, spec: ModelSpec) -> bool:
    return layer < 2


def _first_four(layer: int, spec: ModelSpec) -> bool:
    return layer < 4


def _ends_and_thirds(layer: int, spec: ModelSpec) -> bool:
    """The first and last eighth, and every third layer between."""
    eighth = spec.num_layers // 8
    return layer < eighth or layer >= 7 * spec.num_layers // 8 or (layer - eighth) % 3 == 2


def _has_shared_values(layer: int, spec: ModelSpec) -> bool:
    """Four query heads or more read each value head: it is small, and what it loses counts as often."""
    mixer = spec.layers[layer].mixer
    return isinstance(mixer, AttentionSpec) and mixer.num_heads >= 4 * mixer.num_kv_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """body: of all matrices that neither `head` nor the first rule of `raised` that applies names.

    head is what the output matrix gets, or the embedding where that is the output matrix too.
    """

    name: str
    body: str
    head: str
    raised: Mapping[str, Rules] = field(default_factory=dict)

    def format_of(self, name: str, cols: int, spec: ModelSpec) -> QuantFormat | None:
        """The format of a matrix with rows of `cols` weights; None where it has none that divides them."""
        wanted: str | None = self._wanted(name, spec)
        while wanted is not None and cols % quant.BY_NAME[wanted].group_size:
            wanted = _SMALLER_GROUPS.get(wanted)
        return None if wanted is None else quant.BY_NAME[wanted]

    def _wanted(self, name: str, spec: ModelSpec) -> str:
        if name == "lm_head.weight" or (name == "embed_tokens.weight" and spec.tie_word_embeddings):
            return self.head
        for applies, wanted in self.raised.get(leaf(name), ()):
            if applies(int(name.split(".")[1]), spec):
                return wanted
        return self.body


# Rows that are no multiples of 256 take the next larger format with groups of 32.
_SMALLER_GROUPS = MappingProxyType(
    {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
)


def _recipes() -> dict[str, Recipe]:
    plain = [
        Recipe(name=name, body=name.upper(), head="Q8_0" if name == "q8_0" else "Q6_K")
        for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q6_k")
    ]
    mixed = [Recipe(name=name, body=body, head="Q6_K", raised=raised) for name, (body, raised) in _mixes().items()]
    floats = [Recipe(name=name, body=name.upper(), head=name.upper()) for name in ("f16", "bf16")]
    return {recipe.name: recipe for recipe in [*plain, *mixed, *floats]}


def _mixes() -> dict[str, tuple[str, dict[str, Rules]]]:
    """Name -> body, and what is raised above it."""
    values, down, out = "v_proj", "down_proj", "o_proj"
    q3: Rules = ((_always, "Q3_K"),)
    q5: Rules = ((_always, "Q5_K"),)
    first_q5: Rules = ((_first_eighth, "Q5_K"),)
    q6: Rules = ((_ends_and_thirds, "Q6_K"),)
    uneven: dict[str, Rules] = {values: ((_has_shared_values, "Q5_K"),), down: first_q5}
    few_bits: dict[str, Rules] = {
        values: ((_first_two, "Q5_K"), (_always, "Q4_K")),
        down: ((_first_sixteenth, "Q5_K"), (_always, "Q4_K")),
        out: ((_always, "Q4_K"),),
    }
    shared: Rules = ((_has_shared_values, "Q4_K"),)
    return {
        "q2_k": ("Q2_K", {values: shared + q3, down: q3, out: q3}),
        "q2_k_s": ("Q2_K", {values: shared, down: ((_first_eighth, "Q4_K"),)}),
        "q3_k_s": ("Q3_K", {}),
        "q3_k_m": ("Q3_K", few_bits),
        "q3_k_l": ("Q3_K", {values: q5, down: q5, out: q5}),
        "q4_k_s": ("Q4_K", {values: ((_first_four, "Q5_K"),), down: first_q5}),
        "q4_k_m": ("Q4_K", {values: q6, down: q6}),
        "q5_k_s": ("Q5_K", {}),
        "q5_k_m": ("Q5_K", {values: q6, down: q6}),
        "iq4_nl": ("IQ4_NL", uneven),
        "iq4_xs": ("IQ4_XS", uneven),
    }


RECIPES: Mapping[str, Recipe] = MappingProxyType(_recipes())
_ALIASES = MappingProxyType({"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"})
_OF_CHECKPOINTS = frozenset(
    (
        *("awq", "awq_marlin", "gptq", "gptq_marlin", "fp8", "fbgemm_fp8", "bitsandbytes", "compressed-tensors"),
        *("modelopt", "modelopt_fp4", "mxfp4", "nvfp4", "torchao", "quark", "hqq", "aqlm", "experts_int8", "moe_wna16"),
    )
)


def find_recipe(name: str) -> Recipe:
    """A recipe by name, whatever its case. Raises InvalidRequestError naming those there are."""
    wanted = _ALIASES.get(name.lower(), name.lower()) if isinstance(name, str) else ""
    if wanted in RECIPES:
        return RECIPES[wanted]
    why = ": checkpoints of that kind are not read here" if wanted in _OF_CHECKPOINTS else ""
    raise InvalidRequestError(
        f"quantization must be one of {', '.join(RECIPES)}, got {name!a:.40}{why}", param="quantization"
    )
