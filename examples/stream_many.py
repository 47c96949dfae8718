"""Streams several answers at the same time with asyncio; all share one engine.

python examples/stream_many.py
"""

import asyncio

from tuili import AsyncLLM, SamplingParams


async def ask(llm: AsyncLLM, question: str) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40)
    seen = 0
    async for output in llm.generate(question, params):
        text = output.outputs[0].text
        print(f"[{question[:12]}] {text[seen:]!r}")
        seen = len(text)


async def main() -> None:
    llm = await AsyncLLM.load("smollm2:135m", max_model_len=2048)
    try:
        await asyncio.gather(*(ask(llm, q) for q in ("Water boils at", "The moon is", "A prime number is")))
    finally:
        llm.shutdown()


asyncio.run(main())
