"""Models as OpenAI's clients read them, with vLLM's additions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuili.runtime.pool.served_model import ModelCard
from tuili.server.dialect import ModelList


def _page(cards: Sequence[ModelCard], query: Mapping[str, str]) -> dict[str, Any]:
    data = [_entry(card, name) for card in cards for name in card.names]
    return {"object": "list", "data": data}


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


MODELS = ModelList(header=None, page=_page, entry=_entry)
