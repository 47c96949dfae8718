"""What a Modelfile adds to a model: sampling defaults, what a conversation begins with, a template, a context.

Knows the values; reading them is the store's business.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuili.errors import ChatTemplateError
from tuili.runtime.front.sampling_defaults import MODELFILE, SamplingDefaults, sampling_defaults
from tuili.store.modelfile import Modelfile
from tuili.store.store import Store
from tuili.types import Message

if TYPE_CHECKING:
    from tuili.text.chat_template import ChatTemplate

_log = logging.getLogger(__name__)
_SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Preamble:
    """What every conversation with a model begins with: a system text, and messages as if they had been said."""

    system: str | None = None
    messages: tuple[Message, ...] = ()

    @classmethod
    def of(cls, modelfile: Modelfile | None) -> Preamble:
        if modelfile is None:
            return cls()
        return cls(modelfile.system, tuple({"role": role, "content": text} for role, text in modelfile.messages))

    def before(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The conversation with this before it, its own system messages first, which take the place of ours."""
        if self.system is None and not self.messages:
            return messages
        if any(message.get("role") in _SYSTEM_ROLES for message in messages if isinstance(message, Mapping)):
            start = next((i for i, message in enumerate(messages) if not _is_system(message)), len(messages))
            return (*messages[:start], *(m for m in self.messages if not _is_system(m)), *messages[start:])
        system: tuple[Message, ...] = () if self.system is None else ({"role": "system", "content": self.system},)
        return (*system, *self.messages, *messages)


def model_sampling(
    name: str, modelfile: Modelfile | None, generation_config: Mapping[str, Any], store: Store
) -> SamplingDefaults:
    """What a model asks of sampling: its catalogue's recommendation, its files, its Modelfile; later ones win."""
    layers = (
        ("catalogue", store.recommended_sampling(name)),
        ("generation_config", sampling_defaults(generation_config)),
        *(() if modelfile is None else ((MODELFILE, modelfile.options.sampling),)),
    )
    return SamplingDefaults(layers)


def model_context(modelfile: Modelfile | None, limit: int) -> int | None:
    """The context its num_ctx asks for, as far as the model goes; None where it asks for none."""
    num_ctx = None if modelfile is None else modelfile.options.num_ctx
    return None if num_ctx is None else min(num_ctx, limit)


def model_template(modelfile: Modelfile | None, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """Its own template. Raises InvalidRequestError saying where the template is and what is wrong with it."""
    from tuili.text.chat_template import ChatTemplate  # slow to import

    if modelfile is None or modelfile.template is None or modelfile.template_place is None:
        return None
    try:
        return ChatTemplate(modelfile.template, special_tokens)
    except ChatTemplateError as error:
        raise modelfile.template_place.refusal(f"TEMPLATE with an error ({error})", "a template in Jinja") from None


def check_modelfile(modelfile: Modelfile | None, *, limit: int, has_template: bool) -> None:
    """What shows only with the model: notes what is without effect.

    Raises InvalidRequestError for a system text or messages that the model has no template for.
    """
    if modelfile is None:
        return
    what = "SYSTEM" if modelfile.system is not None else "MESSAGE" if modelfile.messages else None
    if what is not None and not has_template:
        raise modelfile.base_place.refusal(
            f"a model without a chat template, which {what} needs", "a model that has one, or one in TEMPLATE"
        )
    notes = list(modelfile.without_effect)
    if modelfile.options.num_ctx is not None and modelfile.options.num_ctx > limit:
        notes.append((f"PARAMETER num_ctx beyond {limit}", "the model's context is no longer than that"))
    for name, why in notes:
        _log.warning("Modelfile: %s has no effect: %s", name, why)


def _is_system(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") in _SYSTEM_ROLES
