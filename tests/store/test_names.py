"""Names: what is one, what is refused, and that none leads out of the store."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuili.errors import InvalidRequestError
from tuili.store.names import MAX_NAME_LEN, ModelName, name_path, parse_model_name


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("smollm2", ModelName(None, "smollm2", None)),
        ("smollm2:135m", ModelName(None, "smollm2", "135m")),
        ("org/name", ModelName("org", "name", None)),
        ("Qwen/Qwen3-0.6B-GGUF:Q4_K_M", ModelName("Qwen", "Qwen3-0.6B-GGUF", "Q4_K_M")),
        ("a" * MAX_NAME_LEN, ModelName(None, "a" * MAX_NAME_LEN, None)),
    ],
)
def test_names_are_parsed_and_written_back(text: str, parsed: ModelName) -> None:
    assert parse_model_name(text) == parsed
    assert str(parsed) == text


@pytest.mark.parametrize("host", ["hf.co", "huggingface.co"])
def test_a_repository_may_be_named_with_its_host(host: str) -> None:
    assert parse_model_name(f"{host}/Qwen/Qwen3-0.6B-GGUF:Q4_K_M") == ModelName("Qwen", "Qwen3-0.6B-GGUF", "Q4_K_M")
    assert parse_model_name(f"{host}/name") == ModelName(host, "name", None)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "a/../b",
            "a..b",
            "/etc/passwd",
            "a/b/c",
            "hf.co/a/b/c",
            "hf.co//b",
            "a\\b",
            "-rf",
            "org/-x",
            "a:b:c",
            "a:",
            ":a",
        ),
        *("a/", "/a", "a b", "a\n", "a\0", "a\x1b[2J", "ä", "a\u202eb", "ａ", "a%2e%2e", "~a", "_a", ".a", "a."),
        *("C:\\x", "a:..", "sha256:../.."),
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"must be model, model:tag, org/model or org/model:tag") as info:
        parse_model_name(text)
    assert info.value.param == "model"
    assert str(info.value).isascii()
    assert str(info.value).isprintable()


def test_a_name_too_long_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_NAME_LEN} characters, got 4096"):
        parse_model_name("a" * 4096)


@given(st.text(st.sampled_from("ab.:/\\-_ ~\0é%"), max_size=24) | st.text(max_size=40))
@example("a/b:c")
def test_every_name_stays_below_its_folder(text: str) -> None:
    try:
        name = parse_model_name(text)
    except InvalidRequestError:
        return
    path = name_path(name)
    assert str(name) == text
    assert len(path.parts) == 3
    assert not path.is_absolute()
    assert all(part not in ("", ".", "..") and "/" not in part for part in path.parts)


def test_different_names_have_different_paths() -> None:
    texts = ["a", "b", "a:b", "b:a", "a/b", "b/a", "a/b:c", "a/c:b", "b:c", "a/b:a"]
    assert len({name_path(parse_model_name(text)) for text in texts}) == len(texts)
    assert name_path(parse_model_name("a")) == PurePosixPath("_/a/_")
