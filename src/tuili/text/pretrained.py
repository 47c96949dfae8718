"""A tokenizer and its chat template under Hugging Face's names. Knows paths; store names are resolved elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.text.chat_template import ChatTemplate
from tuili.text.directory_tokenizer import tokenizer_from_directory
from tuili.text.gguf_tokenizer import tokenizer_from_gguf
from tuili.text.template_source import DEFAULT, templates_from_directory, templates_from_gguf
from tuili.text.tokenizer import Tokenizer
from tuili.types import Message
from tuili.weights.gguf import GgufFile
from tuili.weights.gguf_parts import first_part

Side = Literal["left", "right"]
_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


class BatchEncoding(dict[str, Any]):
    """What a tokenizer call returns: a dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class PretrainedTokenizer:
    """Encodes, decodes and renders as a Hugging Face tokenizer does.

    Special tokens written in a text are ordinary text here. chat_template is the template's source or None.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None, *, padding_side: Side = "right") -> None:
        self.tokenizer = tokenizer
        self.padding_side = padding_side
        self._template = None if chat_template is None else ChatTemplate(chat_template, self.special_tokens_map)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> PretrainedTokenizer:
        """Reads a Hugging Face directory or a GGUF file.

        Raises ModelNotFoundError when there is neither, ModelFileError when it is damaged.
        """
        path = Path(path)
        if path.is_dir():
            return cls(tokenizer_from_directory(path), _pick(templates_from_directory(path)))
        if path.is_file():
            metadata = GgufFile(first_part(path)).metadata
            return cls(tokenizer_from_gguf(metadata), _pick(templates_from_gguf(metadata)))
        raise ModelNotFoundError(f"{path.name}: neither a model directory nor a GGUF file")

    def __len__(self) -> int:
        return len(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def chat_template(self) -> str | None:
        return None if self._template is None else self._template.source

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens: bos_token, eos_token, ..."""
        tokens = {f"{role}_token": self._token(role) for role in _ROLES}
        return {name: token for name, token in tokens.items() if token is not None}

    def _token_id(self, role: str) -> int | None:
        token_id: int | None = getattr(self.tokenizer.names, f"{role}_token_id")
        return token_id

    def _token(self, role: str) -> str | None:
        token_id = self._token_id(role)
        return None if token_id is None else self.tokenizer.convert_ids_to_tokens([token_id])[0]

    @property
    def bos_token(self) -> str | None:
        return self._token("bos")

    @property
    def bos_token_id(self) -> int | None:
        return self._token_id("bos")

    @property
    def eos_token(self) -> str | None:
        return self._token("eos")

    @property
    def eos_token_id(self) -> int | None:
        return self._token_id("eos")

    @property
    def pad_token(self) -> str | None:
        return self._token("pad")

    @property
    def pad_token_id(self) -> int | None:
        return self._token_id("pad")

    @property
    def unk_token(self) -> str | None:
        return self._token("unk")

    @property
    def unk_token_id(self) -> int | None:
        return self._token_id("unk")

    def encode(
        self, text: str, *, add_special_tokens: bool = True, truncation: bool = False, max_length: int | None = None
    ) -> list[int]:
        """Ids of one text."""
        ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids[: _limit(truncation, max_length)]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | Literal["longest", "max_length"] = False,
        padding_side: Side | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """input_ids and attention_mask, of one text or a list of texts.

        return_tensors "np" gives int64 arrays [num_texts, length]. Raises InvalidRequestError naming an
        argument that is out of range or not supported.
        """
        if return_tensors not in (None, "np"):
            raise InvalidRequestError(
                f"return_tensors must be 'np' or None, got {return_tensors!r}", param="return_tensors"
            )
        texts = [text] if isinstance(text, str) else list(text)
        limit = _limit(truncation, max_length)
        rows = [self.tokenizer.encode(one, add_special_tokens=add_special_tokens)[:limit] for one in texts]
        masks = [[1] * len(row) for row in rows]
        if padding:
            rows, masks = self._padded(rows, masks, padding, padding_side or self.padding_side, max_length)
        if return_tensors == "np":
            if len({len(row) for row in rows}) > 1:
                raise InvalidRequestError("return_tensors needs rows of one length: pass padding=True", param="padding")
            return BatchEncoding(input_ids=np.array(rows, np.int64), attention_mask=np.array(masks, np.int64))
        if isinstance(text, str):
            return BatchEncoding(input_ids=rows[0], attention_mask=masks[0])
        return BatchEncoding(input_ids=rows, attention_mask=masks)

    def _padded(
        self, rows: list[list[int]], masks: list[list[int]], padding: bool | str, side: str, max_length: int | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        if padding not in (True, "longest", "max_length") or side not in ("left", "right"):
            raise InvalidRequestError(
                f"padding must be true, false, 'longest' or 'max_length' on the 'left' or 'right', got {padding!r}, "
                f"{side!r}",
                param="padding",
            )
        if padding == "max_length" and max_length is None:
            raise InvalidRequestError("padding='max_length' needs max_length", param="max_length")
        pad = self.pad_token_id
        if pad is None:
            raise InvalidRequestError("padding: this tokenizer has no pad token", param="padding")
        width = max(map(len, rows), default=0) if padding != "max_length" else max_length or 0
        return ([_pad(row, width, pad, side) for row in rows], [_pad(mask, width, 0, side) for mask in masks])

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        return self.tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        """The texts of several sequences of ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def apply_chat_template(
        self,
        conversation: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        return_dict: bool = False,
        **template_args: Any,
    ) -> str | list[int] | BatchEncoding:
        """The prompt as ids (with return_dict, as a call gives them), or as text when tokenize is false.

        The text remembers which of its special tokens the template wrote: LLM.generate takes those for control.

        Raises InvalidRequestError when the model has no template, ChatTemplateError when the template refuses.
        """
        template = self._template
        if chat_template is not None:
            template = ChatTemplate(chat_template, self.special_tokens_map)
        if template is None:
            raise InvalidRequestError("this model has no chat template: pass chat_template", param="chat_template")
        prompt = template.render(
            conversation,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_args=template_args,
        )
        if not tokenize:
            return prompt  # a string that knows which of it is the template's own
        ids = self.tokenizer.encode_rendered(prompt)
        return BatchEncoding(input_ids=ids, attention_mask=[1] * len(ids)) if return_dict else ids

    def tokenize(self, text: str) -> list[str]:
        """The vocabulary strings of one text, without special tokens."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [token or "" for token in self.tokenizer.convert_ids_to_tokens(ids)]

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of control tokens, ascending."""
        return sorted(self.tokenizer.special_ids)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int | None] | None:
        """Vocabulary strings to ids."""
        if isinstance(tokens, str):
            return self.tokenizer.convert_tokens_to_ids([tokens])[0]
        return self.tokenizer.convert_tokens_to_ids(tokens)

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str | None] | None:
        """Ids to vocabulary strings."""
        if isinstance(ids, int):
            return self.tokenizer.convert_ids_to_tokens([ids])[0]
        return self.tokenizer.convert_ids_to_tokens(ids)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special_tokens_map}
        ends = {"eos_token_id": list(self.tokenizer.eos_token_ids)}
        (folder / "tokenizer.json").write_text(self.tokenizer.to_json(), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        (folder / "generation_config.json").write_text(json.dumps(ends, indent=2), encoding="utf-8")
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def _pick(templates: Mapping[str, str]) -> str | None:
    return templates.get(DEFAULT)


def _limit(truncation: bool, max_length: int | None) -> int | None:
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
        raise InvalidRequestError(f"max_length must be an integer >= 1, got {max_length!r}", param="max_length")
    if truncation and max_length is None:
        raise InvalidRequestError("truncation needs max_length", param="max_length")
    return max_length if truncation else None


def _pad(row: list[int], width: int, filler: int, side: str) -> list[int]:
    missing = [filler] * (width - len(row))
    return missing + row if side == "left" else row + missing
