"""Which kernels a step's time goes to, as torch's profiler sees them: where a target is missed, what to look at."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.measures import LoadedModel
from benchmarks.gpu.records import Record
from torch.profiler import ProfilerActivity, profile

_NUM_SHOWN = 14
_NAME_LENGTH = 90


def profiles(model: LoadedModel) -> Iterator[Record]:
    """Of decodes, few and many, and of prompts, all of them run before: kernels and graphs are there."""
    sizes = model.sizes
    context = sizes.context - sizes.batch_tokens // 2
    for name, number, length, tokens in (
        ("decode B=1", 1, 8, sizes.warm_steps),
        (f"prefill and decode B={sizes.batch}", sizes.batch, context, sizes.warm_steps),
        (f"first token of {sizes.first_token_prompt}", 1, sizes.first_token_prompt, 1),
    ):
        prompts = model.prompts(number, length)
        is_gpu = model.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as found:
            seconds = model.run(prompts, tokens).total_s
        times = [
            (
                event.key[:_NAME_LENGTH],
                event.count,
                event.self_device_time_total if is_gpu else event.self_cpu_time_total,
            )
            for event in found.key_averages()
        ]
        times.sort(key=lambda item: -item[2])
        yield {
            "profile": f"{model.name} {name}", "seconds": seconds, "busy_s": sum(us for _, _, us in times) / 1e6,
            "kernels": [{"name": key, "count": count, "us": round(us, 1)} for key, count, us in times[:_NUM_SHOWN]],
        }  # fmt: skip
