"""A Hugging Face folder as a checkpoint: config.json, safetensors, and what lies beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuili.errors import ModelFileError
from tuili.models import families
from tuili.models.hf_config import hf_config
from tuili.models.names import table_for
from tuili.quant.format import Tensor
from tuili.weights.contents import Checkpoint, token_ids
from tuili.weights.loader import Conventions, canonical_weights, left_out
from tuili.weights.model_directory import ModelDirectory
from tuili.weights.safetensors import SafetensorsFile, merge_shards, read_weight_map

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_LICENSE_LINE = re.compile(r"^license: *[\"']?([\w.+-]+)", re.MULTILINE)


def open_huggingface(path: Path) -> Checkpoint:
    """Opens a folder. Raises ModelFileError when it is no complete model, UnsupportedModelError for one unknown."""
    directory = ModelDirectory(path)
    raw = directory.json(CONFIG)
    family = families.for_hf(_model_type(raw))
    spec = families.read_spec(family, hf_config(raw))
    names = table_for(family.HF_NAMES, spec)
    conventions = Conventions(names=names, transforms=family.HF_TRANSFORMS, ignored=family.HF_IGNORED)
    tensors, num_bytes = _open_tensors(directory)
    generation = directory.json("generation_config.json")
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
        left_out=left_out(tensors, conventions),
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


def _license(directory: ModelDirectory) -> str | None:
    """The license in the front matter of README.md."""
    readme = _prose(directory, "README.md") or ""
    front_matter = readme[4:].split("\n---", 1)[0] if readme.startswith("---\n") else ""
    found = _LICENSE_LINE.search(front_matter)
    return found[1] if found else None


def _prose(directory: ModelDirectory, name: str) -> str | None:
    """A text for people to read, whatever its encoding."""
    data = directory.read(name)
    return None if data is None else data.decode(errors="replace")
