"""`Llama`, as scripts for llama-cpp-python use it: change `from llama_cpp import Llama` and they run.

Signatures, defaults and the shape of answers are those of llama-cpp-python 0.3. What is not implemented is refused by
name. Logprobs need no logits_all, and equal beginnings of prompts are always reused.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from tuili.checks import check_count, check_optional_count
from tuili.compat.llama_cpp_arguments import LLAMA_DEFAULT_SEED, llm_options, refuse_given, sampling_params
from tuili.compat.llama_cpp_responses import ChatResponder, CompletionResponder, Responder
from tuili.errors import InvalidRequestError
from tuili.runtime.api.outputs import OutputStream
from tuili.runtime.loading.loading import open_model
from tuili.types import Event, GenerateRequest, Message, RequestOutputKind, SamplingParams, TextDelta

_NOT_HERE = {
    **dict.fromkeys(("embed", "create_embedding"), "models generate text only"),
    **dict.fromkeys(("eval", "sample", "eval_logits", "scores"), "logits stay in the engine; ask for logprobs"),
    **dict.fromkeys(("save_state", "load_state"), "equal beginnings of prompts are reused by themselves"),
    **dict.fromkeys(("ctx", "model"), "there is no llama.cpp underneath"),
    "create_chat_completion_openai_v1": "create_chat_completion returns the same values as dicts",
}


class Llama:
    """A model for one caller at a time.

    model_path: a `.gguf` file, a Hugging Face directory or a stored name. n_ctx 0 is all that the model allows;
    n_threads None chooses. n_gpu_layers 0 is the CPU, -1 a GPU if there is one, N leaves all but the last N layers to
    the CPU; where it is not given, the machine decides. seed begins the row of seeds from which every answer that
    brings none takes the next: as in llama-cpp-python, asking again gives another answer, running the script again the
    same ones. Raises InvalidRequestError (a ValueError) naming a bad argument, ModelNotFoundError, ModelFileError.
    """

    def __init__(
        self,
        model_path: str,
        *,
        seed: int = LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_threads: int | None = None,
        last_n_tokens_size: int = 64,
        chat_format: str | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        **others: Any,
    ) -> None:
        check_count("last_n_tokens_size", last_n_tokens_size, 0, 2**31 - 1)
        check_count("seed", seed, -1, 2**64 - 1)
        options = llm_options(n_ctx, n_batch, n_threads, chat_format, (type_k, type_v), others)
        self.model_path = str(model_path)
        self._pipeline = open_model(self.model_path, options)
        self._tokenizer = self._pipeline.tokenizer
        self._last_n = last_n_tokens_size
        self._seed = seed if seed > 0 else LLAMA_DEFAULT_SEED
        self._num_requests = 0

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        additional_files: Sequence[str] | None = None,
        local_dir: object = None,
        local_dir_use_symlinks: object = "auto",
        cache_dir: object = None,
        **kwargs: Any,
    ) -> Llama:
        """Loads `repo_id`, fetched into the store when missing; filename names the GGUF among its files.

        A pattern must tell the quantization, as in "*Q4_K_M.gguf". Raises ModelNotFoundError, DownloadError.
        """
        refuse_given(
            {"additional_files": additional_files, "local_dir": local_dir, "cache_dir": cache_dir},
            "TUILI_HOME says where models are kept",
        )
        tag = None if filename is None else PurePosixPath(filename).name.removesuffix(".gguf").strip("*-._")
        if tag is not None and any(c in tag for c in "*?["):
            raise InvalidRequestError(
                f"filename must be a name, or a pattern that ends in one like '*Q4_K_M.gguf', got {filename!r}",
                param="filename",
            )
        return cls(repo_id if not tag else f"{repo_id}:{tag}", **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Names what llama-cpp-python's Llama has and this one does not, with the reason."""
        why = f"Llama.{name} is not implemented: {_NOT_HERE[name]}" if name in _NOT_HERE else None
        raise AttributeError(why or f"{type(self).__name__!r} object has no attribute {name!r}")

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        model: str | None = None,
        **others: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Completes a prompt, in which special tokens count: a dict in OpenAI's shape, or with stream chunks of it.

        max_tokens None or below 1 runs to the end of the context; logprobs is how many alternatives to tell.
        Raises InvalidRequestError or ContextLengthError (both ValueErrors).
        """
        refuse_given({"suffix": suffix}, "the text after a prompt is not looked at")
        params = self._sampling(
            {"temperature": temperature, "top_p": top_p, "min_p": min_p, "typical_p": typical_p, "top_k": top_k},
            {"frequency_penalty": frequency_penalty, "presence_penalty": presence_penalty},
            {"repeat_penalty": repeat_penalty, "max_tokens": max_tokens, "stop": stop, "seed": self._next_seed(seed)},
            others,
            logprobs=logprobs,
            prompt_logprobs=logprobs if echo else None,
        )
        ids = self._tokenizer.encode(prompt, parse_special=True) if isinstance(prompt, str) else prompt
        text = prompt if isinstance(prompt, str) else self._text(ids)
        responder = CompletionResponder(model or self.model_path, self.detokenize, text if echo else "", len(text))
        return self._respond(responder, params, stream, prompt_token_ids=tuple(ids))

    __call__: Callable[..., Any] = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Message],
        functions: object = None,
        function_call: object = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: object = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        model: str | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        **others: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Answers a conversation: a dict in OpenAI's shape, or with stream an iterator of chunks.

        tools are shown to the template; calls are left in the text. Raises as create_completion.
        """
        refuse_given({"functions": functions, "function_call": function_call}, "give tools")
        if tool_choice not in (None, "auto"):
            refuse_given({"tool_choice": tool_choice}, "structured output does not exist yet")
        if response_format not in (None, {"type": "text"}):
            refuse_given({"response_format": response_format}, "structured output does not exist yet")
        params = self._sampling(
            {"temperature": temperature, "top_p": top_p, "min_p": min_p, "typical_p": typical_p, "top_k": top_k},
            {"frequency_penalty": frequency_penalty, "presence_penalty": presence_penalty},
            {"repeat_penalty": repeat_penalty, "max_tokens": max_tokens, "stop": stop, "seed": self._next_seed(seed)},
            others,
            logprobs=(top_logprobs or 0) if logprobs else None,
        )
        responder = ChatResponder(model or self.model_path, self.detokenize, top_logprobs or 0)
        shown = None if tools is None else tuple(tools)
        return self._respond(responder, params, stream, messages=tuple(messages), tools=shown)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        **others: Any,
    ) -> Iterator[int]:
        """Token ids that follow, past any end token, until the caller stops or the context is full."""
        params = self._sampling(
            {"temperature": temp, "top_p": top_p, "min_p": min_p, "typical_p": typical_p, "top_k": top_k},
            {"frequency_penalty": frequency_penalty, "presence_penalty": presence_penalty},
            {"repeat_penalty": repeat_penalty, "max_tokens": None, "stop": None, "seed": self._seed},
            others,
            ignore_eos=True,
            detokenize=False,
        )
        for event in self._events(params, {"prompt_token_ids": tuple(tokens)}):
            if isinstance(event, TextDelta):
                yield from event.token_ids

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Ids of UTF-8 text; special tokens written in it count only with `special`."""
        return self._tokenizer.encode(text.decode(), add_special_tokens=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """UTF-8 text of ids, where it may end inside a character; special tokens are shown only with `special`."""
        shown = [i for i in tokens if special or not self._tokenizer.is_special(i)]
        text = b"".join(map(self._tokenizer.token_bytes, shown))
        is_start = not prev_tokens and list(tokens[:1]) == [self.token_bos()]
        drops = is_start and self._tokenizer.leading_spaces_dropped
        return text.removeprefix(b" ") if drops else text

    def n_ctx(self) -> int:
        """Tokens the context holds."""
        return self._pipeline.max_model_len

    def n_embd(self) -> int:
        return self._pipeline.spec.hidden_size

    def n_vocab(self) -> int:
        return self._pipeline.spec.vocab_size

    def token_eos(self) -> int:
        """The id that ends a text; -1 where there is none."""
        return _or_none(self._tokenizer.names.eos_token_id)

    def token_bos(self) -> int:
        """The id that begins a text; -1 where there is none."""
        return _or_none(self._tokenizer.names.bos_token_id)

    def token_nl(self) -> int:
        """The id of a line break; -1 where it is no single token."""
        ids = self._tokenizer.encode("\n", add_special_tokens=False)
        return ids[-1] if ids and self._tokenizer.token_bytes(ids[-1]) == b"\n" else -1

    def set_seed(self, seed: int) -> None:
        """Begins the row of seeds anew, of answers that bring none; a seed given to an answer does so too."""
        self._seed = seed

    def set_cache(self, cache: object) -> None:
        """Nothing: equal beginnings of prompts are reused without being asked."""

    def reset(self) -> None:
        """Forgets what was computed for earlier prompts."""
        self._pipeline.reset_prefix_cache()

    def close(self) -> None:
        """Frees weights and cache."""
        self._pipeline.close()

    def _next_seed(self, given: int | None) -> int:
        """llama-cpp-python's row: each seed is drawn by a generator made of the one before."""
        check_optional_count("seed", given, -1, 2**64 - 1)
        self._seed = random.Random(self._seed).randint(0, 2**32) if given is None else given
        return self._seed

    def _sampling(self, *given: Mapping[str, Any], **ours: Any) -> SamplingParams:
        arguments = {name: value for group in given for name, value in group.items()}
        return sampling_params(arguments, {**ours, "repeat_last_n": self._last_n})

    def _respond(
        self, responder: Responder, params: SamplingParams, stream: bool, **fields: Any
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        events = self._events(params, fields)
        if stream:
            return responder.chunks(events)
        output = OutputStream("", 1, RequestOutputKind.FINAL_ONLY)
        return next(responder.response(found) for event in events if (found := output.push([event])) is not None)

    def _events(self, params: SamplingParams, fields: Mapping[str, Any]) -> Iterator[Event]:
        self._num_requests += 1
        request = GenerateRequest(request_id=f"llama-{self._num_requests}", sampling=params, **fields)
        return self._pipeline.stream(request)

    def _text(self, token_ids: Sequence[int]) -> str:
        return self.detokenize(token_ids).decode(errors="ignore")


def _or_none(token_id: int | None) -> int:
    return -1 if token_id is None else token_id
