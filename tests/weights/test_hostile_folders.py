"""Hugging Face folders changed by strangers: safetensors as the reference judges them, the rest read or refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PreTrainedModel

from support import family_models, tiny_models
from support.hostile_child import outcome, read
from support.json_mutants import mutated_text
from tuili.errors import ModelFileError
from tuili.weights.safetensors import SafetensorsFile

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

NUM_HEADERS = 4000
SEED, NUM_FOLDERS = int(os.environ.get("TUILI_HOSTILE_SEED", "2")), int(os.environ.get("TUILI_HOSTILE_FOLDERS", "1000"))


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: tuple[tuple[dict[str, Any], int], ...] = (
    (
        {
            "__metadata__": {"format": "pt"},
            "a": entry([2, 1], [0, 8]),
            "b": entry([0], [8, 8]),
            "ü": entry([3], [8, 14], "BF16"),
            "d": entry([], [14, 16], "F16"),
        },
        16,
    ),
    ({"w": entry([4, 4], [0, 64]), "x": entry([8], [64, 72], "U8"), "y": entry([1, 1, 1], [72, 80], "I64")}, 80),
    ({"q": entry([16], [0, 8], "F4"), "r": entry([4], [8, 11], "F6_E2M3")}, 11),
    ({}, 0),
)
LENGTHS = (0, 1, 2**31, 2**32, 2**63, 2**64 - 1, 10**8, 10**8 + 1)


def test_headers_as_the_reference_judges_them(tmp_path: Path) -> None:
    """No exceptions to the rule but one: a name given twice, of which the reference keeps the last."""
    chooser = random.Random(1)
    path = tmp_path / "model.safetensors"
    verdicts: Counter[bool] = Counter()
    for _ in range(NUM_HEADERS):
        base, size = chooser.choice(HEADERS)
        header = mutated_text(base, chooser) + b" " * chooser.choice((0, 0, 0, 7))
        length = len(header) if chooser.random() < 0.95 else chooser.choice(LENGTHS)
        content = struct.pack("<Q", length) + header + bytes(size)
        path.write_bytes(content)
        found = outcome(path, SafetensorsFile)
        assert found in ("read", "refused"), (header, found)
        verdicts[found == "read"] += 1
        try:
            safetensors.deserialize(content)
        except safetensors.SafetensorError:
            assert found == "refused", header
        else:
            assert found == "read" or has_repeated_names(header), header
    assert verdicts[True] > 100
    assert verdicts[False] > 2000


def has_repeated_names(header: bytes) -> bool:
    repeated = False

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        repeated |= len(dict(pairs)) < len(pairs)
        return dict(pairs)

    json.loads(header, object_pairs_hook=check)
    return repeated


FAMILIES = (
    *("opt", "opt-350m", "gpt2", "phi3-longrope", "ministral3", "smollm3", "olmo2", "gemma2", "stablelm-12b", "bloom"),
    *("falcon-40b", "falcon-rw", "granite-biases", "cohere-normed-heads", "cohere2", "qwen3-tied-window", "gemma3"),
)


def write_folder(path: Path, build: Callable[[int], PreTrainedModel]) -> Path:
    """A sharded model with every file that is read."""
    path.mkdir()
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "<|end|>", "<|user|>"]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [("h", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|user|>"])
    backend.save(str(path / "tokenizer.json"))
    build(len(tokens)).save_pretrained(path, max_shard_size="30KB")
    template = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    content = {
        "chat_template": template,
        "eos_token": "<|end|>",
        "added_tokens_decoder": {"257": {"content": "<|end|>"}},
    }
    (path / "tokenizer_config.json").write_text(json.dumps(content))
    (path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [257], "temperature": 0.5, "top_k": 5}))
    assert outcome(path, read) == "read", path.name
    return path


def family(name: str, vocab_size: int) -> PreTrainedModel:
    model_type, config = family_models.MODELS[name]
    return tiny_models.build(model_type, **config | {"vocab_size": vocab_size})


def mistral3(vocab_size: int) -> PreTrainedModel:
    """A text model inside one that sees."""
    sizes = tiny_models.SIZES | {"vocab_size": vocab_size, "model_type": "mistral", "tie_word_embeddings": False}
    config = Mistral3Config(text_config=sizes, vision_config=family_models.PIXTRAL, tie_word_embeddings=False)
    model: PreTrainedModel = Mistral3ForConditionalGeneration._from_config(config).float()
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folders") / "llama", partial(family, "llama-yarn"))


@pytest.fixture(scope="module")
def folders(folder: Path) -> list[Path]:
    """One of each family."""
    builders = {name: partial(family, name) for name in FAMILIES} | {"mistral3": mistral3}
    return [folder, *(write_folder(folder.with_name(name), build) for name, build in builders.items())]


def test_files_beside_the_weights_are_read_or_refused(folders: list[Path]) -> None:
    """One JSON file of a folder is changed at a time; the others are those of a sound model."""
    chooser = random.Random(SEED)
    sources = {path: json.loads(path.read_text()) for work in folders for path in sorted(work.glob("*.json"))}
    assert len(sources) == 6 * len(folders)
    configs = [path for path in sources if path.name == "config.json"]
    verdicts: Counter[str] = Counter()
    failures = []
    for _ in range(NUM_FOLDERS):
        path = chooser.choice(configs if chooser.random() < 0.5 else sorted(sources))
        sound, content = path.read_bytes(), mutated_text(sources[path], chooser, damage=0.15)
        path.write_bytes(content)
        found = outcome(path.parent, read)
        verdicts[found] += 1
        if found not in ("read", "refused"):
            failures.append(f"{path.parent.name}/{path.name}: {found}: {content[:200]!r}")
        path.write_bytes(sound)
    assert failures == []
    assert verdicts["read"] > NUM_FOLDERS // 10
    assert verdicts["refused"] > NUM_FOLDERS * 4 // 10


@pytest.mark.parametrize("depth", [500, 100_000])
def test_nesting_is_bounded_in_every_file(folder: Path, tmp_path: Path, depth: int) -> None:
    work = tmp_path / "model"
    shutil.copytree(folder, work)
    for path in sorted(work.glob("*.json")):
        sound = path.read_bytes()
        path.write_bytes(b'{"a":' + b"[" * depth + b"]" * depth + b"}")
        assert outcome(work, read) in ("read", "refused"), path.name
        path.write_bytes(b'{"a":' * depth)
        with pytest.raises(ModelFileError):
            read(work)
        path.write_bytes(sound)
