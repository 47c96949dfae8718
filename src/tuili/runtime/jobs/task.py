"""What a job asks and tells: rows become requests, answers become lines. Knows no files and no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tuili.errors import InvalidRequestError, TuiliError
from tuili.runtime.api.outputs import RequestOutput
from tuili.runtime.front.messages import checked_messages
from tuili.runtime.jobs.rows import Row
from tuili.runtime.jobs.template import Template, drawn, row_seed
from tuili.types import GenerateRequest, Message, SamplingParams

Result = Mapping[str, Any]  # what the journal keeps of a row


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What a task needs to know of the model. Before it is loaded there are no defaults, and it may have a template."""

    has_chat_template: bool = True
    default_sampling: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """One way to read rows and to write answers. Every method raises InvalidRequestError for a row that is wrong."""

    def row_id(self, row: Row) -> str:
        """What the row is called in the output."""

    def request(self, row: Row, job_seed: int, model: Served) -> GenerateRequest: ...

    def result(self, row: Row, request: GenerateRequest, output: RequestOutput) -> Result: ...

    def failure(self, error: TuiliError) -> Result: ...

    def line(self, row: Row, job_seed: int, result: Result) -> Mapping[str, Any]:
        """The row's line of the output."""


def row_sampling(values: Mapping[str, Any], job_seed: int, row: Row) -> SamplingParams:
    """Parameters with a seed: that among the values, else the row's own."""
    has_seed = values.get("seed") not in (None, -1)
    return SamplingParams(**(values if has_seed else {**values, "seed": row_seed(job_seed, row.index)}))


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTask:
    """Rows that fill in a prompt, or are conversations themselves (a column `messages`, when there is no prompt).

    sampling holds what was asked for over the model's defaults; an answer may run to the end of the context.
    """

    prompt: Template | None = None
    system: Template | None = None
    raw: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    template_args: Mapping[str, Any] = field(default_factory=dict)
    id_column: str | None = None

    def row_id(self, row: Row) -> str:
        column = self.id_column or "id"
        if column not in row.values:
            if self.id_column is None:
                return str(row.index)
            raise self._no_column(row, column)
        value = row.values[column]
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise InvalidRequestError(f"{column} must be text or a whole number, got {value!r:.80}", param=column)
        return str(value)

    def request(self, row: Row, job_seed: int, model: Served) -> GenerateRequest:
        row_id = self.row_id(row)
        params = row_sampling({"max_tokens": None, **model.default_sampling, **self.sampling}, job_seed, row)
        messages = self._messages(row, job_seed)
        is_raw = self.raw or not model.has_chat_template
        if is_raw and (len(messages) != 1 or messages[0]["role"] != "user"):
            raise InvalidRequestError("a conversation needs a chat template, and this model has none", param="messages")
        return GenerateRequest(
            request_id=row_id,
            sampling=params,
            prompt=messages[0]["content"] if is_raw else None,
            messages=None if is_raw else messages,
            template_args=self.template_args,
        )

    def result(self, row: Row, request: GenerateRequest, output: RequestOutput) -> Result:
        answers = [{"text": o.text, "finish_reason": o.finish_reason} for o in output.outputs]
        return {
            **(answers[0] if len(answers) == 1 else {"answers": answers}),
            "num_prompt_tokens": len(output.prompt_token_ids),
            "num_output_tokens": sum(len(o.token_ids) for o in output.outputs),
            "seed": request.sampling.seed,
        }

    def failure(self, error: TuiliError) -> Result:
        return {"error": {"code": error.code, "message": str(error), "param": getattr(error, "param", None)}}

    def line(self, row: Row, job_seed: int, result: Result) -> Mapping[str, Any]:
        messages = self._messages(row, job_seed)
        asked = {"messages": messages} if self._is_conversation(row) else {"prompt": messages[-1]["content"]}
        return {"id": self.row_id(row), **asked, **result}

    def values(self, row: Row, job_seed: int, *templates: Template | None) -> dict[str, Any]:
        """What a template may name: the columns, then i and id, then its random numbers."""
        values = {**row.values}
        values.setdefault("i", row.index)
        values.setdefault("id", self.row_id(row))
        for template in templates:
            for name, bounds in template.ranges().items() if template is not None else ():
                if name in row.values:
                    raise InvalidRequestError(
                        f"{name!r} is a column, so it cannot be a random number too: name that otherwise",
                        param=name,
                    )
                values[name] = drawn(job_seed, row.index, name, bounds)
        return values

    def _is_conversation(self, row: Row) -> bool:
        return self.prompt is None and "prompt" not in row.values and "messages" in row.values

    def _messages(self, row: Row, job_seed: int) -> tuple[Message, ...]:
        values = self.values(row, job_seed, self.prompt, self.system)
        system: tuple[Message, ...] = ()
        if self.system is not None:
            system = ({"role": "system", "content": self.system.render(values)},)
        if not self._is_conversation(row):
            return (*system, {"role": "user", "content": self._prompt(row, values)})
        if self.raw:
            raise InvalidRequestError("messages cannot be completed raw: give a prompt", param="messages")
        given = checked_messages(row.values["messages"])
        if system and given[0]["role"] == "system":
            raise InvalidRequestError("messages begin with a system message, and --system gives one", param="system")
        return (*system, *given)

    def _prompt(self, row: Row, values: Mapping[str, Any]) -> str:
        if self.prompt is not None:
            text = self.prompt.render(values)
        elif isinstance(row.values.get("prompt"), str):
            text = row.values["prompt"]
        elif "prompt" in row.values:
            raise InvalidRequestError(f"prompt must be text, got {row.values['prompt']!r:.80}", param="prompt")
        else:
            raise self._no_column(row, "prompt")
        if not text.strip():
            raise InvalidRequestError("prompt is empty", param="prompt")
        return text

    def _no_column(self, row: Row, name: str) -> InvalidRequestError:
        there = f"there are {', '.join(map(repr, row.values))}" if row.values else "there are no columns"
        hint = ": say with --prompt what to ask, as in --prompt 'Translate: {text}'" if name == "prompt" else ""
        return InvalidRequestError(f"no column {name!r}; {there}{hint}", param=name)
