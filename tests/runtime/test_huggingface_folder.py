"""A folder as Hugging Face writes it, from end to end: text in, the text and tokens of transformers out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from support import huggingface_folder
from tuili import LLM, SamplingParams
from tuili.errors import InvalidRequestError
from tuili.runtime.loading.loading import LoadOptions, open_model

PROMPTS = ["the quick brown", "one two three", "café 東京", "x"]
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": False}),
    ("qwen3", {"head_dim": 16}),
    ("gemma3_text", {"head_dim": 16, "sliding_window": 8}),
]


@pytest.fixture(scope="module", params=MODELS, ids=[name for name, _ in MODELS])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel, PreTrainedTokenizerFast]:
    """A random model and a tokenizer trained here, saved together by transformers."""
    model_type, config = request.param
    path = tmp_path_factory.mktemp(model_type)
    return path, *huggingface_folder.save(path, model_type, **config)


def _regret(model: PreTrainedModel, prompt: list[int], chosen: list[int]) -> float:
    """How far, at worst, the logit of a chosen token is below the best one of transformers; 0: all are greedy."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
    return float((logits.max(-1).values - logits[range(len(chosen)), chosen]).max())


# The cpu backend keeps keys and values in bfloat16: tokens all but tied may change places.
@pytest.mark.parametrize(("backend", "slack"), [("cpu", 0.03), ("reference", 1e-5)])
def test_a_folder_answers_as_transformers_does(
    folder: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast], backend: str, slack: float
) -> None:
    path, model, tokenizer = folder
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(str(path), backend=backend, num_threads=1, max_num_seqs=4) as llm:
        for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, greedy, use_tqdm=False), strict=True):
            ids = tokenizer.encode(prompt, add_special_tokens=False)
            assert list(output.prompt_token_ids) == ids
            chosen = list(output.outputs[0].token_ids)
            assert len(chosen) == 12
            assert _regret(model, ids, chosen) <= slack
            assert output.outputs[0].text == tokenizer.decode(chosen, skip_special_tokens=True)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one <|end|> two"}]
        (chat,) = llm.chat(messages, greedy, use_tqdm=False)
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        assert chat.prompt == rendered
        assert _regret(model, list(chat.prompt_token_ids), list(chat.outputs[0].token_ids)) <= slack


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("recipe", "slack"), [("bf16", 0.05), ("q8_0", 0.05)])
def test_quantized_at_load_the_model_stays_what_it_was(
    folder: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast], recipe: str, slack: float, backend: str
) -> None:
    path, model, tokenizer = folder
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    with LLM(str(path), backend=backend, num_threads=2, max_num_seqs=4, quantization=recipe) as llm:
        outputs = llm.generate(PROMPTS, greedy, use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        assert _regret(model, ids, list(output.outputs[0].token_ids)) <= slack


def test_quantized_weights_take_less_memory(folder: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    sizes = []
    for recipe in (None, "bf16", "q8_0", "q4_0"):
        with open_model(str(folder[0]), LoadOptions(num_threads=1, quantization=recipe)) as pipeline:
            sizes.append(pipeline.backend.weight_bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[3] < sizes[2] < 0.4 * sizes[0]


def test_gguf_is_no_quantization_of_a_folder(folder: tuple[Path, PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    with pytest.raises(InvalidRequestError, match=r"quantization must be one of .*, got 'gguf'"):
        LLM(str(folder[0]), quantization="gguf")
