"""From accepted requests to the HTTP answer, for both endpoints that generate. Knows neither one's own fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tuili.server.answering import Answering
from tuili.server.dialects.openai.facts import fingerprint
from tuili.server.dialects.openai.render import AnswerForm, Form, Renderer, whole
from tuili.server.streaming import collect, stream

_PROGRESS_INTERVAL_S = 1.0  # what engines tell anew


async def respond(
    request: Request, body: Mapping[str, Any], answering: Answering, form: Form, *, kind: str, flags: Mapping[str, Any]
) -> Response:
    """The answer, whole or streamed as the body says. `kind` begins its id; `flags` are those of stream_flags."""
    asked = AnswerForm(
        id=f"{kind}-{body.get('request_id') or request.state.caller.request_id}",
        model=body.get("model") or answering.model.name,
        fingerprint=fingerprint(answering.model),
        num_choices=answering.requests[0].sampling.n,
        has_progress=bool(body.get("return_progress")),
        **flags,
    )
    if body.get("stream"):
        options = body.get("stream_options")
        if options is not None and options.include_obfuscation:
            request.state.caller.ignored_params += ("stream_options.include_obfuscation",)
        interval_s = _PROGRESS_INTERVAL_S if asked.has_progress else math.inf
        return await stream(request, answering, Renderer(asked, form), interval_s=interval_s)
    return Response(whole(asked, form, await collect(request, answering)), media_type="application/json")
