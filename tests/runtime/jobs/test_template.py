"""Templates: what is filled in, what is drawn, what is refused."""

from __future__ import annotations

import re

import pytest

from tuili.errors import InvalidRequestError
from tuili.runtime.jobs.template import Template, drawn, row_seed, text_of


def _render(text: str, **values: object) -> str:
    return Template.parse(text, "prompt").render(values)


def test_columns_numbers_and_braces_are_filled_in() -> None:
    assert (
        _render("Write {num:5-40} lines on {topic}.", num=7, topic="{num} and {{") == "Write 7 lines on {num} and {{."
    )
    assert _render("{{{a}}} {a} }}{{", a="x") == "{x} x }{"
    assert _render("seed_{i:03}.txt", i=7) == "seed_007.txt"
    assert _render("{my column}", **{"my column": "x"}) == "x"
    assert _render("") == ""


def test_values_that_are_no_text_are_written_as_json() -> None:
    assert [text_of(v) for v in ("é", 3, 2.5, True, ["a", "ü"], {"k": None})] == [
        *("é", "3", "2.5", "true", '["a", "ü"]', '{"k": null}')
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a { b", "prompt: a lone '{' at character 3; write {{ for the character itself"),
        ("a } b", "prompt: a lone '}' at character 3; write }} for the character itself"),
        ("{}", "prompt: {} names nothing"),
        ("{:1-2}", "prompt: {:1-2} names nothing"),
        ('{"a": 1}', 'prompt: {"a": 1} must be a column as {name}, a random number as {name:5-40}, or a padded one'),
        ("{num:9-3}", "prompt: the range of {num:9-3} is empty: 9 > 3"),
        ("{n:1-2} {n:1-3}", "prompt: 'n' has two ranges, 1-2 and 1-3; a name stands for one number in a row"),
    ],
)
def test_malformed_templates_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        Template.parse(text, "prompt")


def test_an_unknown_column_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt: no column 'topci'; there are \{topic\}, \{i\}"):
        _render("{topci}", topic="x", i=0)
    with pytest.raises(InvalidRequestError, match="prompt: column 'topic' is null"):
        _render("{topic}", topic=None)
    with pytest.raises(InvalidRequestError, match="only a whole number can be padded"):
        _render("{topic:03}", topic="x")


def test_drawn_numbers_depend_on_job_row_and_name_alone_and_fill_the_range() -> None:
    numbers = [drawn(1, i, "num", (5, 40)) for i in range(2000)]
    assert numbers == [drawn(1, i, "num", (5, 40)) for i in range(2000)]
    assert set(numbers) == set(range(5, 41))
    assert max(map(numbers.count, set(numbers))) < 2 * 2000 / 36
    assert numbers != [drawn(2, i, "num", (5, 40)) for i in range(2000)]
    assert numbers != [drawn(1, i, "other", (5, 40)) for i in range(2000)]
    assert {drawn(1, i, "t", (-2, -1)) for i in range(50)} == {-2, -1}
    assert drawn(1, 0, "t", (3, 3)) == 3


def test_rows_have_seeds_of_their_own() -> None:
    seeds = {row_seed(job, i) for job in range(3) for i in range(1000)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**64 for seed in seeds)
