"""The same prompt at temperature 0 (greedy), 0.7 and 1.2, in one batch.

python examples/temperatures.py
"""

from tuili import LLM, SamplingParams

llm = LLM(model="smollm2:135m", max_model_len=2048)
temperatures = (0.0, 0.7, 1.2)
params = [SamplingParams(temperature=t, max_tokens=24, seed=3) for t in temperatures]

outputs = llm.generate(["My favourite season is"] * len(params), params, use_tqdm=False)
for temperature, output in zip(temperatures, outputs, strict=True):
    print(f"temperature {temperature}: {output.outputs[0].text!r}")
llm.close()
