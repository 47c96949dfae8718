"""Prints tokens as they arrive, with the async engine: only what is new (DELTA), then all so far (the default).

python examples/stream_async.py
"""

import asyncio

from tuili import AsyncEngineArgs, AsyncLLMEngine, RequestOutputKind, SamplingParams


async def main() -> None:
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="smollm2:135m", max_model_len=2048))
    try:
        params = SamplingParams(temperature=0, max_tokens=24, output_kind=RequestOutputKind.DELTA)
        async for output in engine.generate("The moon is", params, request_id="delta"):
            print(output.outputs[0].text, end="", flush=True)
        print()

        async for output in engine.generate("The moon is", SamplingParams(temperature=0, max_tokens=6), "cumulative"):
            print(output.outputs[0].text, "(finished)" if output.finished else "")
    finally:
        engine.shutdown()


asyncio.run(main())
