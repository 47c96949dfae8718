"""How a plan for GPUs reads: the answer first, in one line; then what to change, then the figures. Computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuili.cli.terminal import format_bytes

if TYPE_CHECKING:
    from tuili.runtime.plan.device import DevicePlan, StageNeed


def render_device_plan(plan: DevicePlan) -> str:
    """One line for the answer, one for each change that helps, one for each fact."""
    lines = [answer(plan), *advice(plan), ""]
    facts = [*_memory_facts(plan), *_limit_facts(plan)]
    width = max(len(label) for label, _ in facts)
    lines += [f"{label.ljust(width)}  {fact}" for label, fact in facts]
    return "".join(f"{line}\n" for line in lines)


def answer(plan: DevicePlan) -> str:
    """Whether it fits, in one line."""
    size = plan.num_gpus
    where = f"{plan.device} of {format_bytes(plan.total_bytes)}" if size == 1 else f"each of {size} GPUs of "
    where += "" if size == 1 else format_bytes(plan.total_bytes)
    sequences = "1 sequence" if plan.parallel == 1 else f"{plan.parallel} sequences"
    what = f"{plan.model} with {sequences} of {plan.ctx} tokens"
    need = plan.need
    taken = format_bytes(need.weight_bytes + need.kv_cache_bytes + need.workspace_bytes)
    if not plan.fits:
        granted = format_bytes(max(0, int(plan.gpu_memory_utilization * plan.total_bytes) - plan.other_bytes))
        return f"It does not fit: {what} takes {taken} on {where}, which has {granted} for it."
    if plan.num_host_layers:
        first = f"with the first {plan.num_host_layers} of {plan.num_layers} layers on the CPU, which is slow"
        return f"It fits in part: {what} takes {taken} on {where}, {first}."
    return f"It fits: {what} takes {taken} on {where}."


def advice(plan: DevicePlan) -> list[str]:
    """What to change, most modest first; nothing where all fits as asked."""
    if plan.fits and not plan.num_host_layers:
        if plan.ctx < plan.max_ctx and plan.ctx == plan.largest_ctx:
            return [f"That is the longest context that fits; the model knows {plan.max_ctx} tokens."]
        return []
    if plan.alternatives:
        return [f"All of it fits with {a.change}: {format_bytes(a.peak_own_bytes)}." for a in plan.alternatives]
    return [] if plan.fits else ["No context fits: take more GPUs, larger ones, or a smaller model."]


def _memory_facts(plan: DevicePlan) -> list[tuple[str, str]]:
    need, each = plan.need, "" if plan.num_gpus == 1 else " on each GPU"
    fullest, most = (each, each) if len(plan.stages) == 1 else (" where least is left", " where it takes most")
    cache = f"{plan.kv_cache_dtype}, {format_bytes(plan.kv_token_bytes)} a token"
    facts = [
        ("weights", f"{format_bytes(need.weight_bytes)}{fullest}"),
        ("KV cache", f"{format_bytes(need.kv_cache_bytes)}{most} ({cache})"),
        ("workspace", f"{format_bytes(need.workspace_bytes)}{fullest}, reckoned: a start measures it"),
        ("others", f"{format_bytes(plan.other_bytes)}{each}: driver, libraries, other programs"),
    ]
    if len(plan.stages) > 1:
        facts += [(f"stage {i}", _stage(stage, plan)) for i, stage in enumerate(plan.stages, 1)]
    if plan.num_host_layers:
        facts.append(("host memory", f"{format_bytes(need.host_bytes)} for {plan.num_host_layers} layers"))
    return facts


def _stage(stage: StageNeed, plan: DevicePlan) -> str:
    last = stage.first_layer + stage.num_layers - 1
    layers = f"layers {stage.first_layer} to {last}" if stage.num_layers > 1 else f"layer {last}"
    gpus = "" if plan.tensor_parallel_size == 1 else f" on {plan.tensor_parallel_size} GPUs, of each"
    sizes = [format_bytes(size) for size in (stage.weight_bytes, stage.kv_cache_bytes, stage.workspace_bytes)]
    return f"{layers}{gpus}: weights {sizes[0]}, KV cache {sizes[1]}, workspace {sizes[2]}"


def _limit_facts(plan: DevicePlan) -> list[tuple[str, str]]:
    sequences = "1 sequence" if plan.parallel == 1 else f"{plan.parallel} sequences"
    fetched = plan.num_fetched_bytes
    where = "on this machine" if fetched is None else f"elsewhere: {format_bytes(fetched)} of it fetched to tell this"
    cache = format_bytes(plan.kv_limit_bytes)
    total = format_bytes(plan.total_bytes)
    share = f"{plan.gpu_memory_utilization:g} of {total} may be used, {cache} of it for KV cache"
    return [
        ("GPU memory", share),
        ("context", f"at most {plan.largest_ctx or 'none'} with {sequences}; the model knows {plan.max_ctx}"),
        ("concurrency", f"at most {plan.largest_parallel or 'none'} with {plan.ctx} tokens each"),
        ("model", f"{plan.family}, {format_bytes(plan.file_bytes)} of weights {where}"),
    ]
