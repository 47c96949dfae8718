"""Loads a model with the arguments of a vLLM script, and says what came of it.

python examples/loading.py
"""

import time

from tuili import LLM

start = time.perf_counter()
llm = LLM(
    model="smollm2:135m",
    dtype="auto",
    tensor_parallel_size=1,
    gpu_memory_utilization=0.9,
    max_model_len=2048,
    enforce_eager=True,
)
print(f"loaded in {time.perf_counter() - start:.2f} s")
print("vocabulary:", len(llm.get_tokenizer()))
print("defaults:", llm.get_default_sampling_params())
llm.close()
