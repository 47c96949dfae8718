"""Models as Anthropic's clients read them: by pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tuili.checks import shown
from tuili.errors import InvalidRequestError
from tuili.runtime.pool.served_model import ModelCard
from tuili.server.dialect import ModelList

_DEFAULT_LIMIT, _MAX_LIMIT = 20, 1000


def _page(cards: Sequence[ModelCard], query: Mapping[str, str]) -> dict[str, Any]:
    """Those behind after_id, or before before_id, `limit` of them. Raises InvalidRequestError naming the parameter."""
    entries = [_entry(card, name) for card in cards for name in card.names]
    limit, places = _limit(query), {entry["id"]: i for i, entry in enumerate(entries)}
    start, end = _place(query, "after_id", places, -1) + 1, _place(query, "before_id", places, len(entries))
    if "before_id" in query:
        page = entries[max(start, end - limit) : end]
        has_more = end - start > limit
    else:
        page = entries[start : start + limit]
        has_more = start + limit < len(entries)
    first_id, last_id = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"data": page, "has_more": has_more, "first_id": first_id, "last_id": last_id}


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(_DEFAULT_LIMIT))
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= _MAX_LIMIT):
        raise InvalidRequestError(f"limit must be in [1, {_MAX_LIMIT}], got {shown(text)}", param="limit")
    return int(text)


def _place(query: Mapping[str, str], name: str, places: Mapping[str, int], default: int) -> int:
    cursor = query.get(name)
    if cursor is None:
        return default
    if cursor not in places:
        raise InvalidRequestError(f"{name}: there is no model {shown(cursor)}", param=name)
    return places[cursor]


def _entry(card: ModelCard, name: str) -> dict[str, Any]:
    """The context is told of loaded models: it is sized as they are loaded."""
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(card.files.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": card.max_model_len,
        "max_tokens": card.max_model_len,
    }


MODELS = ModelList(header="anthropic-version", page=_page, entry=_entry)
