"""GET /v1/models: what may be asked for."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tuili.runtime.served_model import ModelCard
from tuili.server.ops import json_response
from tuili.server.serving import Serving


async def list_models(request: Request) -> Response:
    """Every model that may be asked for, under each of its names; loaded or not."""
    serving: Serving = request.app.state.serving
    cards = await asyncio.to_thread(serving.pool.cards)
    data = [_entry(card, name) for card in cards for name in dict.fromkeys((card.name, *card.aliases))]
    return json_response({"object": "list", "data": data})


async def retrieve_model(request: Request) -> Response:
    """One model, by any of its names."""
    serving: Serving = request.app.state.serving
    name = request.path_params["model"]
    return json_response(_entry(await asyncio.to_thread(serving.pool.card, name), name))


def _entry(card: ModelCard, name: str) -> dict[str, Any]:
    """max_model_len is told of loaded models: it is sized as they are loaded."""
    return {
        "id": name,
        "object": "model",
        "created": card.files.created,
        "owned_by": "tuili",
        "root": card.name,
        "parent": None,
        "max_model_len": card.max_model_len,
        "is_loaded": card.is_loaded,
    }
