"""What answers tell of the model behind them, and what every route here asks first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

import tuili
from tuili.errors import InvalidRequestError
from tuili.runtime.front.front import Front
from tuili.runtime.openai.logprobs import TokenBytes
from tuili.runtime.pool.served_model import ServedModel
from tuili.server.serving import Serving
from tuili.types import Finished, GenerateRequest


def model_name(request: Request, given: str | None) -> str:
    """The model asked for; where none is named, the one the server was started with."""
    serving: Serving = request.app.state.serving
    name = given or serving.pool.default_name
    if name is None:
        raise InvalidRequestError("model is missing: name one of /v1/models", param="model")
    return name


def fingerprint(model: ServedModel) -> str:
    """Tells answers apart that may differ: by the model's files, the program's version and the instruction set."""
    files = model.files
    identity = files.digest or f"{files.path.name} {files.num_bytes} {files.created}"
    engine = getattr(model.client, "facts", None)  # an engine in this process tells none
    said = "\0".join((identity, tuili.__version__, str(getattr(engine, "isa", None))))
    return f"fp_{hashlib.blake2b(said.encode(), digest_size=6).hexdigest()}"


def token_bytes(front: Front) -> TokenBytes:
    """A token's own bytes, which may be a part of a character."""
    return lambda token_id, _: front.tokenizer.token_bytes(token_id)


def ending(event: Finished, request: GenerateRequest) -> dict[str, Any]:
    """finish_reason, and vLLM's stop_reason: the stop string or the token asked for; an end of its own has none."""
    reason = event.stop_reason
    if isinstance(reason, int) and reason not in (request.sampling.stop_token_ids or ()):
        reason = None
    return {"finish_reason": event.finish_reason, "stop_reason": reason}


def stream_flags(body: Mapping[str, Any], *, forces_usage: bool) -> dict[str, Any]:
    """What stream_options asks for. Raises InvalidRequestError where nothing is streamed."""
    options = body.get("stream_options")
    if options is None:
        return {"has_usage": forces_usage}
    if not body.get("stream"):
        raise InvalidRequestError("stream_options needs stream = true beside it", param="stream_options")
    has_usage = forces_usage or bool(options.include_usage)
    return {"has_usage": has_usage, "has_running_usage": has_usage and bool(options.continuous_usage_stats)}
