"""GET /v1/models: what may be asked for, in the form of the API that the client speaks. Knows no form."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tuili.server.dialect import Dialect, ModelList, scoped
from tuili.server.ops import json_response


def model_list_router(spoken: Sequence[Dialect]) -> APIRouter:
    """The routes, if one of the dialects lists models for clients of any kind."""
    router = APIRouter()
    forms = {dialect.models.header: dialect.models for dialect in spoken if dialect.models is not None}
    if None not in forms:
        return router

    def form_of(request: Request) -> ModelList:
        return next((forms[name] for name in forms if name is not None and name in request.headers), forms[None])

    async def list_models(request: Request) -> Response:
        """Every model that may be asked for, under each of its names; loaded or not."""
        cards = await asyncio.to_thread(request.app.state.serving.pool.cards)
        return json_response(form_of(request).page(cards, request.query_params))

    async def retrieve_model(request: Request) -> Response:
        """One model, by any of its names."""
        name = request.path_params["model"]
        card = await asyncio.to_thread(request.app.state.serving.pool.card, name)
        return json_response(form_of(request).entry(card, name))

    for path in ("/v1/models", "/models"):
        router.get(path, openapi_extra=scoped("infer"))(list_models)
    router.get("/v1/models/{model:path}", openapi_extra=scoped("infer"))(retrieve_model)
    return router
