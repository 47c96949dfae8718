"""The tokenizer and chat template of a checkpoint, wherever its files keep them."""

from __future__ import annotations

from pathlib import Path

from tuili.checks import shown
from tuili.errors import InvalidRequestError
from tuili.text.chat_template import MAX_TEMPLATE_BYTES, ChatTemplate
from tuili.text.directory_tokenizer import tokenizer_from_directory
from tuili.text.gguf_tokenizer import tokenizer_from_gguf
from tuili.text.pretrained import PretrainedTokenizer
from tuili.text.template_source import DEFAULT, templates_from_directory, templates_from_gguf
from tuili.text.tokenizer import Tokenizer
from tuili.weights.checkpoint import Checkpoint


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Raises ModelFileError or UnsupportedModelError naming what is wrong with the vocabulary."""
    if checkpoint.source == "gguf":
        return tokenizer_from_gguf(checkpoint.config)
    return tokenizer_from_directory(checkpoint.path)


def eos_token_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends an answer: the vocabulary's and generation_config's."""
    return tuple(dict.fromkeys((*checkpoint.eos_token_ids, *tokenizer.eos_token_ids)))


def open_chat_template(checkpoint: Checkpoint, tokenizer: Tokenizer, override: str | None) -> ChatTemplate | None:
    """The override (Jinja source, or the path of a file with it), else the model's own, else None."""
    source = chat_template_source(checkpoint) if override is None else _template_source(override)
    return None if source is None else ChatTemplate(source, special_tokens(tokenizer))


def chat_template_source(checkpoint: Checkpoint) -> str | None:
    """The template for conversations, where the model's files have one. Raises ModelFileError."""
    if checkpoint.source == "gguf":
        return templates_from_gguf(checkpoint.config).get(DEFAULT)
    return templates_from_directory(checkpoint.path).get(DEFAULT)


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The strings a template may print by role: bos_token, eos_token, pad_token and so on."""
    return PretrainedTokenizer(tokenizer).special_tokens_map


def _template_source(override: str) -> str:
    """Jinja is told from a path by its braces. Raises InvalidRequestError for a file that cannot be read."""
    if "{" in override:
        return override
    try:
        path = Path(override)
        # A device or a pipe would be read without end.
        reason = None if path.is_file() or not path.exists() else "not a regular file"
        if reason is None and path.stat().st_size <= MAX_TEMPLATE_BYTES:
            return path.read_text(encoding="utf-8")
        reason = reason or f"more than {MAX_TEMPLATE_BYTES} bytes"
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not UTF-8"
    raise InvalidRequestError(f"chat_template file {shown(override)}: {reason}", param="chat_template")
