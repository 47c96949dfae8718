"""From a model's name to its plan: whether it fits this machine, what it takes, how fast it may be, what to change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tuili.backends.cpu import _native
from tuili.checks import check_count
from tuili.config import KV_CACHE_DTYPES, KvCacheDtype, store_dir
from tuili.errors import InvalidRequestError
from tuili.machine import ThreadLimits, available_memory, thread_limits
from tuili.runtime.front.modelfile_settings import model_context
from tuili.runtime.loading.memory import CACHE_SHARE
from tuili.runtime.plan.memory import MemoryModel, MemoryNeed
from tuili.runtime.plan.outline import Outline, open_outline
from tuili.runtime.plan.python_side import measure_python_side
from tuili.runtime.plan.speed import TOLERANCE, MachineSpeed, ModelWork
from tuili.store.store import Store
from tuili.weights.recipes import find_recipe

NARROW = "q4_k_m"  # the recipe of most files that people choose for being small


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """What is to run. ctx None is a Modelfile's, else the model's whole context, or as much of it as fits."""

    ctx: int | None = None
    parallel: int = 1
    kv_cache_dtype: str = "auto"
    quantization: str | None = None  # a recipe of weights.recipes
    num_threads: int = 0
    probe_s: float = 1.0
    free_bytes: int | None = None  # None: what this machine and its control group leave


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """A change with which it fits."""

    change: str  # as options of the command line
    peak_own_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """Tokens per second, together where there are several sequences; decode with an empty and a full context.

    tolerance: how far, in parts of them, measured speeds may lie from these, where machine.is_quiet.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    decode_full_tokens_per_s: float
    tolerance: float
    machine: MachineSpeed


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything `tuili plan` tells; sizes in bytes."""

    model: str
    family: str
    fits: bool
    ctx: int
    max_ctx: int  # the model's own
    parallel: int
    kv_cache_dtype: KvCacheDtype
    quantization: str | None
    free_bytes: int
    kv_limit_bytes: int
    kv_token_bytes: float
    need: MemoryNeed
    is_tokenizer_measured: bool
    largest_ctx: int  # with this many sequences
    largest_parallel: int  # with this context
    alternatives: tuple[Alternative, ...]
    expected: Expected
    threads: ThreadLimits
    isa: str
    file_bytes: int
    num_fetched_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryModels:
    """The model as asked for, and with one thing changed."""

    asked: MemoryModel
    int8: MemoryModel  # cache
    narrow: MemoryModel  # weights


def make_plan(name: str, options: PlanOptions, report: Callable[[str], None], store: Store | None = None) -> Plan:
    """`report` hears what is being done.

    Raises what opening the model's headers raises, UnsupportedModelError, and InvalidRequestError for options.
    """
    dtype = _checked_dtype(options)
    check_count("num_threads", options.num_threads, 0, _native.MAX_THREADS)
    recipe = None if options.quantization is None else find_recipe(options.quantization)
    report(f"reading the header of {name}")
    store = store or Store(store_dir())
    with open_outline(name, store, recipe) as outline:
        limit = outline.spec.max_position
        if options.ctx is None:
            options = replace(options, ctx=model_context(store.modelfile(name), limit))
        elif not 1 <= options.ctx <= limit:
            raise InvalidRequestError(f"ctx must be in [1, {limit}] for this model, got {options.ctx}", param="ctx")
        free_bytes = available_memory() if options.free_bytes is None else options.free_bytes
        threads = thread_limits(options.num_threads)
        report("making its tokenizer, to see what that takes")
        side = measure_python_side(outline.path if outline.has_tokenizer else None, outline.spec.vocab_size)
        models = MemoryModels(
            asked=MemoryModel(outline, side, dtype, threads.num_threads, free_bytes),
            int8=MemoryModel(outline, side, "int8", threads.num_threads, free_bytes),
            narrow=MemoryModel(outline.quantized(find_recipe(NARROW)), side, dtype, threads.num_threads, free_bytes),
        )
        report("measuring this machine")
        machine = MachineSpeed.measure(threads.num_threads, options.probe_s)
        return _plan(outline, options, dtype, models, side.is_measured, machine, threads)


def _plan(
    outline: Outline,
    options: PlanOptions,
    dtype: KvCacheDtype,
    models: MemoryModels,
    is_tokenizer_measured: bool,
    machine: MachineSpeed,
    threads: ThreadLimits,
) -> Plan:
    memory = models.asked
    largest = memory.largest_ctx(options.parallel)
    ctx = options.ctx or largest or 1
    fits = memory.fits(ctx, options.parallel)
    return Plan(
        model=outline.name,
        family=outline.spec.family,
        fits=fits,
        ctx=ctx,
        max_ctx=outline.spec.max_position,
        parallel=options.parallel,
        kv_cache_dtype=dtype,
        quantization=options.quantization,
        free_bytes=memory.free_bytes,
        kv_limit_bytes=int(memory.free_bytes * CACHE_SHARE),
        kv_token_bytes=memory.kv_token_bytes,
        need=memory.need(ctx, options.parallel),
        is_tokenizer_measured=is_tokenizer_measured,
        largest_ctx=largest,
        largest_parallel=memory.largest_parallel(ctx),
        alternatives=() if fits else tuple(_alternatives(models, ctx, options.parallel)),
        expected=_expected(outline, memory, machine, ctx, options.parallel),
        threads=threads,
        isa=_native.best_isa(),
        file_bytes=outline.file_bytes,
        num_fetched_bytes=outline.num_fetched_bytes,
    )


def _alternatives(models: MemoryModels, ctx: int, parallel: int) -> list[Alternative]:
    """One change each, the least intrusive first; a recipe only where it makes the model smaller."""
    asked, int8, narrow = models.asked, models.int8, models.narrow
    is_smaller = narrow.weight_bytes < asked.weight_bytes
    fewer, shorter = asked.largest_parallel(ctx), asked.largest_ctx(parallel)
    candidates = (
        ("--kv-cache-dtype int8", int8.need(ctx, parallel), int8.fits(ctx, parallel)),
        (f"--quantize {NARROW}", narrow.need(ctx, parallel), is_smaller and narrow.fits(ctx, parallel)),
        (f"--parallel {fewer}", asked.need(ctx, max(1, fewer)), fewer > 0),
        (f"--ctx {shorter}", asked.need(max(1, shorter), parallel), shorter > 0),
    )
    return [Alternative(change=change, peak_own_bytes=need.peak_own_bytes) for change, need, fits in candidates if fits]


def _expected(outline: Outline, memory: MemoryModel, machine: MachineSpeed, ctx: int, parallel: int) -> Expected:
    work = ModelWork.of(outline.spec, outline.stored, memory.weight_bytes, memory.groups)
    return Expected(
        prefill_tokens_per_s=work.prefill_tokens_per_s(machine, ctx),
        decode_tokens_per_s=work.decode_tokens_per_s(machine, parallel, 0),
        decode_full_tokens_per_s=work.decode_tokens_per_s(machine, parallel, ctx),
        tolerance=TOLERANCE,
        machine=machine,
    )


def _checked_dtype(options: PlanOptions) -> KvCacheDtype:
    if options.kv_cache_dtype not in KV_CACHE_DTYPES:
        allowed, found = ", ".join(KV_CACHE_DTYPES), options.kv_cache_dtype
        raise InvalidRequestError(f"kv_cache_dtype must be one of {allowed}, got {found!r}", param="kv_cache_dtype")
    return KV_CACHE_DTYPES[options.kv_cache_dtype]
