"""Token ids to text as they come, never half a character. Knows one tokenizer; knows no stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tuili.text.tokenizer import Tokenizer

_MAX_CHARACTER_BYTES = 4


class Detokenizer:
    """The text that follows a prompt, in pieces.

    The pieces together are what decoding prompt and output at once gives after the prompt's last complete
    character. Each token is looked at once. Of the special tokens only `kept` are written when they are skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - kept if skip_special_tokens else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._spaces_to_drop = tokenizer.leading_spaces_dropped
        self._decoder.decode(self._prompt_tail(prompt_ids))
        self._is_clean = self._is_at_boundary()

    def _prompt_tail(self, prompt_ids: Sequence[int]) -> bytes:
        """The last bytes of the prompt: a character that the output completes begins among them."""
        tail = b""
        for token_id in reversed(prompt_ids):
            if token_id not in self._skipped:
                tail = self._tokenizer.token_bytes(token_id) + tail
            if len(tail) >= _MAX_CHARACTER_BYTES + self._spaces_to_drop:
                break
        return self._without_leading_spaces(tail)

    def _without_leading_spaces(self, data: bytes) -> bytes:
        """Drops the spaces that stand for the start of the text; its first other byte ends that."""
        while self._spaces_to_drop and data:
            self._spaces_to_drop = self._spaces_to_drop - 1 if data.startswith(b" ") else 0
            if not self._spaces_to_drop and not data.startswith(b" "):
                break
            data = data[1:]
        return data

    def _is_at_boundary(self) -> bool:
        """Whether a token's own text can follow as it is: no half character waits, no space is to be dropped."""
        return not self._spaces_to_drop and not self._decoder.getstate()[0]

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; what may still be half a character waits."""
        if token_id in self._skipped:
            return ""
        if self._is_clean and (text := self._tokenizer.token_text(token_id)) is not None:
            return text
        data = self._without_leading_spaces(self._tokenizer.token_bytes(token_id))
        text = self._decoder.decode(data)
        self._is_clean = self._is_at_boundary()
        return text

    def flush(self) -> str:
        """The end: bytes still waiting are no character and become U+FFFD."""
        return self._decoder.decode(b"", final=True)
