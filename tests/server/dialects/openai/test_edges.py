"""Every field of every body x values at the edges of what JSON can say: answered or refused, never a failure.

Each field meets every STEP-th value; TUILI_EDGE_STEP=1 tries all of them.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from support.served import small_app
from tuili.server.dialects.openai.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

EDGES: tuple[Any, ...] = (
    0, -1, 1, 2, 2**31, -(2**31) - 1, 2**53, 2**63, -(2**63) - 1, 2**64, 10**40, 0.5, -0.5, 1e308, -1e308, 5e-324,
    True, False, "", "x", "\U0001f600" * 3, [], [0], [-1], [2**70], ["a"], [[]], [None],
    {}, {"a": 1}, {"1": 1}, {"-1": 1e308},
)  # fmt: skip
STEP = int(os.environ.get("TUILI_EDGE_STEP", "5"))
LEAST: Any = {
    "/v1/chat/completions": (ChatBody, {"messages": [{"role": "user", "content": "Hi"}]}),
    "/v1/completions": (CompletionBody, {"prompt": "Hi"}),
    "/tokenize": (TokenizeBody, {}),
    "/detokenize": (DetokenizeBody, {"tokens": [1]}),
}


@pytest.mark.parametrize("url", LEAST)
async def test_no_value_makes_the_server_fail(url: str) -> None:
    body_class, least = LEAST[url]
    async with small_app() as (_, client):
        for number, name in enumerate(body_class.model_fields):
            for i, value in list(enumerate(EDGES))[number % STEP :: STEP]:
                body = {"max_tokens": 2, "n": 1, **least, name: value}
                if url.startswith("/v1") and name != "stream":
                    body["stream"] = bool(i % 2)
                response = await client.post(url, json=body)
                assert response.status_code in (200, 400, 404), (name, value, response.text)
                if response.status_code != 200:
                    error = response.json()["error"]
                    assert error["message"]
                    assert len(error["message"]) <= 1100
