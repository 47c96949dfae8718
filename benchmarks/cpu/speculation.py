"""What drafts bring, and what they cost where there is nothing to copy: decode with and without, in turns.

    python benchmarks/cpu/speculation.py MODEL [--draft-model MODEL] [--sets repetitive,fresh] [--rounds 5]
        [--max-tokens 128] [--batch 1] [--threads 2] [--save NAME]

Two sets of texts: `repetitive` (code, JSON, a table and an extraction, greedy: what the model writes
repeats what it has read) and `fresh` (stories and essays, sampled). With --batch N a set's prompts
are asked N at a time. Each text is written both ways in every round, checked to be the same, and
its ratio is the median over rounds; a set's is the geometric mean over its texts.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuili.config import SpeculativeConfig
from tuili.runtime.api.outputs import RequestOutput, empty_output
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.runtime.loading.pipeline import Pipeline
from tuili.types import GenerateRequest, SamplingParams

sys.path.insert(0, str(Path(__file__).parent.parent))
import machine

TEST_CASES = "\n".join(
    f"def test_add_{name}():\n    calculator = Calculator()\n    result = calculator.add({i}, {i + 1})\n"
    f"    assert result == {2 * i + 1}\n"
    for i, name in enumerate(["one", "two", "three", "four", "five"])
)
RECORDS = "[\n" + "".join(
    f'  {{"id": {i}, "name": "item-{i}", "price": {3 * i}.50, "tags": ["new", "blue"], "stock": true}},\n'
    for i in range(1, 9)
)
TABLE = "| name | city | country | population |\n|---|---|---|---|\n" + "".join(
    f"| {city} | {city} City | {country} | {size} million |\n"
    for city, country, size in [
        ("Paris", "France", 2),
        ("Lyon", "France", 1),
        ("Rome", "Italy", 3),
        ("Milan", "Italy", 1),
    ]
)
LOG = "\n".join(
    f"2024-01-0{day} {level} {text}"
    for day, level, text in [
        (1, "INFO", "start of the service"),
        (1, "ERROR", "disk /dev/sda1 is full"),
        (2, "INFO", "retry number 17 of the backup"),
        (2, "ERROR", "cannot write file /var/log/app.log: no space left on device"),
        (3, "INFO", "stop of the service"),
    ]
)
EDIT = '{"users": [{"name": "Alice", "age": 31, "city": "Paris"}, {"name": "Carol", "age": 27, "city": "Berlin"}]}'
# Texts are completed; questions are asked through the chat template.
SETS: dict[str, list[dict[str, Any]]] = {
    "repetitive": [
        {"prompt": TEST_CASES},
        {"prompt": RECORDS},
        {"prompt": TABLE},
        {"question": f"Copy the lines that contain an error.\n\n{LOG}"},
        {"question": f"Repeat this JSON, but change the name Alice to Bob:\n{EDIT}"},
    ],
    "fresh": [
        {"question": "Write a short story about a fox and a river."},
        {"question": "Explain why the sky is blue to a child."},
        {"prompt": "The history of the lighthouse begins long before the first ships reached the shore."},
        {"prompt": "Dear editor, I am writing about the article on city gardens in last week's issue."},
        {"question": "Compare trains and ships as ways to carry goods."},
    ],
}
SAMPLING: dict[str, dict[str, Any]] = {"repetitive": {"temperature": 0.0}, "fresh": {"temperature": 1.0, "top_p": 0.95}}


@dataclass
class Measured:
    """One group of texts: tokens per second with and without drafts, by round, and what became of the drafts."""

    rates: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    num_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    def ratio(self) -> float:
        return statistics.median(on / off for off, on in zip(self.rates[False], self.rates[True], strict=True))


def main() -> None:
    options = _options()
    models = {drafts: _open(options, drafts) for drafts in (False, True)}
    rows: list[dict[str, Any]] = []
    for name in options.sets:
        texts = SETS[name]
        groups = [list(itertools.islice(itertools.cycle(texts), i, i + options.batch)) for i in range(len(texts))]
        found = [_measure(models, group, SAMPLING[name], options) for group in groups]
        rows += [_row(name, group, measured) for group, measured in zip(groups, found, strict=True)]
        print(f"{name}: {statistics.geometric_mean(measured.ratio() for measured in found):.3f}")
    if options.save:
        settings = {key: value for key, value in vars(options).items() if key != "save"}
        print(machine.save(options.save, settings, rows))


def _measure(
    models: dict[bool, Pipeline], group: list[dict[str, Any]], sampling: dict[str, Any], options: argparse.Namespace
) -> Measured:
    found = Measured()
    for i in range(options.rounds + 1):
        texts = {}
        for drafts in (False, True) if i % 2 else (True, False):
            before = models[drafts].loop.stats()
            outputs = _answer(models[drafts], group, sampling, options.max_tokens)
            after = models[drafts].loop.stats()
            texts[drafts] = [output.outputs[0].token_ids for output in outputs]
            if i:  # the first round warms up
                found.rates[drafts].append(_rate(outputs))
                found.num_tokens += sum(map(len, texts[drafts])) * drafts
                found.num_draft_tokens += after.num_draft_tokens - before.num_draft_tokens
                found.num_accepted_tokens += after.num_accepted_tokens - before.num_accepted_tokens
        assert texts[True] == texts[False], "drafts changed an answer"
    return found


def _answer(
    model: Pipeline, group: list[dict[str, Any]], sampling: dict[str, Any], max_tokens: int
) -> list[RequestOutput]:
    params = SamplingParams(max_tokens=max_tokens, seed=1, ignore_eos=True, **sampling)
    requests = []
    for i, text in enumerate(group):
        fields = {"prompt": text["prompt"]} if "prompt" in text else {"messages": _messages(text["question"])}
        requests.append(GenerateRequest(request_id=str(i), sampling=params, **fields))
    outputs = [empty_output(request.request_id, 1) for request in requests]
    for index, event in model.run(requests):
        outputs[index].fold(event)
    return outputs


def _messages(question: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": question},)


def _rate(outputs: list[RequestOutput]) -> float:
    """Tokens per second after the first ones."""
    timings = [output.metrics for output in outputs if output.metrics is not None]
    num_tokens = sum(len(output.outputs[0].token_ids) - 1 for output in outputs)
    return num_tokens / max(timing.last_token_ts - timing.first_token_ts for timing in timings)


def _row(name: str, group: list[dict[str, Any]], found: Measured) -> dict[str, Any]:
    plain, drafted = (statistics.median(found.rates[drafts]) for drafts in (False, True))
    row = {
        "set": name,
        "text": next(iter(group[0].values()))[:40],
        "plain_tokens_per_s": round(plain, 1),
        "drafted_tokens_per_s": round(drafted, 1),
        "ratio": round(found.ratio(), 3),
        "num_tokens": found.num_tokens,
        "num_draft_tokens": found.num_draft_tokens,
        "num_accepted_tokens": found.num_accepted_tokens,
    }
    print(f"{name:10} {row['text']!r:44.44} {plain:7.1f} -> {drafted:7.1f} tok/s  x{row['ratio']:.3f}", end="")
    print(f"  drafted {row['num_draft_tokens']}, accepted {row['num_accepted_tokens']} of {row['num_tokens']}")
    return row


def _open(options: argparse.Namespace, drafts: bool) -> Pipeline:
    return open_model(
        options.model,
        LoadOptions(
            num_threads=options.threads,
            max_model_len=2048,
            max_num_seqs=max(options.batch, 1),
            kv_cache_memory_bytes=512 << 20,
            enable_prefix_caching=False,
            speculative=_speculative(options.draft_model) if drafts else None,
        ),
    )


def _speculative(draft_model: str | None) -> SpeculativeConfig:
    if draft_model is None:
        return SpeculativeConfig()
    return SpeculativeConfig(method="draft_model", model=draft_model)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft-model")
    parser.add_argument("--sets", type=lambda names: names.split(","), default=list(SETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save")
    return parser.parse_args()


if __name__ == "__main__":
    main()
