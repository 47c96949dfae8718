"""Gives token ids, gets token ids, and detokenizes them itself.

python examples/detokenize.py
"""

from tuili import LLM, SamplingParams, TokensPrompt

llm = LLM(model="smollm2:135m", max_model_len=2048)
tokenizer = llm.get_tokenizer()

prompt = TokensPrompt(prompt_token_ids=tokenizer.encode("Water boils at"))
params = SamplingParams(temperature=0, max_tokens=12, detokenize=False)
completion = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]

print("ids: ", completion.token_ids)
print("text:", repr(tokenizer.decode(completion.token_ids, skip_special_tokens=True)))
for token_id in completion.token_ids:
    print(f"{token_id:>8} {tokenizer.decode([token_id])!r}")
llm.close()
