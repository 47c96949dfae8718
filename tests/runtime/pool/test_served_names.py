"""What a name in a request means: served names, stored models, and never a file it happens to name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuili.errors import InvalidRequestError, ModelNotFoundError
from tuili.runtime.pool.served_names import ServedNames
from tuili.runtime.pool.settings import NamedModel
from tuili.store.records import ModelFiles
from tuili.store.store import Store


class _Store(Store):
    """Holds tiny:1b, which may be called tiny, and other; a source offers anything with an organization."""

    def list(self) -> tuple[ModelFiles, ...]:
        return tuple(
            ModelFiles(name=name, path=Path(name), source="test", num_bytes=1, created=0)
            for name in ("other", "tiny:1b")
        )

    def sole(self) -> ModelFiles | None:
        return None

    def has(self, name: str) -> bool:
        return name in ("tiny", "tiny:1b", "other")

    def full_name(self, name: str) -> str:
        return "tiny:1b" if name == "tiny" else super().full_name(name)


def names(
    *named: NamedModel, only_named: bool = False, allow_pull: bool = False, root: Path = Path("none")
) -> ServedNames:
    return ServedNames(named, _Store(root, sources={}), only_named=only_named, allow_pull=allow_pull)


def test_stored_models_by_any_of_their_names() -> None:
    found = names()
    assert found.find("tiny") == found.find("tiny:1b")
    assert [model.name for model in found.all()] == ["other", "tiny:1b"]
    assert found.default is None


def test_served_names_come_first_and_the_models_own_stays() -> None:
    found = names(NamedModel("tiny", ("gpt-4", "main")))
    model = found.find("gpt-4")
    assert (model.name, model.aliases, model.is_named, model.source) == ("gpt-4", ("main", "tiny:1b"), True, "tiny:1b")
    assert all(found.find(name) is model for name in ("main", "tiny", "tiny:1b"))
    assert [known.name for known in found.all()] == ["gpt-4", "other"]
    assert found.default == "gpt-4"


def test_a_path_is_shown_by_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "small.gguf").touch()
    monkeypatch.chdir(tmp_path / "folder")
    path = str(tmp_path / "folder" / "small.gguf")
    found = names(NamedModel(path), NamedModel("."))
    assert [(model.name, model.aliases) for model in found.named] == [("small", ()), ("folder", ())]
    assert found.find(path) is found.find("small")
    with pytest.raises(ModelNotFoundError) as caught:
        found.find("nothing")
    assert str(tmp_path) not in str(caught.value)


def test_a_path_in_a_request_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "there.gguf").touch()
    found = names()
    told = []
    for path in (tmp_path / "there.gguf", tmp_path / "not.gguf"):
        with pytest.raises(ModelNotFoundError) as caught:
            found.find(str(path))
        told.append(str(caught.value).partition(":")[2])
    assert told[0] == told[1]  # nor does the answer tell which exists


def test_only_the_models_named() -> None:
    found = names(NamedModel("tiny"), only_named=True)
    assert [model.name for model in found.all()] == ["tiny:1b"]
    for name in ("other", "org/model"):
        with pytest.raises(ModelNotFoundError, match="there are tiny:1b"):
            found.find(name)


def test_only_a_model_named_is_found_by_all_its_names() -> None:
    found = names(NamedModel("org/model"), NamedModel("tiny", ("main",)), only_named=True)
    assert found.find("hf.co/org/model") is found.find("org/model")
    assert found.find("tiny") is found.find("main")


def test_models_that_a_source_offers_only_where_pulling_is_allowed() -> None:
    with pytest.raises(ModelNotFoundError):
        names().find("org/model:q8_0")
    for name in ("org/model:q8_0", "hf.co/org/model:q8_0"):
        assert names(allow_pull=True).find(name).source == "org/model:q8_0"
    with pytest.raises(ModelNotFoundError):
        names(allow_pull=True).find("no/such/name")


def test_a_known_model_that_is_not_stored_is_told_how_to_get() -> None:
    with pytest.raises(ModelNotFoundError, match=r"fetch it with `tuili pull gemma3:270m`"):
        names().find("gemma3:270m")


def test_near_names_are_told() -> None:
    for name, near in (("tinny", "tiny:1b"), ("othr", "other"), ("gpt4", "gpt-4")):
        with pytest.raises(ModelNotFoundError, match=f"did you mean '{near}'"):
            names(NamedModel("other", ("gpt-4",))).find(name)


def test_a_name_for_two_models_is_refused() -> None:
    for pair in (
        (NamedModel("tiny", ("a",)), NamedModel("other", ("a",))),
        (NamedModel("tiny"), NamedModel("tiny:1b")),
    ):
        with pytest.raises(InvalidRequestError, match="is given to two models"):
            names(*pair)
