"""Turns text into token ids and back with a model's own tokenizer; no weights are loaded.

python examples/tokenization.py
"""

from tuili import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("smollm2:135m")
text = "Paged attention keeps keys and values in blocks."

ids = tokenizer(text).input_ids
print("ids:   ", ids)
print("pieces:", tokenizer.convert_ids_to_tokens(ids))
print("text:  ", tokenizer.decode(ids))

messages = [{"role": "user", "content": "Hello!"}]
print("chat:  ", repr(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)))
