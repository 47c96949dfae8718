"""`LLM`: batch generation in one call, under vLLM's names. A blocking fold over the pipeline's events."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from tuili.errors import InvalidRequestError
from tuili.runtime.arguments import LLMArguments
from tuili.runtime.loading import open_model
from tuili.runtime.outputs import RequestOutput, empty_output
from tuili.runtime.pipeline import Pipeline
from tuili.text.pretrained import PretrainedTokenizer
from tuili.types import Done, Event, GenerateRequest, Message, SamplingParams

Prompt = str | Mapping[str, Any] | Sequence[int]
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A model for offline use.

    model: a stored or catalogued name, a Hugging Face `org/name`, a directory or a `.gguf` file; a
    known name is fetched when missing. Further arguments are those of LLMArguments, vLLM's names
    among them. Raises InvalidRequestError (a ValueError) naming a bad argument, ModelNotFoundError,
    ModelFileError, InsufficientMemoryError.
    """

    def __init__(self, model: str, **arguments: Any) -> None:
        parsed = LLMArguments.parse(arguments)
        self._seeds = random.Random(parsed.seed)
        self._pipeline: Pipeline = open_model(str(model), parsed.load_options())

    def close(self) -> None:
        """Frees weights and cache."""
        self._pipeline.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Completes prompts: text, {"prompt": text}, {"prompt_token_ids": ids}, or a list of these.

        sampling_params is one for all or one each; None is the model's own default. Answers come in
        the order of the prompts. Raises InvalidRequestError or ContextLengthError for a bad prompt.
        """
        prompts = _as_list(prompts)
        for prompt in prompts:
            prompt_fields(prompt)  # refused before the first one is answered
        return self._run(len(prompts), map(prompt_fields, prompts), sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation or several, each a list of {"role", "content"} messages."""
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        shared = {
            "chat_template": chat_template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "template_args": dict(chat_template_kwargs or {}),
        }
        fields = ({"messages": tuple(conversation), **shared} for conversation in conversations)
        return self._run(len(conversations), fields, sampling_params, use_tqdm, None)

    def stream(
        self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> Iterator[Event]:
        """Events of one prompt or conversation as they happen; closing the iterator aborts."""
        is_chat = isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)
        fields = {"messages": tuple(prompt)} if is_chat else prompt_fields(prompt)  # type: ignore[arg-type]
        params = sampling_params or self.get_default_sampling_params()
        return self._pipeline.stream(self._request(fields, params, 0))

    def get_tokenizer(self) -> PretrainedTokenizer:
        """The model's tokenizer, speaking Hugging Face's names."""
        return self._pipeline.pretrained_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config asks for, else the library's defaults."""
        return SamplingParams(**dict(self._pipeline.default_sampling))

    def _run(
        self,
        count: int,
        fields: Iterable[dict[str, Any]],
        sampling_params: Params,
        use_tqdm: bool,
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        """Requests are made as their turn comes: only results stay in memory."""
        params = self._params_each(sampling_params, count)
        if priority is not None and len(priority) != count:
            raise InvalidRequestError(
                f"priority needs one entry for each of {count} prompts, got {len(priority)}", param="priority"
            )
        outputs: list[RequestOutput] = []

        def requests() -> Iterator[GenerateRequest]:
            for item in zip(fields, params, priority or itertools.repeat(0), strict=False):
                request = self._request(*item)
                outputs.append(empty_output(request.request_id, request.sampling.n))
                yield request

        with _Progress(count, use_tqdm) as progress:
            for index, event in self._pipeline.run(requests()):
                outputs[index].fold(event)
                if isinstance(event, Done):
                    progress.add(outputs[index])
        return outputs

    def _params_each(self, params: Params, count: int) -> Sequence[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise InvalidRequestError(
                f"sampling_params must be one for all or one for each of {count} prompts, got {len(params)}",
                param="sampling_params",
            )
        return params

    def _request(self, fields: dict[str, Any], params: SamplingParams, priority: int) -> GenerateRequest:
        if params.seed is None:
            params = params.with_seed(self._seeds.getrandbits(64))
        return GenerateRequest(request_id=uuid.uuid4().hex, sampling=params, priority=priority, **fields)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Sequence):
        allowed = "a string, a dict, a list of token ids, or a list of these"
        raise InvalidRequestError(f"prompts must be {allowed}, got {type(prompts).__name__}", param="prompts")
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """The GenerateRequest fields a prompt stands for."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, bytes) or not isinstance(prompt, Mapping | Sequence):
        raise InvalidRequestError(
            f"a prompt must be a string, a dict or a list of token ids, got {type(prompt).__name__}", param="prompts"
        )
    if not isinstance(prompt, Mapping):
        return {"prompt_token_ids": tuple(prompt)}
    allowed = {"prompt", "prompt_token_ids"}
    if unknown := set(prompt) - allowed:
        raise InvalidRequestError(
            f"a prompt may hold {sorted(allowed)}, got {sorted(map(str, unknown))}", param=str(min(map(str, unknown)))
        )
    if prompt.get("prompt_token_ids") is not None:
        return {"prompt_token_ids": tuple(prompt["prompt_token_ids"])}
    return {"prompt": prompt.get("prompt")}


class _Progress:
    """A bar over requests that also tells input and output tokens per second."""

    def __init__(self, total: int, is_shown: bool) -> None:
        self._bar = tqdm(total=total, desc="Processed prompts", disable=not is_shown, dynamic_ncols=True)
        self._num_input = self._num_output = 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, output: RequestOutput) -> None:
        self._num_input += len(output.prompt_token_ids)
        self._num_output += sum(len(o.token_ids) for o in output.outputs)
        elapsed_s = self._bar.format_dict["elapsed"] or 1e-9
        self._bar.set_postfix_str(
            f"input: {self._num_input / elapsed_s:.1f} toks/s, output: {self._num_output / elapsed_s:.1f} toks/s",
            refresh=False,
        )
        self._bar.update()
