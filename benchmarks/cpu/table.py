"""The whole table: every model, every workload, every peer at its best, in interleaved rounds.

    python -m benchmarks.cpu --folder FOLDER [--quick] [--models a,b] [--measures "a;b"] [--peers a,b] [--rounds N]
        [--text wikitext2/test.txt [--chunks 4]]

FOLDER is what `python -m benchmarks.cpu.setup_peers FOLDER` filled. Results go to benchmarks/results/cpu_MODEL.json
after every workload; `--show` prints what lies there and measures nothing. With a text each model's perplexity stands
beside its speed; `--rounds 0` measures nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cpu import peers
from benchmarks.cpu.limits import ModelCost, model_cost
from benchmarks.cpu.models import MODELS, BenchModel, ModelMaker, open_bench_model
from benchmarks.cpu.perplexities import measure_perplexities
from benchmarks.cpu.session import OURS, Round, Row, run_rounds, summary
from benchmarks.cpu.targets import verdicts

from tuili.errors import PeerError
from tuili.registry import discover
from tuili.runtime.bench.pipeline_meter import PipelineMeter
from tuili.runtime.bench.target import PeerTarget
from tuili.runtime.bench.workload import Workload
from tuili.runtime.loading.loading import LoadOptions, open_model

MEASURES: Mapping[str, Workload] = {
    "prefill 512": Workload(prompt_len=512, output_len=0),
    "decode B=1": Workload(),
    "decode B=16": Workload(num_seqs=16),
    "decode B=32": Workload(num_seqs=32),
    "decode B=1, context 512": Workload(prompt_len=512),
    "decode B=16, context 512": Workload(num_seqs=16, prompt_len=512),
    "decode B=32, context 512": Workload(num_seqs=32, prompt_len=512),
    "decode B=1, context 4096": Workload(prompt_len=4096),
}
QUICK = ("prefill 512", "decode B=1", "decode B=16", "decode B=32")
PEERS = discover(peers)


class Results:
    """The rounds of one model, kept in a file."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.path = machine.RESULTS / f"cpu_{model}.json"
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.rounds = [Round(**entry) for entry in stored.get("rounds", [])]
        self.facts: dict[str, Any] = stored.get("facts", {})
        self.machine: dict[str, Any] = stored.get("machine", {})  # that of the rounds

    def of(self, measure: str) -> list[Round]:
        return [entry for entry in self.rounds if entry.measure == measure]

    def rows(self) -> list[Row]:
        return [summary(measure, self.of(measure)) for measure in MEASURES if self.of(measure)]

    def shares(self) -> dict[str, float]:
        """Of the machine's limit, for the workloads that have one."""
        cost = ModelCost(**self.facts["cost"])
        found = {row.measure: cost.share(MEASURES[row.measure], row) for row in self.rows()}
        return {measure: round(share, 3) for measure, share in found.items() if share is not None}

    def save(self) -> None:
        machine.RESULTS.mkdir(exist_ok=True)
        rows = [asdict(row) for row in self.rows()]
        content = {"machine": self.machine, "facts": self.facts, "rows": rows, "shares": self.shares()}
        text = json.dumps(content | {"rounds": [asdict(entry) for entry in self.rounds]}, indent=1)
        self.path.write_text(text + "\n")


def measure_model(model: BenchModel, arguments: argparse.Namespace) -> Results:
    """Runs the chosen workloads; peers that do not come up are noted and left out."""
    results = Results(model.name)
    workloads = {name: MEASURES[name] for name in arguments.measures}
    with ExitStack() as stack:
        contenders, left_out = _open_all(model, arguments, workloads.values(), stack)
        results.facts |= {"left_out": left_out, **_cost_facts(model)}
        results.machine = machine.describe()
        for name, workload in workloads.items():
            before = results.of(name)
            for contender in contenders:
                _prefer(contender, workload, before)
            if not arguments.append:
                results.rounds = [entry for entry in results.rounds if entry.measure != name]
            args = (contenders, arguments.rounds, arguments.threads)
            results.rounds += run_rounds(name, workload, *args, lambda entry: print(_line(entry), flush=True))
            results.save()
    return results


def _open_all(
    model: BenchModel, arguments: argparse.Namespace, workloads: Iterable[Workload], stack: ExitStack
) -> tuple[list[Any], dict[str, str]]:
    workloads = list(workloads)
    max_len = max(w.prompt_len + w.max_tokens for w in workloads) + 64
    max_num_seqs = max(w.num_seqs for w in workloads)
    options = LoadOptions(
        speculative=None,
        num_threads=arguments.threads,
        max_model_len=max_len,
        max_num_seqs=max_num_seqs,
        enable_prefix_caching=False,
    )
    pipeline = stack.enter_context(open_model(str(model.gguf), options))
    ours = PipelineMeter(pipeline, random.Random(arguments.seed), OURS)
    ours.measure(Workload(num_seqs=min(2, max_num_seqs), output_len=8))  # touches every weight once
    target = PeerTarget(
        model=model.gguf,
        num_threads=arguments.threads,
        max_num_seqs=max_num_seqs,
        max_len=max_len,
        vocab_size=pipeline.spec.vocab_size,
        seed=arguments.seed,
    )
    contenders: list[Any] = [ours]
    left_out: dict[str, str] = {}
    for name in arguments.peers:
        try:
            opened = PEERS[name].open_peers(model, arguments.folder, target)
        except PeerError as error:
            left_out[name] = str(error)
            print(f"{name} is left out: {error}", flush=True)
            continue
        contenders += [stack.enter_context(closing(peer)) for peer in opened]
    return contenders, left_out


def _prefer(contender: Any, workload: Workload, before: Sequence[Round]) -> None:
    known = [entry.settings[contender.name] for entry in before if contender.name in entry.settings]
    if known and hasattr(contender, "prefer"):
        contender.prefer(workload, known[-1])


def _cost_facts(model: BenchModel) -> dict[str, Any]:
    return {"label": model.label, "cost": asdict(model_cost(model.gguf))}


def _line(entry: Round) -> str:
    rates = "  ".join(f"{name} {rate:.1f}" for name, rate in entry.tokens_per_s.items())
    return f"{entry.measure}: {entry.bandwidth_gb_s:.1f} GB/s  {rates}"


def render(results: Results) -> str:
    """A Markdown table: our rate, every peer's rate and ratio, the probe, the share of the machine's limit."""
    rows, shares = results.rows(), results.shares()
    names = list(dict.fromkeys(name for row in rows for name in row.ratios))
    header = ["", OURS, *names, "best peer", "read probe", "share of the limit"]
    lines = [f"### {results.facts['label']}", "", _cells(header), _cells(["---"] * len(header))]
    for row in rows:
        theirs = [f"{row.tokens_per_s[n]:.1f} ({row.ratios[n]:.2f}x)" if n in row.ratios else "" for n in names]
        best = "" if row.best_peer is None else f"{row.ratios[row.best_peer]:.2f}x"
        shown = f"{shares[row.measure]:.0%}" if row.measure in shares else ""
        probe = f"{row.bandwidth_gb_s:.1f} GB/s"
        lines.append(_cells([row.measure, f"{row.tokens_per_s[OURS]:.1f}", *theirs, best, probe, shown]))
    left_out = [f"- {name} is left out: {reason}" for name, reason in results.facts["left_out"].items()]
    return "\n".join([*lines, "", *_perplexity_lines(results), *left_out, *_verdict_lines(results)]) + "\n"


def _perplexity_lines(results: Results) -> Iterator[str]:
    if (found := results.facts.get("perplexity")) is None:
        return
    values = ", ".join(f"{name} {value:.3f}" for name, value in found["values"].items())
    yield f"Perplexity of {found['text']}, {found['chunks']} chunks of {found['context']}: {values}."
    yield ""


def _verdict_lines(results: Results) -> Iterator[str]:
    yield from ("", _cells(["target", "at least", "measured", ""]), _cells(["---"] * 4))
    for verdict in verdicts(results.model, results.rows(), results.shares()):
        reached = "reached" if verdict.is_reached else "not reached"
        yield _cells([verdict.target.measure, verdict.target.text(), verdict.text(), reached])


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="what setup_peers filled")
    parser.add_argument("--models", type=_names(MODELS), default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--measures", type=_names(tuple(MEASURES), ";"), help="separated by ;")
    parser.add_argument("--peers", type=_names(tuple(PEERS)), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--text", type=Path, help="of which to measure perplexity")
    parser.add_argument("--chunks", type=int, default=4, help="of 512 tokens of the text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="three rounds of the first four workloads")
    parser.add_argument("--append", action="store_true", help="add rounds to those stored")
    parser.add_argument("--show", action="store_true", help="print what is stored")
    parsed = parser.parse_args(arguments)
    parsed.measures = parsed.measures or list(QUICK if parsed.quick else MEASURES)
    if parsed.rounds is None:
        parsed.rounds = 3 if parsed.quick else 5
    if parsed.folder is None and not parsed.show:
        parser.error("--folder is needed to measure")
    return parsed


def _names(allowed: Sequence[str], separator: str = ",") -> Any:
    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(separator) if name.strip()]
        if unknown := sorted(set(names) - set(allowed)):
            raise argparse.ArgumentTypeError(f"{unknown} not among {list(allowed)}")
        return names

    return split


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parsed = parse(arguments)
    for name in parsed.models:
        if parsed.show:
            results = Results(name)
        else:
            maker = ModelMaker.in_folder(parsed.folder)
            model = open_bench_model(maker, name)
            results = measure_model(model, parsed) if parsed.rounds else Results(name)
            if parsed.text is not None and model.has_real_weights:
                args = (parsed.text, parsed.chunks, parsed.threads)
                results.facts = {"left_out": {}, **_cost_facts(model), **results.facts}
                results.facts["perplexity"] = measure_perplexities(model, maker.llama_cpp, *args)
                results.save()
        if results.rounds:
            print(render(results), flush=True)


if __name__ == "__main__":
    main()
