"""Goes on from the `context` of an earlier answer: token ids of a conversation so far, the next turn behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tuili.errors import ChatTemplateError
from tuili.runtime.front.front import Front, check_chars
from tuili.text.prompt_text import PromptText
from tuili.types import GenerateRequest, PromptTokens

_EARLIER = "earlier answer"


def continued(front: Front, request: GenerateRequest, context: Sequence[int]) -> GenerateRequest:
    """The request's last message, or its prompt, after the tokens of `context`, which is not empty.

    A turn is written as the template writes a second one: without what a conversation begins with.
    """
    if request.messages is None:
        assert request.prompt is not None
        check_chars(request.prompt)
        ids = front.tokenizer.encode(request.prompt, add_special_tokens=False)
    else:
        turn = _next_turn(front, request, context)
        check_chars(turn)
        ids = front.tokenizer.encode_rendered(turn)
    prompt = PromptTokens((*context, *ids), None)
    return replace(request, prompt=None, messages=None, prompt_token_ids=prompt.token_ids)


def _next_turn(front: Front, request: GenerateRequest, context: Sequence[int]) -> PromptText:
    """What a template writes from the end of an answer on, its end token only where the context has none yet."""
    earlier = ({"role": "user", "content": "earlier question"}, {"role": "assistant", "content": _EARLIER})
    rendered = front.render(replace(request, messages=(*earlier, *(request.messages or ())[-1:])))
    found = rendered.plain().rfind(_EARLIER, 0, _start_of_last(rendered))
    if found < 0:
        raise ChatTemplateError("chat template: it leaves out earlier answers: send messages instead of context")
    turn = rendered[found + len(_EARLIER) :]
    if context[-1] not in front.eos_token_ids:
        return turn
    return turn.removeprefix(front.tokenizer.decode(context[-1:], skip_special_tokens=False))


def _start_of_last(rendered: PromptText) -> int:
    """Where the last untrusted span, the new message, begins."""
    return rendered.untrusted[-1][0] if rendered.untrusted else len(rendered)
