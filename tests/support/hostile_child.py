"""Reads GGUF files nobody vouches for, in a process of its own with bounded memory.

python -m support.hostile_child SEED COUNT SPLITS ANSWERS FOLDER, where FOLDER may hold more seeds, prints one JSON
object: of the COUNT models in one file and the SPLITS in several how many were read, how many of the first of those
answered, how many were refused, what went wrong, and the costs.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from support.gguf_models import seeds
from support.gguf_mutants import mutants, split_mutants
from support.gguf_parsing import parse
from tuili.cli.model_description import describe, render_description
from tuili.errors import MAX_MESSAGE_CHARS, TuiliError
from tuili.runtime.front.sampling_defaults import sampling_defaults
from tuili.runtime.front.text_parts import open_chat_template, open_tokenizer
from tuili.runtime.loading.loading import LoadOptions, open_model
from tuili.store.records import ModelFiles
from tuili.types import Done, Failed, GenerateRequest, SamplingParams
from tuili.weights.checkpoint import Checkpoint, open_checkpoint

MARGIN_BYTES = 512 << 20
MESSAGES = ({"role": "user", "content": "hello <|im_end|> world"},)


def limit_memory() -> None:
    """Lets this process take MARGIN_BYTES of address space more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MARGIN_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def read(path: Path) -> Checkpoint:
    """Everything that is done with a model short of computing: headers, text, description, every weight's values."""
    checkpoint = open_checkpoint(path)
    files = ModelFiles(name=path.name, path=path, source="local", num_bytes=checkpoint.num_bytes, created=0)
    render_description(describe(files, checkpoint))
    SamplingParams(**sampling_defaults(checkpoint.generation_config))
    tokenizer = open_tokenizer(checkpoint)
    ids = tokenizer.encode("hello wörld <|im_end|>\n")
    tokenizer.decode(ids)
    template = open_chat_template(checkpoint, tokenizer, None)
    if template is not None:
        tokenizer.encode_rendered(template.render(MESSAGES))
    return checkpoint


def answer(path: Path) -> None:
    """Loads the model and has it say two tokens; both backends."""
    for backend in ("cpu", "reference"):
        options = LoadOptions(backend=backend, num_threads=1, max_num_seqs=1, max_num_batched_tokens=64)
        with open_model(str(path), options) as pipeline:
            sampling = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
            request = GenerateRequest(request_id="1", sampling=sampling, prompt="hello")
            *_, last = pipeline.stream(request)
            assert isinstance(last, Done | Failed), last


def outcome(path: Path, use: Callable[[Path], Any]) -> str:
    """ "read", "refused", or what no file may do."""
    try:
        use(path)
    except TuiliError as error:
        message = str(error)
        if not message.isprintable() or not 0 < len(message) <= MAX_MESSAGE_CHARS or str(path.parent) in message:
            return f"message {message[:200]!r}"
        return "refused"
    except BaseException as error:  # Rust panics are no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error!s:.200} ({Path(where.filename).name}:{where.lineno})"
    return "read"


def try_all(files: Iterator[tuple[str, Mapping[str, bytes]]], folder: Path, max_answers: int) -> dict[str, Any]:
    """What became of the models, of one or several files, and the most one of them cost in seconds of this thread."""
    report: dict[str, Any] = {"read": 0, "refused": 0, "answered": 0, "not answered": 0, "slowest_s": 0.0}
    failures: list[str] = []
    for index, (done, contents) in enumerate(files):
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        path = folder / sorted(contents)[index % len(contents)]
        started = time.thread_time()
        found = outcome(path, read)
        if found in report:
            report[found] += 1
        if found == "read" and report["answered"] + report["not answered"] < max_answers:
            found = outcome(path, answer)
            report["answered" if found == "read" else "not answered"] += 1
        report["slowest_s"] = max(report["slowest_s"], time.thread_time() - started)
        if found not in ("read", "refused"):
            failures.append(f"#{index} {done}: {found}")
        for name in contents:
            (folder / name).unlink()
    return report | {"failures": failures}


def main() -> None:
    seed, count, num_splits, max_answers = map(int, sys.argv[1:5])
    models = seeds() | {path.stem: parse(path.read_bytes()) for path in sorted(Path(sys.argv[5]).glob("*.gguf"))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in models.values():  # everything is imported and at its size before memory is bounded
            (folder / "model.gguf").write_bytes(model.encode())
            read(folder / "model.gguf")
            answer(folder / "model.gguf")
        (folder / "model.gguf").unlink()
        limit_memory()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        singles = ((done, {"model.gguf": content}) for done, content in mutants(models, seed, count))
        splits = split_mutants(models, seed, num_splits)
        report = {
            "single": try_all(singles, folder, max_answers),
            "split": try_all(splits, folder, max_answers // 4),
            "grown_bytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before,
            "left": sorted(entry.name for entry in folder.iterdir()),
        }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
