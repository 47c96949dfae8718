"""One request asked in each dialect: one text, greedy and seeded."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from support.served import Listening

ASKED = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 7, "top_k": 40}])
def test_every_dialect_gives_the_same_text(smollm2_server: Listening, name: str, sampling: dict[str, Any]) -> None:
    def answer(path: str, **body: Any) -> Any:
        response = httpx.post(f"{smollm2_server.url}{path}", json={"model": name, **body}, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()

    openai = answer("/v1/chat/completions", messages=ASKED, max_tokens=24, **sampling)
    ollama = answer("/api/chat", messages=ASKED, stream=False, options={"num_predict": 24, **sampling})
    texts = {openai["choices"][0]["message"]["content"], ollama["message"]["content"]}
    if "seed" not in sampling:  # which Anthropic's API does not have
        message = answer("/v1/messages", messages=ASKED, max_tokens=24, **sampling)
        texts.add(message["content"][0]["text"])
    assert len(texts) == 1
