"""The tokenizer and chat template of a checkpoint, wherever its files keep them."""

from __future__ import annotations

from pathlib import Path

from tuili.text.chat_template import ChatTemplate
from tuili.text.directory_tokenizer import tokenizer_from_directory
from tuili.text.gguf_tokenizer import tokenizer_from_gguf
from tuili.text.tokenizer import Tokenizer
from tuili.weights.checkpoint import Checkpoint
