"""GGUF models in several files: written by the gguf package, and by hand where one part must be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from support import gguf_bytes as g
from support.gguf_bytes import Entry, Gguf
from tuili.errors import ModelFileError
from tuili.text.pretrained import PretrainedTokenizer
from tuili.weights.checkpoint import open_checkpoint
from tuili.weights.gguf import GgufFile
from tuili.weights.gguf_parts import first_part, part_group, read_gguf


def part(number: int, count: int, tensor: str, total: int | None = None) -> bytes:
    pairs = [g.pair("split.no", g.UINT16, g.number(g.UINT16, number))]
    pairs.append(g.pair("split.count", g.UINT16, g.number(g.UINT16, count)))
    if total is not None:
        pairs.append(g.pair("split.tensors.count", g.INT32, g.number(g.INT32, total)))
    return Gguf(pairs=pairs, entries=[Entry(name=tensor)]).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate("abc"):
        (tmp_path / f"m-0000{index + 1}-of-00003.gguf").write_bytes(part(index, 3, f"{name}.weight", total=3))
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    return str(caught.value)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_part_stands_for_all(folder: Path, number: int) -> None:
    model = read_gguf(folder / f"m-0000{number}-of-00003.gguf")
    assert model.path == folder / "m-00001-of-00003.gguf"
    assert list(model.tensors) == ["a.weight", "b.weight", "c.weight"]
    assert model.metadata["split.no"] == 0
    assert model.num_bytes == sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize(("number", "given"), [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)])
def test_a_missing_part_is_named(folder: Path, number: int, given: int) -> None:
    (folder / f"m-0000{number}-of-00003.gguf").unlink()
    words = f"m-0000{number}-of-00003.gguf: missing, the model needs all its 3 parts"
    assert refusal(folder / f"m-0000{given}-of-00003.gguf") == words


def test_parts_that_are_not_of_one_model(folder: Path) -> None:
    second = folder / "m-00002-of-00003.gguf"
    second.write_bytes(part(2, 3, "b.weight"))
    assert refusal(second) == "m-00002-of-00003.gguf: split.no is 2, 1 belongs there"
    second.write_bytes(part(1, 4, "b.weight"))
    assert refusal(second) == "m-00002-of-00003.gguf: split.count is 4, 3 belongs there"
    second.write_bytes(Gguf(entries=[Entry(name="b.weight")]).encode())
    assert refusal(second) == "m-00002-of-00003.gguf: split.no is None, 1 belongs there"
    second.write_bytes(part(1, 3, "a.weight"))
    assert refusal(second) == "m-00002-of-00003.gguf: tensor a.weight is in an earlier part, one is allowed"
    second.write_bytes(part(1, 3, "b.weight"))
    first = folder / "m-00001-of-00003.gguf"
    first.write_bytes(part(0, 3, "a.weight", total=4))
    assert refusal(first) == "m-00001-of-00003.gguf: split.tensors.count is 4, the parts hold 3 tensors"


@pytest.mark.parametrize("name", ["model.gguf", "m-00001-of-00002.gguf", "m-1-of-3.gguf"])
def test_parts_under_another_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(part(0, 3, "a.weight"))
    words = "one of 3 parts (split.count), its name must end in -00001-of-0000N.gguf"
    assert refusal(tmp_path / name) == f"{name}: {words}"


def test_a_whole_model_may_be_named_like_a_part(tmp_path: Path) -> None:
    path = tmp_path / "m-00002-of-00003.gguf"
    path.write_bytes(Gguf(entries=[Entry()]).encode())
    assert list(read_gguf(path).tensors) == ["a.weight"]


def test_parts_may_not_lead_out_of_their_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.gguf"
    second = folder / "m-00002-of-00003.gguf"
    shutil.move(second, elsewhere)
    second.symlink_to(elsewhere)
    assert "links to a file outside the model's folder" in refusal(folder / "m-00001-of-00003.gguf")


def test_names() -> None:
    assert part_group("q-00002-of-00003.gguf") == part_group("q-00001-of-00003.gguf")
    assert len({part_group(name) for name in ("q.gguf", "q-00001-of-00003.gguf", "q-00001-of-00002.gguf")}) == 3
    assert first_part(Path("q.gguf")) == Path("q.gguf")


@pytest.mark.no_cover
def test_a_split_model_is_the_whole_one(smollm2_gguf: Path, tmp_path: Path) -> None:
    """SmolLM2, split by the gguf package: same weights, same tokens, from a part's path or from the folder."""
    whole = GgufFile(smollm2_gguf)
    writer = gguf.GGUFWriter(tmp_path / "s.gguf", "llama", split_max_tensors=100)
    reader = gguf.GGUFReader(smollm2_gguf)
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"s-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for path in (tmp_path, tmp_path / "s-00002-of-00003.gguf"):
        model = open_checkpoint(path)
        assert len(model.weights) == len(whole.tensors)
        assert model.num_bytes > smollm2_gguf.stat().st_size
    name = "layers.29.down_proj.weight"
    np.testing.assert_array_equal(model.weights[name].data, whole.tensors["blk.29.ffn_down.weight"].data)
    text = "Parts of a whole"
    tokenizers = [
        PretrainedTokenizer.from_pretrained(path) for path in (smollm2_gguf, tmp_path / "s-00003-of-00003.gguf")
    ]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]
