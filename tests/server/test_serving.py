"""What is worked on beside the event loop: everything that may take long."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from support.fake_backend import FakeBackend
from support.served import SmallPool, small_app
from support.small_model import small_model
from tuili.errors import TuiliError
from tuili.runtime.front import Front
from tuili.server.caller import Caller
from tuili.types import GenerateRequest, SamplingParams

PLAIN = GenerateRequest(request_id="", sampling=SamplingParams(), prompt="a")


@pytest.mark.parametrize(
    ("request_made", "is_beside"),
    [
        (PLAIN, False),
        (replace(PLAIN, prompt="a" * 5000), True),
        (replace(PLAIN, prompt=None, prompt_token_ids=(1,) * 5000), True),
        (replace(PLAIN, sampling=SamplingParams(bad_words=["a" * 1000] * 5)), True),
        (replace(PLAIN, sampling=SamplingParams(dry_multiplier=1.0)), True),
        (replace(PLAIN, prompt=None, messages=({"role": "user", "content": "a" * 5000},)), True),
    ],
)
async def test_long_work_is_done_beside_the_event_loop(
    request_made: GenerateRequest, is_beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def token_request(self: Front, request: GenerateRequest) -> Any:
        threads.append(threading.get_ident())
        raise TuiliError("seen")

    monkeypatch.setattr(Front, "token_request", token_request)
    async with small_app(pool=SmallPool(small_model(FakeBackend()))) as (app, _):
        with pytest.raises(TuiliError, match="seen"):
            await app.state.serving.answer(Caller(request_id="1"), "small", lambda _: [request_made])
    assert (threads != [threading.get_ident()]) is is_beside
