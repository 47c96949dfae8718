"""A llama-cpp-python script with its import changed: completion, chat, streaming, tokens.

python examples/llama_cpp_style.py
"""

from tuili.compat.llama_cpp import Llama

llm = Llama(model_path="smollm2:135m", n_ctx=2048, n_threads=2, verbose=False)

output = llm("Q: Name the planets in the solar system. A: ", max_tokens=32, stop=["Q:", "\n"], echo=True)
print(output["choices"][0]["text"])
print(output["usage"])

messages = [{"role": "user", "content": "Name three colours."}]
answer = llm.create_chat_completion(messages=messages, max_tokens=24, temperature=0)
print(answer["choices"][0]["message"]["content"])

for chunk in llm.create_chat_completion(messages=messages, max_tokens=24, temperature=0, stream=True):
    print(chunk["choices"][0]["delta"].get("content", ""), end="", flush=True)
print()

tokens = llm.tokenize(b"Hello, world!")
print(tokens, llm.detokenize(tokens), llm.n_ctx(), llm.n_vocab())
llm.close()
