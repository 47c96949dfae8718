"""One prompt, one answer.

python examples/simple.py
"""

from tuili import LLM, SamplingParams

llm = LLM(model="smollm2:135m", max_model_len=2048)
sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=32)

for output in llm.generate("The capital of France is", sampling_params):
    print(f"Prompt:    {output.prompt!r}")
    print(f"Generated: {output.outputs[0].text!r}")
    print(f"Ended by:  {output.outputs[0].finish_reason}")
llm.close()
