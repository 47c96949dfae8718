"""F3: a request that ends the engine whenever it is computed is found and fails; all others go on, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.answers import Answers, ask, assert_solo
from support.fake_backend import VOCAB, solo
from support.fake_engine import CONFIG
from support.faults import start_fake, take_all
from tuili.errors import TuiliError
from tuili.runtime.supervision.supervised_engine import RestartPolicy, SupervisedEngine
from tuili.types import TokenRequest

DEADLY = VOCAB - 1
HARMLESS = [
    ask(f"r{i}", range(3 + i), temperature=0.8, n=1 + i % 2, seed=i, max_tokens=40, logit_bias={DEADLY: -100.0})
    for i in range(7)
]


def turns_deadly(request_id: str, after: int) -> TokenRequest:
    """A request that chooses DEADLY after so many harmless tokens."""
    for start in range(10_000):
        request = ask(request_id, [start % 60, start // 60 % 60, start // 3600], max_tokens=30)
        tokens, _ = solo(request, 0, CONFIG.max_model_len)
        if DEADLY in tokens[:-1] and tokens.index(DEADLY) == after:
            return request
    raise AssertionError("no such request")


async def answers_beside(engine: SupervisedEngine, poison: list[TokenRequest]) -> list[Answers]:
    """The poison's answers, once those of the others were found to be what they are alone."""
    requests = [*HARMLESS[:3], *poison, *HARMLESS[3:]]
    found = dict(zip([r.request_id for r in requests], await take_all(engine, requests), strict=True))
    for request in HARMLESS:
        assert_solo(found[request.request_id], request, CONFIG.max_model_len)
    return [found[request.request_id] for request in poison]


def assert_failed(request: TokenRequest, answers: Answers) -> None:
    error = answers.last(request.request_id).error
    assert type(error) is TuiliError
    assert error.status == 500
    assert str(error) == "the engine failed each time it worked on this request"
    tokens = answers.tokens(request.request_id)
    assert tokens == solo(request, 0, CONFIG.max_model_len)[0][: len(tokens)]


@pytest.mark.parametrize("fault", ["aborts_on", "breaks_on"])
async def test_a_poisonous_request_fails_after_two_strikes(tmp_path: Path, fault: str) -> None:
    engine = await start_fake(tmp_path, **{fault: DEADLY})
    poison = turns_deadly("poison", 9)
    (answers,) = await answers_beside(engine, [poison])
    assert_failed(poison, answers)
    assert len(answers.tokens("poison")) == 10
    assert engine.health.is_ready
    assert engine.health.num_restarts == 3
    await engine.aclose()


async def test_of_two_poisonous_requests_each_fails(tmp_path: Path) -> None:
    engine = await start_fake(tmp_path, aborts_on=DEADLY)
    poison = [ask("at once", [5, DEADLY], max_tokens=20), turns_deadly("later", 6)]
    for request, answers in zip(poison, await answers_beside(engine, poison), strict=True):
        assert_failed(request, answers)
    assert engine.health.is_ready
    await engine.aclose()


async def test_a_request_that_hangs_the_engine_is_found_too(tmp_path: Path) -> None:
    engine = await start_fake(tmp_path, RestartPolicy(hang_timeout_s=1.0, look_every_s=0.05), hangs_on=DEADLY)
    poison = ask("poison", [5, DEADLY], max_tokens=20)
    (answers,) = await answers_beside(engine, [poison])
    assert_failed(poison, answers)
    await engine.aclose()
