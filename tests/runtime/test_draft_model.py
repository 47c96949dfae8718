"""`speculative_config` with a model: the same answers, one vocabulary, both models closed."""

from __future__ import annotations

import pytest

from support.gguf_models import seeds
from tuili import LLM, SamplingParams
from tuili.errors import InvalidRequestError
from tuili.runtime.loading.loading import LoadOptions, open_model

PROMPTS = ["one two three", "a", "x y z " * 9]
SAMPLED = SamplingParams(temperature=0.7, seed=3, n=2, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for name, model in seeds().items():
        path = folder / f"{name}.gguf"
        path.write_bytes(model.settled().encode())
        paths[name] = str(path)
    return paths


def texts(llm: LLM) -> list[str]:
    return [answer.text for output in llm.generate(PROMPTS, SAMPLED, use_tqdm=False) for answer in output.outputs]


def test_answers_are_the_same_with_a_draft_model(models: dict[str, str]) -> None:
    options = {"num_threads": 1, "max_num_seqs": 4, "kv_cache_memory_bytes": 8 << 20}
    with LLM(models["llama"], speculative_config=None, **options) as llm:
        plain = texts(llm)
    draft = {"model": models["llama"], "num_speculative_tokens": 4}
    with LLM(models["llama"], speculative_config=draft, **options) as llm:
        assert texts(llm) == plain
        stats = llm._pipeline.loop.stats()
        assert stats.num_draft_tokens >= stats.num_accepted_tokens > 0


def test_another_vocabulary_is_refused(models: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="model must have the vocabulary of the model it drafts for: sizes"):
        LLM(models["llama"], num_threads=1, speculative_config={"model": models["gemma3"]})


def test_both_models_share_memory_and_are_closed(models: dict[str, str]) -> None:
    from tuili.config import SpeculativeConfig

    speculative = SpeculativeConfig(method="draft_model", model=models["llama"])
    alone = open_model(models["llama"], LoadOptions(num_threads=1))
    pipeline = open_model(models["llama"], LoadOptions(num_threads=1, speculative=speculative))
    with alone, pipeline:
        assert pipeline.draft_backend is not None
        total = pipeline.loop._engine.config.kv_cache_memory_bytes
        assert total is not None
        assert total == 2 * (alone.loop._engine.config.kv_cache_memory_bytes or 0)
    with pytest.raises(Exception, match="closed"):
        pipeline.draft_backend.cache_groups(64)
