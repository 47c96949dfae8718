"""SmolLM2 and Gemma 3 in the reference and in torch against transformers, in float32 on the same dequantized weights.

transformers' side shares nothing with ours but the file's raw bytes: gguf dequantizes, and names, the order of rotary
rows and Gemma's gains are turned into transformers' form here.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from support.batches import Driver, Work
from tuili.backend import BackendOptions
from tuili.backends import load_backend
from tuili.weights.checkpoint import open_checkpoint
from tuili.weights.gguf import GgufFile

CONTINUATIONS = Path(__file__).with_name("greedy_continuations.json")  # transformers' greedy text of every prompt
NUM_TOKENS = 32
NUM_COMPARED = 4  # texts whose logits are compared value by value
NEAR_TIE = 1e-3
PROMPTS = (
    "The capital of France is a city that",
    "Once upon a time there was a little",
    "The first thing you should know about the",
    "In the middle of the night he heard",
    "Water is made of two parts and one",
    "My favorite book is the story of a",
    "The number of people who live in the",
    "She opened the door and saw the old",
    "We can use this method when the data",
    "Light travels very fast but sound is not",
    "All animals are equal but some animals have",
    "If you want to learn more about history",
    "The children played in the park until the",
    "He said that the price of food was",
    "A computer is a machine that can do",
    "There are many ways to make good bread",
    "The war ended in the year when the",
    "They walked along the river and then they",
    "When the sun goes down the sky is",
    "The best way to help your child learn",
)
GGUF_TO_HF = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
LLAMA_NORMS = {"ffn_norm": "post_attention_layernorm"}
GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def word_ids(file: GgufFile, space: str, bos: list[int]) -> list[list[int]]:
    """Every word of the prompts is one token of either vocabulary."""
    ids = {text: i for i, text in enumerate(file.metadata["tokenizer.ggml.tokens"])}  # type: ignore[arg-type]
    return [bos + [ids[word if i == 0 else space + word] for i, word in enumerate(p.split())] for p in PROMPTS]


def state_dict(
    file: GgufFile, names: dict[str, str], adapt: Callable[[str, np.ndarray], np.ndarray]
) -> dict[str, torch.Tensor]:
    states = {}
    for name, tensor in file.tensors.items():
        kind = gguf.GGMLQuantizationType(tensor.format.gguf_id)
        value = gguf.dequantize(tensor.data, kind).reshape(tensor.shape)
        hf = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}.get(name)
        if hf is None:
            _, layer, leaf, suffix = name.split(".")
            hf = f"model.layers.{layer}.{names[leaf]}.{suffix}"
        states[hf] = torch.from_numpy(np.array(adapt(name, value), np.float32))
    return states


def smollm2(file: GgufFile) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )

    def adapt(name: str, value: np.ndarray) -> np.ndarray:
        """llama.cpp stores rows 2j, 2j + 1 of a head where transformers has j, j + 32."""
        if "attn_q." in name or "attn_k." in name:
            heads = value.reshape(-1, 64, value.shape[-1])
            return np.concatenate((heads[:, 0::2], heads[:, 1::2]), axis=1).reshape(value.shape)
        return value

    return loaded(LlamaForCausalLM, config, state_dict(file, GGUF_TO_HF | LLAMA_NORMS, adapt))


def gemma3(file: GgufFile) -> PreTrainedModel:
    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        max_position_embeddings=32768,
    )
    states = state_dict(file, GGUF_TO_HF | GEMMA_NORMS, lambda name, w: w - 1 if name.endswith("norm.weight") else w)
    return loaded(Gemma3ForCausalLM, config, states)


def loaded(kind: type[PreTrainedModel], config: PreTrainedConfig, states: dict[str, torch.Tensor]) -> PreTrainedModel:
    with no_init_weights():
        model = kind(config)
    missing, unexpected = model.load_state_dict(states, strict=False, assign=True)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()


@dataclass(frozen=True)
class Oracle:
    """What transformers says at each of the last NUM_TOKENS positions of every text."""

    token_ids: np.ndarray  # [texts, NUM_TOKENS] the best
    leads: np.ndarray  # [texts, NUM_TOKENS] best logit minus second best
    logits: np.ndarray  # [NUM_COMPARED, NUM_TOKENS, vocab]


def ask(model: PreTrainedModel, texts: list[list[int]]) -> Oracle:
    ids, leads, kept = [], [], []
    with torch.no_grad():
        for start in range(0, len(texts), NUM_COMPARED):
            batch = torch.tensor(texts[start : start + NUM_COMPARED])
            logits = model(batch, logits_to_keep=NUM_TOKENS, use_cache=False).logits
            best = logits.topk(2)
            ids.append(best.indices[..., 0].numpy())
            leads.append((best.values[..., 0] - best.values[..., 1]).numpy())
            kept = kept or [logits.numpy().copy()]
    return Oracle(np.concatenate(ids), np.concatenate(leads), kept[0])


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    gc.collect()


def check(path: Path, name: str, build: Callable[[GgufFile], PreTrainedModel], space: str, bos: list[int]) -> None:
    """Both models read transformers' own greedy text; equal choices everywhere mean equal greedy texts."""
    file = GgufFile(path)
    continuations = json.loads(CONTINUATIONS.read_text())[name]
    texts = [prompt + ids[:-1] for prompt, ids in zip(word_ids(file, space, bos), continuations, strict=True)]
    expected = ask(build(file), texts)
    gc.collect()
    is_clear = expected.leads >= NEAR_TIE
    assert (~is_clear).sum() <= 2, "so many near-ties would prove little"
    assert (expected.token_ids == continuations)[is_clear].all(), f"{CONTINUATIONS.name} is not transformers' text"

    for backend_name in ("reference", "torch"):
        compare(path, backend_name, texts, expected)


def compare(path: Path, backend_name: str, texts: list[list[int]], expected: Oracle) -> None:
    """Logits of some texts, and the choice at every clear position of all."""
    is_clear = expected.leads >= NEAR_TIE
    checkpoint = open_checkpoint(path)
    options = BackendOptions(max_model_len=64, device="cpu")
    driver = Driver(load_backend(backend_name, checkpoint.spec, checkpoint.weights, options), num_blocks=80)
    compared = driver.step([Work(driver.text(), text, NUM_TOKENS) for text in texts[:NUM_COMPARED]])
    rest = driver.step([Work(driver.text(), text, NUM_TOKENS) for text in texts[NUM_COMPARED:]], want_logits=False)
    assert compared.logits is not None
    logits = compared.logits.reshape(expected.logits.shape)
    assert np.abs(logits - expected.logits).max() <= 5e-4, backend_name  # a NaN is above it
    chosen = np.concatenate((compared.token_ids, rest.token_ids)).reshape(expected.token_ids.shape)
    wrong = np.argwhere((chosen != expected.token_ids) & is_clear)
    assert not wrong.size, f"{backend_name}: prompts and positions that differ: {wrong.tolist()}"


@pytest.mark.timeout(600)  # transformers and two backends, on one thread
@pytest.mark.usefixtures("one_thread")
def test_smollm2_writes_what_transformers_writes(smollm2_gguf: Path) -> None:
    check(smollm2_gguf, "smollm2", smollm2, "Ġ", [])


@pytest.mark.timeout(600)  # transformers and two backends, on one thread
@pytest.mark.usefixtures("one_thread")
def test_gemma3_writes_what_transformers_writes(gemma3_gguf: Path) -> None:
    check(gemma3_gguf, "gemma3", gemma3, "▁", [2])
