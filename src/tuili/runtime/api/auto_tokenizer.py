"""`AutoTokenizer`: Hugging Face's way to a tokenizer, for store names, repositories and paths."""

from __future__ import annotations

from pathlib import Path

from tuili.runtime.loading.fetching import find_model
from tuili.text.pretrained import PretrainedTokenizer


class AutoTokenizer:
    """Not instantiated: `AutoTokenizer.from_pretrained(name)` returns a PretrainedTokenizer."""

    @staticmethod
    def from_pretrained(name_or_path: str | Path) -> PretrainedTokenizer:
        """The tokenizer of a stored or catalogued model, a Hugging Face `org/name`, a directory or a GGUF file.

        Raises ModelNotFoundError, DownloadError, ModelFileError, UnsupportedModelError.
        """
        return PretrainedTokenizer.from_pretrained(find_model(str(name_or_path)))
