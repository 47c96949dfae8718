"""How a plan reads: the answer first, in one line; then what to change, then the figures. Computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuili.cli.terminal import format_bytes

if TYPE_CHECKING:
    from tuili.runtime.plan.plan import Expected, Plan


def render_plan(plan: Plan) -> str:
    """One line for the answer, one for each change that helps, one for each fact."""
    lines = [answer(plan), *advice(plan), ""]
    facts = [*_memory_facts(plan), *_limit_facts(plan), *_speed_facts(plan), *_source_facts(plan)]
    width = max(len(label) for label, _ in facts)
    lines += [f"{label.ljust(width)}  {fact}" for label, fact in facts]
    return "".join(f"{line}\n" for line in lines)


def answer(plan: Plan) -> str:
    """Whether it fits, in one line."""
    need, free = format_bytes(plan.need.peak_own_bytes), format_bytes(plan.free_bytes)
    what = f"{plan.model} with {_sequences(plan.parallel)} of {plan.ctx} tokens"
    if plan.fits:
        return f"It fits: {what} takes {need} of memory, {free} are free."
    if plan.need.peak_own_bytes > plan.free_bytes:
        return f"It does not fit: {what} takes {need} of memory, {free} are free."
    cache, limit = format_bytes(plan.need.kv_cache_bytes), format_bytes(plan.kv_limit_bytes)
    return f"It does not fit: {what} takes {cache} of KV cache, which may have {limit} of the {free} that are free."


def advice(plan: Plan) -> list[str]:
    """What to change, most modest first; nothing where it fits as asked."""
    if plan.fits:
        if plan.ctx < plan.max_ctx and plan.ctx == plan.largest_ctx:
            return [f"That is the longest context that fits; the model knows {plan.max_ctx} tokens."]
        return []
    if plan.alternatives:
        return [f"It fits with {a.change}: {format_bytes(a.peak_own_bytes)}." for a in plan.alternatives]
    return ["No context fits: free some memory, or take a smaller model."]


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else f"{count} sequences"


def _memory_facts(plan: Plan) -> list[tuple[str, str]]:
    need = plan.need
    tokenizer = "measured" if plan.is_tokenizer_measured else "the tokenizer's part is estimated"
    return [
        ("own memory", f"{format_bytes(need.peak_own_bytes)} at most"),
        ("  weights", f"{format_bytes(need.weight_bytes)} packed"),
        ("  KV cache", f"{format_bytes(need.kv_cache_bytes)} ({plan.kv_cache_dtype}, {_per_token(plan)} a token)"),
        ("  workspace", format_bytes(need.workspace_bytes)),
        ("  Python", f"{format_bytes(need.python_bytes)} with libraries and tokenizer ({tokenizer})"),
        ("mapped files", f"{format_bytes(need.peak_mapped_bytes)} while loading, which the system may drop"),
    ]


def _per_token(plan: Plan) -> str:
    return format_bytes(plan.kv_token_bytes)


def _limit_facts(plan: Plan) -> list[tuple[str, str]]:
    most = plan.largest_ctx or "none"
    return [
        ("free memory", f"{format_bytes(plan.free_bytes)}, of which {format_bytes(plan.kv_limit_bytes)} for KV cache"),
        ("context", f"at most {most} with {_sequences(plan.parallel)}; the model knows {plan.max_ctx}"),
        ("concurrency", f"at most {plan.largest_parallel or 'none'} with {plan.ctx} tokens each"),
    ]


def _speed_facts(plan: Plan) -> list[tuple[str, str]]:
    expected = plan.expected
    full, empty = expected.decode_full_tokens_per_s, expected.decode_tokens_per_s
    return [
        ("prefill", f"about {_rate(expected.prefill_tokens_per_s)} tokens/s"),
        ("decode", f"about {_rate(empty)} tokens/s at the start, {_rate(full)} with the context full"),
        ("accuracy", _accuracy(expected)),
        ("measured", _machine(expected, plan)),
    ]


def _accuracy(expected: Expected) -> str:
    within = f"within {expected.tolerance:.0%}, where nothing else works"
    if expected.machine.is_quiet:
        return within
    return (
        f"{within}; now other work took {1 - expected.machine.cpu_share:.0%} of the processors: plan again without it"
    )


def _machine(expected: Expected, plan: Plan) -> str:
    machine = expected.machine
    return (
        f"{machine.read_bytes / 1e9:.1f} GB/s read, {machine.int8_operations / 1e9:.0f} thousand million int8 "
        f"operations/s; {plan.isa}, {machine.num_threads} threads by {plan.threads.reason}"
    )


def _rate(value: float) -> str:
    """Two figures: more would promise too much."""
    return f"{float(f'{value:.2g}'):g}" if value < 100 else f"{round(value, -len(str(int(value))) + 2):.0f}"


def _source_facts(plan: Plan) -> list[tuple[str, str]]:
    fetched = plan.num_fetched_bytes
    where = "on this machine" if fetched is None else f"elsewhere: {format_bytes(fetched)} of it fetched to tell this"
    return [("model", f"{plan.family}, {format_bytes(plan.file_bytes)} of weights {where}")]
