"""Opens a model from a path: finds out how it was packed and hands it to the module that knows.

A path is a GGUF file, a Hugging Face folder, or a folder with a single GGUF model, in one file or in parts.
"""

from __future__ import annotations

from pathlib import Path

from tuili.errors import ModelFileError, ModelNotFoundError
from tuili.weights.contents import Checkpoint
from tuili.weights.gguf_checkpoint import open_gguf
from tuili.weights.gguf_parts import part_group
from tuili.weights.hf_checkpoint import has_weights, open_huggingface
from tuili.weights.mapped_file import EXECUTABLE_SUFFIXES, REFUSAL, refuse_executable
from tuili.weights.model_directory import ModelDirectory

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens the model at `path` without reading its weights.

    Raises ModelNotFoundError when nothing is there, ModelFileError when files are damaged, incomplete or of
    an executable format, UnsupportedModelError when they ask for what is not implemented.
    """
    try:
        is_directory = path.is_dir()
        names = ModelDirectory(path).names() if is_directory else []
    except OSError as error:
        raise ModelFileError(f"{path.name}: cannot be read: {error.strerror}") from None
    if is_directory:
        return _open_directory(path, names)
    if not path.exists():
        raise ModelNotFoundError(f"{path.name}: no such file or folder")
    refuse_executable(path)
    if path.suffix == ".safetensors":
        raise ModelFileError(f"{path.name}: weights alone, give the folder that holds config.json and tokenizer too")
    return open_gguf(path)


def _open_directory(path: Path, names: list[str]) -> Checkpoint:
    if has_weights(names):
        return open_huggingface(path)
    gguf_names = [name for name in names if name.lower().endswith(".gguf")]
    if len({part_group(name) for name in gguf_names}) == 1:
        found = ModelDirectory(path).find(gguf_names[0])
        assert found is not None
        return open_gguf(found)
    if gguf_names:
        raise ModelFileError(f"{path.name}: holds {', '.join(gguf_names[:4])}: give the path of the one you mean")
    executable = [name for name in names if Path(name).suffix.lower() in EXECUTABLE_SUFFIXES]
    if executable:
        raise ModelFileError(f"{path.name}: {executable[0]} {REFUSAL}")
    found_names = ", ".join(names[:4]) or "nothing"
    raise ModelFileError(
        f"{path.name}: holds {found_names}, a model is a .gguf file or config.json with model.safetensors"
    )
