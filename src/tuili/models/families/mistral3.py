"""Mistral 3 and Ministral 3 with eyes: only the text model is read, a Mistral or a Ministral 3. Vision is left out."""

from __future__ import annotations

from tuili.models.families import ministral3, mistral
from tuili.models.names import GGUF, GGUF_DERIVED, HF, HF_DERIVED
from tuili.models.reader import ConfigReader
from tuili.models.spec import ModelSpec

HF_TYPES: tuple[str, ...] = ("mistral3",)
GGUF_ARCHS: tuple[str, ...] = ()
_OLD = {f"language_model.{name}": ours for name, ours in HF.items()}
_NEW = {f"model.language_model.{name.removeprefix('model.')}": ours for name, ours in HF.items()}
HF_NAMES, GGUF_NAMES = _OLD | _NEW | {"lm_head.": "lm_head."}, GGUF
HF_TRANSFORMS: dict[str, str] = {}
GGUF_TRANSFORMS: dict[str, str] = {}
_VISION = ("vision_tower.", "multi_modal_projector.")
HF_IGNORED = (*HF_DERIVED, *_VISION, *(f"model.{part}" for part in _VISION))
GGUF_IGNORED = GGUF_DERIVED


def spec(c: ConfigReader) -> ModelSpec:
    c.leave_out("vision_config")
    kind = c.word("text_model_type", ("mistral", "ministral", "ministral3"), "mistral")
    return ministral3.spec(c) if kind == "ministral3" else mistral.spec(c)
