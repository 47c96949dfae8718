"""What is told of a model: from its files' headers, short unless asked, without a weight's value."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import huggingface_folder
from tuili.runtime.front.modelfile_view import modelfile_text, parameters_text
from tuili.server.dialects.ollama.descriptions import (
    full_metadata,
    human_count,
    read_facts,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (1500, "1.5K"), (134_515_008, "134.52M"), (8_030_261_248, "8.0B"), (1_000_000_000_000, "1.0T")],
)
def test_counts_as_people_write_them(count: int, text: str) -> None:
    assert human_count(count) == text


def test_a_gguf_file(smollm2_gguf: Path) -> None:
    facts = read_facts(smollm2_gguf, None)
    assert facts.details["quantization_level"] == "Q4_1"  # what most of the weights have
    assert read_facts(smollm2_gguf, "mine").details["quantization_level"] == "mine"
    assert read_facts(smollm2_gguf, None) is facts
    assert facts.metadata["tokenizer.ggml.tokens"] is None
    whole = full_metadata(smollm2_gguf)
    assert isinstance(whole["tokenizer.ggml.tokens"], list)
    assert set(whole) == set(facts.metadata)
    assert not any(key.startswith("tokenizer.chat_template") for key in whole)
    assert facts.context_length == 8192


def test_a_changed_file_is_read_again(smollm2_gguf: Path, tmp_path: Path) -> None:
    (link := tmp_path / "model.gguf").symlink_to(smollm2_gguf)
    first = read_facts(link, None)
    link.unlink()
    link.write_bytes(smollm2_gguf.read_bytes())
    assert read_facts(link, None) is not first


def test_what_would_make_the_model(smollm2_gguf: Path) -> None:
    sampling = {"temperature": 0.2, "repetition_penalty": 1.1, "max_tokens": 9}
    assert [line.split() for line in parameters_text(sampling).splitlines()] == [
        ["temperature", "0.2"],
        ["repeat_penalty", "1.1"],
        ["num_predict", "9"],
    ]
    text = modelfile_text("m", read_facts(smollm2_gguf, None).template, sampling)
    assert text.startswith('FROM m\nTEMPLATE """{% for message')
    assert text.endswith("PARAMETER temperature 0.2\nPARAMETER repeat_penalty 1.1\nPARAMETER num_predict 9\n")


def test_a_huggingface_folder(tmp_path: Path) -> None:
    huggingface_folder.save(tmp_path, "llama")
    facts = read_facts(tmp_path, None)
    assert (facts.details["format"], facts.details["family"]) == ("safetensors", "llama")
    assert {"general.architecture": "llama", "llama.context_length": 128, "llama.block_count": 3}.items() <= (
        facts.metadata.items()
    )
    assert facts.capabilities == ["completion"]
