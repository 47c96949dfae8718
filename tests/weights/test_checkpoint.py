"""Whole models: folders of transformers, GGUF files of the gguf package, and what is wrong with others."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from support import gguf_bytes as g
from support import tiny_models
from tuili import quant
from tuili.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from tuili.models.families import for_hf
from tuili.weights.checkpoint import Checkpoint, open_checkpoint

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_models.build("llama", tie_word_embeddings=False, attention_bias=True, eos_token_id=2, bos_token_id=1)


@pytest.fixture
def folder(llama: PreTrainedModel, tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    llama.save_pretrained(path)
    return path


def rewrite(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(path: Path, kind: type[ModelFileError] = ModelFileError) -> str:
    with pytest.raises(kind) as caught:
        open_checkpoint(path)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def dequantized(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: tensor.dequantize() for name, tensor in checkpoint.weights.items()}


def assert_same_weights(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
        ("gemma3_text", {"head_dim": 16, "sliding_window": 8}),
    ],
)
def test_folders_of_transformers(model_type: str, config: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_models.build(model_type, **config)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.source == "huggingface"
    assert checkpoint.spec == tiny_models.spec_of(model)
    assert checkpoint.num_bytes == (tmp_path / "model.safetensors").stat().st_size
    expected = tiny_models.canonical(model, for_hf(model_type), checkpoint.spec)
    assert_same_weights(dequantized(checkpoint), {name: tensor.dequantize() for name, tensor in expected.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_packed(llama: PreTrainedModel, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: value.to(dtype) for name, value in llama.state_dict().items()}
    llama.config.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    weights = open_checkpoint(tmp_path).weights
    assert {tensor.format.name for tensor in weights.values()} == {"F16" if dtype == torch.float16 else "BF16"}
    np.testing.assert_array_equal(weights["norm.weight"].dequantize(), tensors["model.norm.weight"].float().numpy())


def test_sharded_folders(llama: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    llama.save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.num_bytes == sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    assert_same_weights(dequantized(checkpoint), dequantized(open_checkpoint(folder)))

    first = min(sharded.glob("*.safetensors"))
    first.unlink()
    words = f"model.safetensors.index.json: {first.name} is not in the folder, every shard must be"
    assert refusal(sharded) == words


def permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute: rotated pairs side by side."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    kind: str = "F32",
    *,
    tokens: Sequence[str] = (),
    ids: Mapping[str, int] | None = None,
    **extra: np.ndarray,
) -> None:
    """A llama as llama.cpp would convert it, by the gguf package."""
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template([{"name": "default", "template": "{{ x }}"}, {"name": "tool_use", "template": "{{ y }}"}])
    writer.add_license("apache-2.0")
    for role, token_id in (ids or {}).items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", token_id)
    if isinstance(tokens, str):
        writer.add_string("tokenizer.ggml.tokens", tokens)
    elif tokens:
        writer.add_token_list(tokens)
    writer.add_float32("general.sampling.temp", 0.6)
    writer.add_int32("general.sampling.top_k", 20)
    for name, value in model.state_dict().items():
        leaf, layer = name.rsplit(".", 1)[0], name.split(".")[2] if ".layers." in name else ""
        target = GGUF_NAMES[leaf.removeprefix(f"model.layers.{layer}.")]
        array = value.numpy()
        if target in ("attn_q", "attn_k"):
            array = permuted(array, c.num_attention_heads if target == "attn_q" else c.num_key_value_heads)
        target = f"blk.{layer}.{target}" if layer else target
        is_matrix = array.ndim == 2 and array.shape[1] % 32 == 0
        array = (
            array if not is_matrix or kind == "F32" else gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
        )
        raw_dtype = gguf.GGMLQuantizationType[kind] if is_matrix else None
        writer.add_tensor(f"{target}.{name.rsplit('.', 1)[1]}", array, raw_dtype=raw_dtype)
    for name, array in extra.items():
        writer.add_tensor(name.replace("__", "."), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_and_folder_are_the_same_model(llama: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    """Same spec, same weights, biases and their permutation included."""
    write_gguf(llama, tmp_path / "tiny.gguf")
    from_gguf, from_folder = open_checkpoint(tmp_path / "tiny.gguf"), open_checkpoint(folder)
    assert from_gguf.spec.layers[0].mixer == from_folder.spec.layers[0].mixer
    assert from_gguf.spec == from_folder.spec
    assert_same_weights(dequantized(from_gguf), dequantized(from_folder))
    assert (from_gguf.bos_token_ids, from_gguf.eos_token_ids) == (from_folder.bos_token_ids, from_folder.eos_token_ids)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_reordered_rows_stay_packed(llama: PreTrainedModel, folder: Path, tmp_path: Path, kind: str) -> None:
    """Undoing the permutation on packed bytes is as if it had never been: rows quantize one by one."""
    write_gguf(llama, tmp_path / "tiny.gguf", kind)
    found, plain = open_checkpoint(tmp_path / "tiny.gguf").weights, open_checkpoint(folder).weights
    for name in ("layers.1.q_proj.weight", "layers.2.k_proj.weight", "layers.0.up_proj.weight"):
        assert found[name].format is quant.BY_NAME[kind]
        expected = quant.BY_NAME[kind].quantize(plain[name].dequantize())
        np.testing.assert_array_equal(found[name].data, expected)


def test_what_a_gguf_says_beside_its_weights(llama: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "tiny.gguf")
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert checkpoint.source == "gguf"
    assert checkpoint.config["general.architecture"] == "llama"
    assert (checkpoint.bos_token_ids, checkpoint.eos_token_ids) == ((1,), (2,))
    assert checkpoint.generation_config == {"temperature": 0.6, "top_k": 20}
    assert (checkpoint.license, checkpoint.license_text) == ("apache-2.0", None)
    assert checkpoint.num_bytes == (tmp_path / "tiny.gguf").stat().st_size


def test_frequency_divisors_reach_the_spec(llama: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "tiny.gguf", rope_freqs__weight=np.array([1, 2, 4, 8], np.float32))
    mixer: Any = open_checkpoint(tmp_path / "tiny.gguf").spec.layers[0].mixer
    assert mixer.rope.scaling.frequency_divisors == (1.0, 2.0, 4.0, 8.0)


def test_frequency_divisors_are_a_short_vector(llama: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "tiny.gguf", rope_freqs__weight=np.ones((1 << 16) + 1, np.float32))
    words = "tiny.gguf: tensor rope_freqs.weight has shape [65537], a vector of at most 65536 is allowed"
    assert refusal(tmp_path / "tiny.gguf") == words


def test_tokens_are_an_array(llama: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "tiny.gguf", tokens="many")
    words = "tiny.gguf: tokenizer.ggml.tokens is 'many', an array of strings is expected"
    assert refusal(tmp_path / "tiny.gguf") == words


def test_every_role_that_ends_text(llama: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "tiny.gguf", ids={"eot": 7, "eom": 2})
    assert open_checkpoint(tmp_path / "tiny.gguf").eos_token_ids == (2, 7)
    write_gguf(llama, tmp_path / "tiny.gguf", ids={"eot": 97})
    words = "tiny.gguf: tokenizer.ggml.eot_token_id is 97, ids in [0, 97) are allowed"
    assert refusal(tmp_path / "tiny.gguf") == words


def test_a_folder_with_one_gguf_is_that_file(llama: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "a.gguf")
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path).path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"")
    assert refusal(tmp_path).endswith("holds a.gguf, b.gguf: give the path of the one you mean")


def test_what_lies_beside_the_weights(folder: Path) -> None:
    rewrite(folder / "generation_config.json", eos_token_id=[2, 5, 2], temperature=0.6, do_sample=True)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\nlicense: apache-2.0\n---\nlicense: other\n")
    (folder / "LICENSE").write_bytes(b"\xa9 somebody")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.bos_token_ids, checkpoint.eos_token_ids) == ((1,), (2, 5))
    assert checkpoint.generation_config["temperature"] == 0.6
    assert checkpoint.config["model_type"] == "llama"
    assert (checkpoint.license, checkpoint.license_text) == ("apache-2.0", "\ufffd somebody")

    (folder / "generation_config.json").unlink()
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.eos_token_ids, checkpoint.generation_config) == ((2,), {})


@pytest.mark.parametrize("value", [97, -1, "2", [2, 97], [None], True, 2.0])
def test_odd_end_of_text_ids(folder: Path, value: object) -> None:
    rewrite(folder / "generation_config.json", eos_token_id=value)
    assert refusal(folder) == f"generation_config.json: eos_token_id is {value!r}, ids in [0, 97) are allowed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), "tiny: norm.weight is missing, llama needs all its weights"),
        (
            lambda t: [t.pop(f"model.layers.1.{name}.weight") for name in ("mlp.up_proj", "input_layernorm")],
            "tiny: layers.1.attn_norm.weight, layers.1.up_proj.weight are missing, llama needs all its weights",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if ".layers.2." in name],
            "layers.2.gate_proj.weight, layers.2.k_proj.bias and 9 more are missing",
        ),
        (lambda t: t.update({"extra.weight": torch.ones(2)}), "tiny: extra.weight is unknown to this model family"),
        (
            lambda t: t.update({"model.layers.3.mlp.up_proj.weight": torch.ones(2)}),
            "model.layers.3.mlp.up_proj.weight is no weight of this llama, others are not allowed",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.bias": torch.ones(48)}),
            "model.layers.0.mlp.up_proj.bias is no weight of this llama, others are not allowed",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(31)}),
            "tensor model.norm.weight has shape [31], the configuration asks for [32]",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(32, 97)}),
            "tensor lm_head.weight has shape [32, 97], the configuration asks for [97, 32]",
        ),
    ],
)
def test_weights_must_be_exactly_those_of_the_spec(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    change_tensors(folder, change)
    assert words in refusal(folder)


def test_derived_tensors_are_left_unread(folder: Path) -> None:
    unread = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4, dtype=torch.int64)}
    change_tensors(folder, lambda tensors: tensors.update(unread))
    assert len(open_checkpoint(folder).weights) == 2 + 3 * 13 + 1


def test_dtypes_we_do_not_read_are_refused_where_they_matter(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.float64)}))
    words = "model.safetensors: tensor model.norm.weight has dtype F64, implemented are BF16, F16, F32"
    assert refusal(folder, UnsupportedModelError) == words


def test_a_tied_head_may_only_be_a_copy(folder: Path) -> None:
    rewrite(folder / "config.json", tie_word_embeddings=True)
    assert refusal(folder) == (
        "tiny: lm_head.weight differs from the embedding, tie_word_embeddings allows only an equal copy"
    )
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    checkpoint = open_checkpoint(folder)
    assert "lm_head.weight" not in checkpoint.weights
    change_tensors(folder, lambda t: t.pop("lm_head.weight"))
    assert_same_weights(dequantized(open_checkpoint(folder)), dequantized(checkpoint))


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model_type": None}, ModelFileError, "config.json: model_type is missing, a string is expected"),
        ({"model_type": ["llama"]}, ModelFileError, "config.json: model_type is ['llama'], a string is expected"),
        ({"model_type": "no_such"}, UnsupportedModelError, "model_type 'no_such' is not implemented; allowed: "),
        ({"num_attention_heads": 0}, ModelFileError, "num_attention_heads is 0"),
        ({"num_hidden_layers": 0}, ModelFileError, "num_hidden_layers is 0"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError, "quantization_config is 'gptq'"),
    ],
)
def test_odd_configurations(folder: Path, changes: dict[str, Any], kind: type[ModelFileError], words: str) -> None:
    rewrite(folder / "config.json", **changes)
    assert words in refusal(folder, kind)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1, "a": 2}', b"\xff", b"{" * 10, b'{"a":' * 100_000])
def test_odd_json(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert refusal(folder).startswith("config.json: ")


def test_links_may_not_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    words = "model.safetensors: links to a file outside the model's folder, which is not allowed"
    assert refusal(folder) == words


def test_links_of_a_hugging_face_cache(folder: Path, tmp_path: Path) -> None:
    """snapshots/<commit>/<name> links to blobs/<digest> beside it."""
    repository = tmp_path / "models--org--tiny"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs", str(number)))
    assert len(open_checkpoint(snapshot).weights) == 2 + 3 * 13 + 1
    (tmp_path / "README.md").write_text("")
    (snapshot / "README.md").unlink(missing_ok=True)
    (snapshot / "README.md").symlink_to("../../../README.md")
    assert "links to a file outside the model's folder" in refusal(snapshot)


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "model.gguf", "model.npy"]
)
def test_executable_formats_are_refused(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    content = pickle.dumps(Canary(canary))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_bytes(content)
    (folder / "config.json").write_text("{}")
    words = "refused: executable format; convert to safetensors"
    assert refusal(folder / name) == f"{name}: {words}"
    assert refusal(folder).endswith(words)
    (folder / "model.safetensors").write_bytes(content)
    rewrite(folder / "config.json", **tiny_models.SIZES, model_type="llama")
    assert refusal(folder) == f"model.safetensors: {words}"
    assert not canary.exists()


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^missing: no such file or folder$"):
        open_checkpoint(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "empty: holds nothing, a model is a .gguf file or config.json with" in refusal(tmp_path / "empty")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    assert "weights alone, give the folder" in refusal(tmp_path / "x.safetensors")
    (tmp_path / "text.txt").write_text("hello world")
    assert refusal(tmp_path / "text.txt") == "text.txt: starts with b'hell', a GGUF file starts with b'GGUF'"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "general.architecture is missing, a string is expected"),
        ([g.pair("general.architecture", g.UINT8, b"\1")], "general.architecture is 1, a string is expected"),
        (
            [g.pair("general.architecture", g.STRING, g.text("rwkv7"))],
            "general.architecture 'rwkv7' is not implemented",
        ),
        ([g.pair("general.architecture", g.STRING, g.text("llama"))], "llama.embedding_length is missing"),
    ],
)
def test_gguf_files_that_are_no_model_of_ours(tmp_path: Path, pairs: list[bytes], words: str) -> None:
    (tmp_path / "tiny.gguf").write_bytes(g.Gguf(pairs=pairs).encode())
    assert words in refusal(tmp_path / "tiny.gguf")


def test_smollm2(smollm2_gguf: Path) -> None:
    checkpoint = open_checkpoint(smollm2_gguf)
    spec = checkpoint.spec
    assert (spec.family, spec.num_layers, spec.hidden_size, spec.vocab_size) == ("llama", 30, 576, 49152)
    assert spec.tie_word_embeddings
    assert len(checkpoint.weights) == 272
    assert (checkpoint.bos_token_ids, checkpoint.eos_token_ids) == ((1,), (2,))
    assert checkpoint.license == "apache-2.0"
    assert checkpoint.weights["layers.7.q_proj.weight"].format.name == "Q4_1"
    assert checkpoint.weights["embed_tokens.weight"].format.name == "Q8_0"


def test_gemma3(gemma3_gguf: Path) -> None:
    checkpoint = open_checkpoint(gemma3_gguf)
    spec = checkpoint.spec
    assert (spec.family, spec.num_layers, spec.hidden_size, spec.vocab_size) == ("gemma3", 18, 640, 262144)
    assert len(checkpoint.weights) == 236
    assert (checkpoint.bos_token_ids, checkpoint.eos_token_ids) == ((2,), (1,))
    assert checkpoint.license == "gemma"
    assert {t.format.name for t in checkpoint.weights.values()} == {"F32", "Q5_0", "Q8_0", "Q4_K", "Q6_K"}


ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.sampled_from([2**31, 2**63, 10**30, 1e300, -0.5, "", "silu"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(["type", "factor"]), children),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_configuration_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    original = (folder / "config.json").read_text()
    raw = json.loads(original)
    for key in data.draw(st.lists(st.sampled_from(sorted(raw)), min_size=1, max_size=3)):
        raw[key] = data.draw(ODD_VALUES)
    (folder / "config.json").write_text(json.dumps(raw))
    with contextlib.suppress(ModelFileError):
        open_checkpoint(folder)
    (folder / "config.json").write_text(original)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_metadata_is_read_or_refused(tiny_gguf: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Values and types changed within a header that still parses more often than not."""
    content = bytearray(tiny_gguf)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(24, 2500))] = data.draw(st.sampled_from([0, 1, 2, 4, 6, 7, 9, 127, 128, 255]))
    (tmp_path / "mutated.gguf").write_bytes(content)
    with contextlib.suppress(ModelFileError):
        open_checkpoint(tmp_path / "mutated.gguf")


@pytest.fixture(scope="module")
def tiny_gguf(llama: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(llama, path, tokens=["a", "b", "c"], ids={"eot": 2})
    return path.read_bytes()
