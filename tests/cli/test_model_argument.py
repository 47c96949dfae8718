"""The rule that tells a model from a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuili.cli.model_argument import ModelAndPrompt, complete_model, is_model, split_arguments
from tuili.errors import InvalidRequestError
from tuili.store.catalogue import DEFAULT_MODEL
from tuili.store.store import Store


@pytest.fixture
def store(home: Path) -> Store:
    Path("here").mkdir()
    Path("my model.gguf").touch()
    return Store(home)


@pytest.mark.parametrize(
    "argument",
    [
        "smollm2",
        "smollm2:135m",
        "gemma3",
        "org/name",
        "org/name:Q4_K_M",
        "name:tag",
        "here",
        "./here",
        "my model.gguf",
        "a.gguf",
        "./missing",
        "../missing",
        "~/missing",
    ],
)
def test_models(store: Store, argument: str) -> None:
    assert is_model(argument, store)


@pytest.mark.parametrize(
    "argument",
    [
        "hello",
        "Why is the sky blue?",
        "and / or",
        "Note: this",
        "",
        "a/b/c",
        "http://x.y/z",
        "say my.gguf",
        "llama3",
        "12:30 now",
        "./say it",
        "...",
    ],
)
def test_prompts(store: Store, argument: str) -> None:
    assert not is_model(argument, store)


@pytest.mark.parametrize(
    ("arguments", "forced", "expected"),
    [
        ([], None, ModelAndPrompt(DEFAULT_MODEL, None, True)),
        (["hello"], None, ModelAndPrompt(DEFAULT_MODEL, "hello", True)),
        (["org/name"], None, ModelAndPrompt("org/name", None)),
        (["org/name", "hello"], None, ModelAndPrompt("org/name", "hello")),
        (["org/name", "gemma3"], None, ModelAndPrompt("org/name", "gemma3")),
        (["smollm2"], "odd name", ModelAndPrompt("odd name", "smollm2")),
        ([], "odd name", ModelAndPrompt("odd name", None)),
    ],
)
def test_arguments_are_split(store: Store, arguments: list[str], forced: str | None, expected: ModelAndPrompt) -> None:
    assert split_arguments(arguments, forced, store) == expected


def test_a_servers_own_names_are_models(store: Store) -> None:
    assert split_arguments(["chat", "hello"], None, store, ["chat"]) == ModelAndPrompt("chat", "hello")


@pytest.mark.parametrize(
    ("arguments", "forced"), [(["a", "b"], None), (["smollm2", "a", "b"], None), (["a", "b"], "smollm2")]
)
def test_a_prompt_in_several_words_is_refused(store: Store, arguments: list[str], forced: str | None) -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt must be one argument, found 2 starting with 'a'"):
        split_arguments(arguments, forced, store)


@pytest.mark.parametrize(
    ("word", "name"), [("smolm2", "smollm2:135m"), ("gemma", "gemma3:270m"), ("Smollm2", "smollm2:135m")]
)
def test_a_lone_word_that_all_but_is_a_model_gets_a_hint(
    store: Store, capsys: pytest.CaptureFixture[str], word: str, name: str
) -> None:
    assert split_arguments([word], None, store) == ModelAndPrompt(DEFAULT_MODEL, word, True)
    expected = f"note: {word!r} is taken for the prompt: did you mean the model {name!r}?\n"
    assert capsys.readouterr() == ("", expected)
    with pytest.raises(InvalidRequestError, match=f"starting with {word!r}: did you mean the model {name!r}"):
        split_arguments([word, "hello"], None, store)


@pytest.mark.parametrize(
    ("arguments", "forced"),
    [
        (["hello"], None),
        (["Why?"], None),
        (["smolm2 is a model"], None),
        (["smolm2"], "gemma3"),
        (["gemma3", "smolm2"], None),
        (["x" * 100_000], None),
    ],
)
def test_other_prompts_get_none(
    store: Store, capsys: pytest.CaptureFixture[str], arguments: list[str], forced: str | None
) -> None:
    split_arguments(arguments, forced, store)
    assert capsys.readouterr() == ("", "")


def test_names_are_completed(store: Store) -> None:
    assert complete_model("gem") == ["gemma3:270m"]
    assert complete_model("") == ["gemma3:270m", "smollm2:135m"]
