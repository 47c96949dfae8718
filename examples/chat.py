"""Answers conversations, two at a time, through the model's chat template.

python examples/chat.py
"""

from tuili import LLM, SamplingParams

llm = LLM(model="smollm2:135m", max_model_len=2048)
params = SamplingParams(temperature=0, max_tokens=32)
conversations = [
    [{"role": "user", "content": "Name three colours."}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "What is 2 + 2?"}],
]

for output in llm.chat(conversations, params, use_tqdm=False):
    print("Prompt:   ", repr(output.prompt))
    print("Generated:", repr(output.outputs[0].text))
llm.close()
