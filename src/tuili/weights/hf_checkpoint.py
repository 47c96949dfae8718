"""A Hugging Face folder as a checkpoint: config.json, safetensors, and what lies beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuili.errors import ModelFileError
from tuili.models import families
from tuili.models.reader import hf_config
from tuili.quant.format import Tensor
from tuili.weights.contents import Checkpoint, token_ids
from tuili.weights.loader import Conventions, canonical_weights
from tuili.weights.model_directory import ModelDirectory
from tuili.weights.safetensors import SafetensorsFile, merge_shards, read_weight_map

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt"),
)
_LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_LICENSE_LINE = re.compile(r"^license: *[\"']?([\w.+-]+)", re.MULTILINE)


def open_huggingface(path: Path) -> Checkpoint:
    """Opens a folder. Raises ModelFileError when it is no complete model, UnsupportedModelError for one unknown."""
    directory = ModelDirectory(path)
    raw = directory.json(CONFIG)
    family = families.for_hf(_model_type(raw))
    spec = families.read_spec(family, hf_config(raw))
    conventions = Conventions(names=family.HF_NAMES, transforms=family.HF_TRANSFORMS, ignored=family.HF_IGNORED)
    tensors, num_bytes = _open_tensors(directory)
    generation = directory.json("generation_config.json")
    files = ((name, directory.find(name)) for name in _TOKENIZER_FILES)
    return Checkpoint(
        path=path,
        source="huggingface",
        spec=spec,
        weights=canonical_weights(tensors, spec, conventions, path.name),
        config=raw,
        generation_config=generation,
        bos_token_ids=_token_ids("bos_token_id", generation, raw, spec.vocab_size),
        eos_token_ids=_token_ids("eos_token_id", generation, raw, spec.vocab_size),
        num_bytes=num_bytes,
        chat_templates=_chat_templates(directory),
        tokenizer_files={name: found for name, found in files if found is not None},
        license=_license(directory),
        license_text=next(filter(None, (_prose(directory, name) for name in _LICENSE_FILES)), None),
    )


def has_weights(names: list[str]) -> bool:
    """Whether a folder of these files is one that open_huggingface reads."""
    return CONFIG in names and (WEIGHTS in names or INDEX in names)


def _model_type(raw: Mapping[str, Any]) -> str:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        found = "is missing" if model_type is None else f"is {model_type!r:.80}"
        raise ModelFileError(f"{CONFIG}: model_type {found}, a string is expected")
    return model_type


def _open_tensors(directory: ModelDirectory) -> tuple[Mapping[str, Tensor], int]:
    """All tensors, and the size of the files that hold them."""
    single = directory.find(WEIGHTS)
    if single is not None:
        file = SafetensorsFile(single)
        return file.tensors, file.num_bytes
    index = directory.json(INDEX)
    files = {}
    for shard in dict.fromkeys(read_weight_map(index, INDEX).values()):
        path = directory.find(shard)
        if path is None:
            raise ModelFileError(f"{INDEX}: {shard} is not in the folder, every shard must be")
        files[shard] = SafetensorsFile(path)
    return merge_shards(files, index, INDEX), sum(file.num_bytes for file in files.values())


def _token_ids(key: str, generation: Mapping[str, Any], raw: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """generation_config.json has the last word, as it has in transformers."""
    if generation.get(key) is not None:
        return token_ids(generation[key], key, vocab_size, "generation_config.json")
    return token_ids(raw.get(key), key, vocab_size, CONFIG)


def _chat_templates(directory: ModelDirectory) -> dict[str, str]:
    """Templates by name. A file of its own is newer than, and goes before, an entry of tokenizer_config.json."""
    found = directory.json("tokenizer_config.json").get("chat_template")
    entries = found if isinstance(found, list) else [] if found is None else [{"name": "default", "template": found}]
    templates = {}
    for entry in entries:
        name, template = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str):
            allowed = "a string or a list of names and templates is allowed"
            raise ModelFileError(f"tokenizer_config.json: chat_template is {found!r:.80}, {allowed}")
        templates[name] = template
    own_file = directory.text("chat_template.jinja")
    return templates if own_file is None else {**templates, "default": own_file}


def _license(directory: ModelDirectory) -> str | None:
    """The licence in the front matter of README.md."""
    readme = _prose(directory, "README.md") or ""
    front_matter = readme[4:].split("\n---", 1)[0] if readme.startswith("---\n") else ""
    found = _LICENSE_LINE.search(front_matter)
    return found[1] if found else None


def _prose(directory: ModelDirectory, name: str) -> str | None:
    """A text for people to read, whatever its encoding."""
    data = directory.read(name)
    return None if data is None else data.decode(errors="replace")
