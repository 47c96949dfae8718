"""`LLM`: batch generation in one call, under vLLM's names. A blocking fold over the pipeline's events."""

from __future__ import annotations

import itertools
import logging
import random
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from tqdm import tqdm

from tuili.errors import InvalidRequestError
from tuili.runtime.api.arguments import LLMArguments
from tuili.runtime.api.beam_search import BeamSearchOutput, run_beam_search
from tuili.runtime.api.engine_arguments import EngineArgs
from tuili.runtime.api.outputs import RequestOutput, SharedParams, empty_output
from tuili.runtime.api.prompts import Prompt, parsed_prompt, prompt_fields, prompt_list, refuse_adapter
from tuili.runtime.api.replicated_model import open_replicas
from tuili.runtime.front.sampling_defaults import EffectiveValue, effective_params
from tuili.runtime.loading.pipeline import Pipeline
from tuili.runtime.metrics import Metric
from tuili.text.pretrained import PretrainedTokenizer
from tuili.text.prompt_text import PromptText
from tuili.types import BeamSearchParams, Done, Event, GenerateRequest, Message, SamplingParams

Params = SamplingParams | Sequence[SamplingParams] | None
Bar = bool | Callable[..., Any]

_NOTHING: Any = None  # of a prompt that is not finished yet
_log = logging.getLogger(__name__)
_REMEDY = "use chat(), or tokenization_kwargs={'split_special_tokens': False}"
_NOT_HERE = {
    **dict.fromkeys(("embed", "encode", "classify", "score", "reward"), "models generate text only"),
    **dict.fromkeys(("sleep", "wake_up"), "close the model and load it again"),
    **dict.fromkeys(("collective_rpc", "apply_model", "get_world_size"), "one process runs the model"),
    **dict.fromkeys(("start_profile", "stop_profile"), "`tuili explain` shows where time goes"),
}


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
        self._pipeline: Pipeline = open_replicas(model, parsed.load_options(), parsed.data_parallel_size)
        self._default_sampling = parsed.default_sampling(self._pipeline.default_sampling)
        self._queue: list[GenerateRequest] = []
        self._has_warned = False

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLM:
        """Loads what the arguments name."""
        return cls(**vars(engine_args))

    def __getattr__(self, name: str) -> Any:
        """Names what vLLM's LLM has and this one does not, with the reason."""
        if name in _NOT_HERE:
            raise AttributeError(f"LLM.{name} is not implemented: {_NOT_HERE[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

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
        use_tqdm: Bar = True,
        lora_request: object = None,
        priority: Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Completes prompts: text, {"prompt": text}, {"prompt_token_ids": ids}, or a list of these.

        sampling_params is one for all or one each; None is the model's own default. Answers come in
        the order of the prompts. use_tqdm may be a function that makes the bar. A lower priority is served first.
        Where all answers together are too much for memory, generate_each hands them out one by one.
        Special tokens written in a prompt are text, unless tokenization_kwargs holds split_special_tokens False.
        Raises InvalidRequestError or ContextLengthError for a bad prompt.
        """
        refuse_adapter(lora_request)
        prompts, options = prompt_list(prompts), tokenization_kwargs or {}
        for prompt in prompts:
            prompt_fields(prompt)  # refused before the first one is answered
        tokenizer = self._pipeline.tokenizer if options else None
        fields = (prompt_fields(parsed_prompt(prompt, tokenizer, options)) for prompt in prompts)
        return self._run(len(prompts), self._requests(len(prompts), fields, sampling_params, priority), use_tqdm)

    def generate_each(
        self, prompts: Iterable[Prompt], sampling_params: SamplingParams | Iterable[SamplingParams] | None = None
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Completes the prompts of any iterable: (number of the prompt from 0, its output), each when it is finished.

        A prompt is taken when there is room for it, and nothing of a finished one is kept, so that there may be any
        number of them. sampling_params is one for all, or an iterable of one each. Closing the iterator aborts what
        is running. Raises what generate does, for a bad prompt when its turn comes.
        """
        if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
            raise InvalidRequestError(
                f"prompts must be an iterable of prompts, got {type(prompts).__name__}", param="prompts"
            )
        params = self.get_default_sampling_params() if sampling_params is None else sampling_params
        each = itertools.repeat(params) if isinstance(params, SamplingParams) else params
        requests = (self._request(prompt_fields(prompt), own, 0) for prompt, own in _paired(prompts, each))
        return self._finished(requests)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params = None,
        use_tqdm: Bar = True,
        lora_request: object = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        priority: Sequence[int] | None = None,
        split_reasoning: bool = False,
    ) -> list[RequestOutput]:
        """Answers one conversation or several, each a list of {"role", "content"} messages.

        tools are shown to the template; their calls are left in the text. Content may be a string or text parts,
        which templates see as one string: chat_template_content_format is "auto" or "string". With split_reasoning
        what a model thinks before it answers is in `reasoning` of its outputs, and no longer in `text`.
        """
        refuse_adapter(lora_request)
        if chat_template_content_format not in ("auto", "string"):
            raise InvalidRequestError(
                f"chat_template_content_format must be 'auto' or 'string', got {chat_template_content_format!r}",
                param="chat_template_content_format",
            )
        shared = {
            "chat_template": chat_template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": None if tools is None else tuple(tools),
            "template_args": dict(chat_template_kwargs or {}),
            "split_reasoning": split_reasoning,
        }
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        count = len(conversations)
        fields = ({"messages": tuple(conversation), **shared} for conversation in conversations)
        return self._run(count, self._requests(count, fields, sampling_params, priority), use_tqdm)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        lora_request: object = None,
        use_tqdm: bool = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The best beam_width ways on from each prompt, best first.

        Scores and endings are those of transformers' generate(num_beams=...). use_tqdm and concurrency_limit have
        no effect: the engine runs as many searches at a time as find room.
        """
        refuse_adapter(lora_request)
        return run_beam_search(self._pipeline, [prompt_fields(prompt) for prompt in prompt_list(prompts)], params)

    def enqueue(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        priority: Sequence[int] | None = None,
    ) -> list[str]:
        """Keeps prompts for wait_for_completion. Returns their request ids."""
        prompts = prompt_list(prompts)
        requests = list(self._requests(len(prompts), map(prompt_fields, prompts), sampling_params, priority))
        self._queue += requests
        return [request.request_id for request in requests]

    def wait_for_completion(self, *, use_tqdm: Bar = True) -> list[RequestOutput]:
        """Answers everything enqueued, in that order."""
        requests, self._queue = self._queue, []
        return self._run(len(requests), requests, use_tqdm)

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
        return SamplingParams(**self._default_sampling)

    def effective_sampling(self, sampling_params: SamplingParams | None = None) -> list[EffectiveValue]:
        """Every parameter's value in effect and where it is from: "request", a layer of the model or "library".

        sampling_params as generate() takes them; None is the model's own default.
        """
        return effective_params(sampling_params, self._default_sampling)

    def get_metrics(self) -> list[Metric]:
        """Counters and histograms since loading, under vLLM's names (vllm:generation_tokens, ...)."""
        return self._pipeline.metrics()

    def reset_prefix_cache(self) -> bool:
        """Forgets which prompts were computed; requests from now on reuse nothing from before."""
        return self._pipeline.reset_prefix_cache()

    def _requests(
        self, count: int, fields: Iterable[Mapping[str, Any]], params: Params, priority: Sequence[int] | None
    ) -> Iterator[GenerateRequest]:
        """Requests, made as their turn comes; what is wrong with params and priority is said at once."""
        each = self._params_each(params, count)
        if priority is not None and len(priority) != count:
            raise InvalidRequestError(
                f"priority needs one entry for each of {count} prompts, got {len(priority)}", param="priority"
            )
        return map(self._request, fields, each, priority or itertools.repeat(0))

    def _run(self, count: int, requests: Iterable[GenerateRequest], use_tqdm: Bar) -> list[RequestOutput]:
        """Only results stay in memory."""
        outputs: list[RequestOutput] = [_NOTHING] * count
        with _Progress(count, use_tqdm) as progress:
            for index, output in self._finished(requests):
                outputs[index] = output
                progress.add(output)
        return outputs

    def _finished(self, requests: Iterable[GenerateRequest]) -> Iterator[tuple[int, RequestOutput]]:
        """(Index of the request, its output) as requests finish; only outputs that still grow stay in memory."""
        growing: dict[int, RequestOutput] = {}
        share = SharedParams()

        def noted() -> Iterator[GenerateRequest]:
            for index, request in enumerate(requests):
                growing[index] = empty_output(request.request_id, request.sampling.n, share(request.sampling))
                yield request

        with closing(self._pipeline.run(noted())) as events:
            for index, event in events:
                growing[index].fold(event)
                if isinstance(event, Done):
                    yield index, growing.pop(index)

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

    def _request(self, fields: Mapping[str, Any], params: SamplingParams, priority: int) -> GenerateRequest:
        self._warn_of_special(fields.get("prompt"))
        params = params.clone() if params.seed is not None else params.with_seed(self._seeds.getrandbits(64))
        return GenerateRequest(request_id=uuid.uuid4().hex, sampling=params, priority=priority, **fields)

    def _warn_of_special(self, prompt: str | None) -> None:
        """Once: who writes a control token into a text elsewhere means it."""
        if not prompt or self._has_warned or isinstance(prompt, PromptText):
            return
        if (token := self._pipeline.tokenizer.spelled_special(prompt)) is not None:
            self._has_warned = True
            _log.warning("a prompt holds %s, which is text and no control token here: %s", token, _REMEDY)


def _paired(
    prompts: Iterable[Prompt], sampling_params: Iterable[SamplingParams]
) -> Iterator[tuple[Prompt, SamplingParams]]:
    """Each prompt with its own. Raises InvalidRequestError where there are fewer parameters than prompts."""
    each = iter(sampling_params)
    for index, prompt in enumerate(prompts):
        if (own := next(each, None)) is None:
            raise InvalidRequestError(
                f"sampling_params must be one for all prompts or one for each, got {index} and more prompts",
                param="sampling_params",
            )
        yield prompt, own


class _Progress:
    """A bar over requests that also tells input and output tokens per second."""

    def __init__(self, total: int, bar: Bar) -> None:
        make = bar if callable(bar) else tqdm
        self._bar = make(total=total, desc="Processed prompts", disable=not bar, dynamic_ncols=True)
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
