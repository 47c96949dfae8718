"""Completes a few prompts in one batch and tells how each answer ended.

python examples/offline_batch.py
"""

from tuili import LLM, SamplingParams

prompts = ["The capital of France is", "To make a cup of tea,", "The three laws of motion are"]
params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=48, seed=7)

with LLM("smollm2:135m", max_model_len=2048) as llm:
    for output in llm.generate(prompts, params):
        answer = output.outputs[0]
        print(f"{output.prompt!r} -> {answer.text!r} ({len(answer.token_ids)} tokens, {answer.finish_reason})")
