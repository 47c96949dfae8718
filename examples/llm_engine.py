"""Adds requests while others run, and drives the engine step by step.

python examples/llm_engine.py
"""

import argparse

from tuili import EngineArgs, LLMEngine, SamplingParams

parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
args = parser.parse_args(["--model", "smollm2:135m", "--max-model-len", "2048"])
engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))

requests = [
    ("A robot may not injure a human being", SamplingParams(temperature=0, max_tokens=16, logprobs=1)),
    ("To be or not to be,", SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2, max_tokens=16)),
    ("What is the meaning of life?", SamplingParams(n=2, temperature=0.8, top_p=0.95, max_tokens=16)),
]
request_id = 0
while requests or engine.has_unfinished_requests():
    if requests:
        prompt, params = requests.pop(0)
        engine.add_request(str(request_id), prompt, params)
        request_id += 1
    for output in engine.step():
        if output.finished:
            print(output.request_id, [completion.text for completion in output.outputs])
engine.shutdown()
