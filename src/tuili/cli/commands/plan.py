"""`tuili plan`: whether a model fits this machine and how fast it may be, before anything is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuili.cli.commands import run
from tuili.cli.model_argument import complete_model
from tuili.cli.shared_options import taking_options
from tuili.cli.terminal import showing_status
from tuili.config import GPU_MEMORY_UTILIZATION

if TYPE_CHECKING:
    from tuili.runtime.plan.device import DeviceOptions, DevicePlan, PlannedGpu
    from tuili.runtime.plan.plan import Plan, PlanOptions

_GPU = "GPU"


@taking_options(("num_threads", "kv_cache_dtype", "quantize", "device", "dtype"), run.command)
def command(
    model: Annotated[
        str,
        typer.Argument(
            autocompletion=complete_model,
            help="A stored or known name, a path, org/name[:tag], or the URL of a GGUF file or a model's folder.",
        ),
    ],
    ctx: Annotated[
        int | None, typer.Option(min=1, help="Context in tokens; by default as much of the model's as fits.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=4096, help="Sequences at once, each with all that context.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Plan for such a GPU, as 80GiB.", rich_help_panel=_GPU),
    ] = None,
    gpu_memory_utilization: Annotated[
        float, typer.Option(help="Share of the GPU's memory to use.", rich_help_panel=_GPU)
    ] = GPU_MEMORY_UTILIZATION,
    tensor_parallel_size: Annotated[
        int, typer.Option("--tensor-parallel-size", "-tp", help="GPUs that share each layer.", rich_help_panel=_GPU)
    ] = 1,
    pipeline_parallel_size: Annotated[
        int,
        typer.Option(
            "--pipeline-parallel-size", "-pp", help="Stages that have some of the layers each.", rich_help_panel=_GPU
        ),
    ] = 1,
    gpu_layers: Annotated[
        int | None,
        typer.Option("--gpu-layers", "-ngl", help="Layers that are not the CPU's.", rich_help_panel=_GPU),
    ] = None,
    **loading: Any,
) -> int:
    """Tell whether a model fits into free memory, this machine's or a GPU's, what it takes, and how fast it may be.

    Reads headers only: of a model that is elsewhere it fetches those few megabytes. It is planned for the GPU that the
    driver tells of, unless --device says cpu; --device-memory plans for one that is not here. Exit code 0: it fits, 1:
    it does not (or something failed).
    """
    from tuili.runtime.plan.device import DeviceOptions, planned_gpu
    from tuili.runtime.plan.plan import PlanOptions
    from tuili.server.settings.setting_kinds import Size

    devices = DeviceOptions(
        device=loading.pop("device"),
        dtype=loading.pop("dtype"),
        memory_bytes=None if device_memory is None else Size().parse("device_memory", device_memory),
        gpu_memory_utilization=gpu_memory_utilization,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        gpu_layers=gpu_layers,
    )
    options = PlanOptions(ctx=ctx, parallel=parallel, quantization=loading.pop("quantize"), **loading)
    gpu = planned_gpu(devices)
    with showing_status() as status:
        plan, text = _planned(model, options, devices, gpu, status)
    typer.echo(json.dumps(plan.as_dict(), indent=2) if as_json else text, nl=as_json)
    return 0 if plan.fits else 1


def _planned(
    model: str, options: PlanOptions, devices: DeviceOptions, gpu: PlannedGpu | None, status: Callable[[str], None]
) -> tuple[Plan | DevicePlan, str]:
    """The plan, and how it reads."""
    if gpu is None:
        from tuili.cli.plan_display import render_plan
        from tuili.runtime.plan.plan import make_plan

        plan = make_plan(model, options, status)
        return plan, render_plan(plan)
    from tuili.cli.device_plan_display import render_device_plan
    from tuili.runtime.plan.device import make_device_plan

    found = make_device_plan(model, options, devices, gpu, status)
    return found, render_device_plan(found)
