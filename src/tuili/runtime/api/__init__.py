"""The Python API: `LLM`, `AsyncLLM` and `LLMEngine`, what they are given and what they return."""
