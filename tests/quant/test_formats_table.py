"""docs/formats.md names every format with the sizes that the code gives it, and every recipe."""

from __future__ import annotations

from pathlib import Path

from tuili import quant
from tuili.weights.recipes import RECIPES

TABLE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()


def rows() -> dict[str, list[str]]:
    lines = (line.strip("|").split("|") for line in TABLE.splitlines() if line.startswith("|"))
    cells = ([cell.strip() for cell in line] for line in lines)
    return {first: rest for first, *rest in cells if first in quant.BY_NAME}


def test_every_format_is_in_the_table() -> None:
    found = rows()
    assert found.keys() == quant.BY_NAME.keys()
    for name, (bits, packed, group, in_gguf, in_safetensors, *_) in found.items():
        f = quant.BY_NAME[name]
        assert float(bits) == f.group_bytes * 8 / f.group_size
        assert float(bits) <= float(packed) <= float(bits) + 0.125
        assert int(group) == f.group_size
        assert in_gguf == "yes"
        assert in_safetensors == ("yes" if f.safetensors_dtype else "-")


def test_every_recipe_is_in_the_table() -> None:
    named = {word.strip() for cells in rows().values() for word in cells[-1].split(",")} - {"-"}
    assert named == set(RECIPES)
    for name, cells in rows().items():
        for recipe in cells[-1].split(", "):
            assert recipe == "-" or RECIPES[recipe].body == name
