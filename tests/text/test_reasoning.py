"""Thinking is told from answering the same however the text is cut, from where the prompt says it begins."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuili.text.chat_template import ChatTemplate
from tuili.text.reasoning import KNOWN_MARKS, THINK, Marks, Phase, ReasoningSplitter, Split, model_marks, phase_after

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opened }}{% endif %}"
)
OPENED = CHATML.replace("{{ opened }}", "<think>\n")
CLOSED = CHATML.replace("{{ opened }}", "<think>\n\n</think>\n\n")
SEPARATE = CHATML.replace("{{ m.content }}", "<think>\n{{ m.reasoning_content }}\n</think>\n\n{{ m.content }}")

TEXTS = [
    (Phase.START, "<think>\nhm</think>\n\nYes.", Split("\nhm", "\n\nYes.")),
    (Phase.START, " \n<think>hm</think>Yes.", Split("hm", "Yes.")),
    (Phase.START, "Plain.", Split("", "Plain.")),
    (Phase.START, "  Plain <think>in code</think> stays.", Split("", "  Plain <think>in code</think> stays.")),
    (Phase.START, "<thinker>", Split("", "<thinker>")),
    (Phase.START, "<think", Split("", "<think")),
    (Phase.START, "  ", Split("", "  ")),
    (Phase.START, "<think>cut </thi", Split("cut </thi", "")),
    (Phase.START, "<think>a<think>b</think>c</think>d", Split("a<think>b", "c</think>d")),
    (Phase.THINKING, "hm</think>`<think>x</think>`", Split("hm", "`<think>x</think>`")),
    (Phase.THINKING, "\n<think>hm</think>Yes", Split("hm", "Yes")),
    (Phase.THINKING, "never closed", Split("never closed", "")),
    (Phase.THINKING, "</think>", Split("", "")),
    (Phase.THINKING, "a </</think>b", Split("a </", "b")),
    (Phase.ANSWER, "<think>kept</think>", Split("", "<think>kept</think>")),
]


def _split(phase: Phase, pieces: list[str], marks: Marks = THINK) -> Split:
    splitter = ReasoningSplitter(marks, phase)
    parts = [splitter.push(piece) for piece in pieces[:-1]] + [splitter.finish(pieces[-1])]
    return Split("".join(part.reasoning for part in parts), "".join(part.content for part in parts))


@pytest.mark.parametrize(("phase", "text", "expected"), TEXTS)
def test_every_cut_in_two_or_into_characters_gives_the_same(phase: Phase, text: str, expected: Split) -> None:
    assert _split(phase, [text]) == expected
    assert _split(phase, [*text, ""]) == expected
    for i in range(len(text) + 1):
        assert _split(phase, [text[:i], text[i:]]) == expected


@settings(max_examples=1000, deadline=None)
@given(
    phase=st.sampled_from(Phase),
    marks=st.sampled_from(KNOWN_MARKS),
    pieces=st.lists(
        st.sampled_from(["{o}", "{c}", "{o2}", "{c2}", "<", "/", "t", " ", "\n", ">", "[", "x"]), max_size=14
    ),
    cuts=st.lists(st.integers(0, 80), max_size=12),
)
def test_random_cuts_give_the_same(phase: Phase, marks: Marks, pieces: list[str], cuts: list[int]) -> None:
    halves = {"{o2}": marks.opening[:3], "{c2}": marks.closing[:4], "{o}": marks.opening, "{c}": marks.closing}
    text = "".join(halves.get(piece, piece) for piece in pieces)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    whole = _split(phase, [text], marks)
    assert _split(phase, [text[i:j] for i, j in itertools.pairwise(edges)], marks) == whole
    assert len(text) - len(whole.reasoning) - len(whole.content) in range(len(text) + 1)
    assert text.endswith(whole.content)


@pytest.mark.parametrize(
    ("template", "phase"),
    [(CHATML, Phase.START), (OPENED, Phase.THINKING), (CLOSED, Phase.ANSWER), (SEPARATE, Phase.START)],
)
def test_the_prompt_says_where_an_answer_begins(template: str, phase: Phase) -> None:
    talk = [
        {"role": "user", "content": "What does <think> mean?"},
        {"role": "assistant", "content": "It opens.", "reasoning_content": "<think> is a tag"},
        {"role": "user", "content": "Then say <think>"},
    ]
    assert phase_after(ChatTemplate(template).render(talk), THINK) is phase


@pytest.mark.parametrize(
    ("template", "content", "phase"),
    [
        (CHATML, "<think>\nSo far", Phase.THINKING),
        (CHATML, "<think>\nSo</think>\n\nThe ", Phase.ANSWER),
        (CHATML, "The answer is", Phase.ANSWER),
        (SEPARATE, "The answer is", Phase.ANSWER),
    ],
)
def test_a_continued_answer_begins_where_it_stands(template: str, content: str, phase: Phase) -> None:
    talk = [{"role": "user", "content": "<think>"}, {"role": "assistant", "content": content, "reasoning": "r"}]
    rendered = ChatTemplate(template).render(talk, add_generation_prompt=False, continue_final_message=True)
    assert phase_after(rendered, THINK, is_continued=True) is phase


def test_a_plain_prompt_says_it_with_its_last_word() -> None:
    assert phase_after("Think: <think>\n", THINK) is Phase.THINKING
    assert phase_after("The tag <think> is one", THINK) is Phase.START


def test_marks_come_from_the_template_then_from_the_vocabulary() -> None:
    mistral = Marks("[THINK]", "[/THINK]")
    assert model_marks("... [THINK]{{ t }}[/THINK]", lambda _: False) == mistral
    assert model_marks("", {"[THINK]", "[/THINK]"}.__contains__) == mistral
    assert model_marks("</think>", {"[THINK]", "[/THINK]"}.__contains__) == THINK
    assert model_marks("plain", lambda _: False) == THINK
