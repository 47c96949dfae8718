"""The routes about models: what is stored, what is loaded, one in detail; pulled, copied, deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

import tuili
from tuili.checks import shown
from tuili.config import store_dir
from tuili.errors import InvalidRequestError, ModelFileError, ModelNotFoundError, TuiliError
from tuili.runtime.front.modelfile_settings import Preamble, model_context, model_sampling
from tuili.runtime.front.modelfile_view import modelfile_text, parameters_text
from tuili.runtime.pool.served_model import ModelCard, ServedModel
from tuili.server.body import read_body
from tuili.server.dialect import scoped
from tuili.server.dialects.ollama.answer_routes import NDJSON, served_name
from tuili.server.dialects.ollama.bodies import CopyBody, NamedBody, PullBody, ShowBody
from tuili.server.dialects.ollama.descriptions import (
    full_metadata,
    read_facts,
    sampling_layers,
)
from tuili.server.dialects.ollama.names import model_name, shown_name
from tuili.server.dialects.ollama.pulling import statuses
from tuili.server.dialects.ollama.rendering import line, timestamp
from tuili.server.ops import json_response
from tuili.server.serving import Serving
from tuili.store.store import Store

_FOR_EVER_S = 100 * 365 * 86400  # clients say "forever" of what is so far away


def add_model_routes(router: APIRouter) -> None:
    """The routes. Those that change what is stored need the scope manage."""
    seen = ["GET", "HEAD"]
    router.api_route("/api/tags", methods=seen, openapi_extra=scoped("infer"))(tags)
    router.api_route("/api/version", methods=seen, openapi_extra=scoped("infer"))(version)
    router.get("/api/ps", openapi_extra=scoped("infer"))(ps)
    router.post("/api/show", openapi_extra=scoped("infer", body=ShowBody))(show)
    router.post("/api/pull", openapi_extra=scoped("manage", body=PullBody, streams=NDJSON))(pull)
    router.post("/api/copy", openapi_extra=scoped("manage", body=CopyBody))(copy)
    router.delete("/api/delete", openapi_extra=scoped("manage", body=NamedBody))(delete)


async def version(request: Request) -> Response:
    """This server's own version."""
    return json_response({"version": tuili.__version__})


async def tags(request: Request) -> Response:
    """Every model that may be asked for."""
    pool = _serving(request).pool
    return json_response({"models": await asyncio.to_thread(lambda: [_tag(card) for card in pool.cards()])})


async def ps(request: Request) -> Response:
    """Models that are loaded, with what their memory went into."""
    loaded = _serving(request).pool.loaded()
    return json_response({"models": await asyncio.to_thread(lambda: [_loaded(model) for model in loaded])})


async def show(request: Request) -> Response:
    """One model in detail."""
    body = await read_body(request, ShowBody)
    serving = _serving(request)
    name = served_name(serving, _given_name(body))
    return json_response(await asyncio.to_thread(_shown, serving, name, serving.pool.loaded(), bool(body.verbose)))


async def pull(request: Request) -> Response:
    """Fetches a model into the store."""
    body = await read_body(request, PullBody)
    serving = _serving(request)
    serving.check_open()
    told = statuses(serving.pool.pulls, Store(store_dir()), model_name(_given_name(body)), serving.cut_by_drain)
    request.state.caller.exits.push_async_callback(told.aclose)
    first = await anext(told)  # a name that nobody offers fails here, before the answer begins
    if body.stream is False:
        last = first
        async for status in told:
            last = status
        return json_response(last)

    return StreamingResponse(_lines(first, told), media_type=NDJSON)


async def copy(request: Request) -> Response:
    """Gives a stored model a second name."""
    body = await read_body(request, CopyBody)
    source, destination = _stored_name(_serving(request), body.source), model_name(body.destination)
    await asyncio.to_thread(lambda: Store(store_dir()).copy(source, destination))
    return Response(b"")


async def delete(request: Request) -> Response:
    """Removes a model from the store; when it is loaded, after the requests that use it."""
    body = await read_body(request, NamedBody)
    serving = _serving(request)
    name = _stored_name(serving, _given_name(body))
    await serving.pool.unload(name)
    await asyncio.to_thread(Store(store_dir()).remove, name)
    return Response(b"")


async def _lines(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    yield line(first)
    try:
        async for status in rest:
            yield line(status)
    except TuiliError as error:
        yield line({"error": str(error)})


def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


def _stored_name(serving: Serving, written: str) -> str:
    """The name in the store. Raises ModelNotFoundError, also for a name that only this server gives a model."""
    name = model_name(written)
    if not Store(store_dir()).has(name):
        is_given = served_name(serving, written) in serving.pool.given_names
        why = "a name given as the server was started: name the stored model" if is_given else "not stored"
        raise ModelNotFoundError(f"model {shown(written)} is {why}")
    return name


def _given_name(body: NamedBody) -> str:
    name = body.model or body.name
    if not name:
        raise InvalidRequestError("model is missing", param="model")
    return name


def _tag(card: ModelCard) -> dict[str, Any]:
    name = shown_name(card.name)
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(card.files.created),
        "size": card.files.num_bytes,
        "digest": card.files.digest or "",
        "details": _details(card),
    }


def _details(card: ModelCard | ServedModel) -> dict[str, Any]:
    """Nothing of a model whose files cannot be read: the list tells of the others all the same."""
    try:
        return dict(read_facts(card.files.path, card.files.quantization).details)
    except (ModelFileError, ModelNotFoundError):
        return {}


def _loaded(model: ServedModel) -> dict[str, Any]:
    name = shown_name(model.name)
    return {
        "name": name,
        "model": name,
        "size": model.num_bytes,
        "size_vram": model.plan.gpu_bytes,
        "digest": model.files.digest or "",
        "details": _details(model),
        "expires_at": timestamp(time.time() + _FOR_EVER_S if model.expires_at is None else model.expires_at),
        "context_length": model.front.max_model_len,
        "memory": dict(model.memory),
        "devices": {part.device: {"size": part.num_bytes, **part.by_kind()} for part in model.plan.parts},
    }


def _shown(serving: Serving, name: str, models: Sequence[ServedModel], verbose: bool) -> dict[str, Any]:
    card = serving.pool.card(name)
    files = card.files
    facts = read_facts(files.path, files.quantization)
    loaded = next((model for model in models if model.name == card.name), None)
    modelfile, preamble = files.modelfile, Preamble.of(files.modelfile)
    sampling: Mapping[str, Any] = (
        model_sampling(files.name, modelfile, facts.generation_config, Store(store_dir()))
        if loaded is None
        else loaded.front.default_sampling
    )
    template = facts.template if modelfile is None else modelfile.template or facts.template
    context = card.max_model_len or model_context(modelfile, facts.context_length)
    return {
        "license": (modelfile and modelfile.license) or facts.license or files.license or "",
        "modelfile": modelfile_text(card.name, template, sampling, modelfile),
        "parameters": parameters_text(sampling, modelfile),
        "template": template or "{{ messages[-1].content }}",
        "system": preamble.system or "",
        "messages": list(preamble.messages),
        "details": facts.details,
        "model_info": full_metadata(files.path) if verbose else facts.metadata,
        "capabilities": facts.capabilities,
        "modified_at": timestamp(files.created),
        "context_length": context or facts.context_length,
        "has_template": template is not None,
        "sampling_layers": sampling_layers(sampling),
    }
