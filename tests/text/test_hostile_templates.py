"""More of what attackers have written into chat templates, and templates at random beside Hugging Face's rendering."""

# ruff: noqa: E501  (one payload to a line)
from __future__ import annotations

import random
import resource
import time
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from support.template_escapes import ESCAPES
from tuili.errors import ChatTemplateError
from tuili.text.chat_template import ChatTemplate

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "<|im_start|>hello " * 20}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

LEAKS = ("class", "object", "function", "module", "method", "0x", "globals", "builtin", "environ", "frame", "uid=")


@pytest.mark.parametrize("source", ESCAPES)
def test_no_escape_reaches_anything(source: str) -> None:
    """Refused, or rendered to a text that tells nothing."""
    try:
        rendered = ChatTemplate(source, SPECIAL).render(MESSAGES).plain()
    except ChatTemplateError:
        return
    assert not any(leak in rendered for leak in LEAKS), rendered
    assert rendered in ("", "<TemplateReference None>")


BOMBS: dict[str, str] = {
    "huge range list": "{{ range(10**12)|list }}",
    "range sum": "{{ range(10**9)|sum }}",
    "range join": "{{ range(10**7)|join }}",
    "range max": "{{ range(10**9)|max }}",
    "range length loops": "{% for i in range(10**18) %}{% endfor %}",
    "range last": "{{ range(10**9)|last }}",
    "in range": "{{ 5.5 in range(10**9) }}",
    "range reverse": "{{ range(10**9)|reverse|list }}",
    "range sort": "{{ range(10**8)|sort }}",
    "range unique": "{{ range(10**8)|unique|list }}",
    "range batch": "{{ range(10**8)|batch(1)|list }}",
    "range tojson": "{{ range(10**8)|list|tojson }}",
    "range index": "{{ range(10**9).index(5.5) }}",
    "range count": "{{ range(10**9).count(5.5) }}",
    "range eq": "{{ range(10**9)|list == range(10**9)|list }}",
    "mutual macros": "{% macro a(n) %}{{ b(n) }}{% endmacro %}{% macro b(n) %}{{ a(n) }}{% endmacro %}{{ a(1) }}",
    "fibonacci": "{% macro f(n) %}{% if n>1 %}{{ f(n-1) }}{{ f(n-2) }}{% else %}x{% endif %}{% endmacro %}{{ f(38) }}",
    "macro loops": "{% macro f(n) %}{% if n %}{% for i in range(90) %}{{ f(n-1) }}{% endfor %}{% endif %}{% endmacro %}{{ f(9) }}",
    "caller recursion": "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}",
    "set in loop": "{% set ns=namespace(s='x') %}{% for i in range(90000) %}{% set ns.s = ns.s + messages[0].content %}{% endfor %}",
    "title": "{% set s='a b '*200000 %}{% for i in range(90000) %}{% set x=s.title() %}{% endfor %}",
    "upper filter": "{% set s='ab'*400000 %}{% for i in range(90000) %}{% set x=s|upper %}{% endfor %}",
    "wordcount": "{% set s='a '*400000 %}{% for i in range(90000) %}{% set x=s|wordcount %}{% endfor %}",
    "wordwrap": "{% set s='a '*400000 %}{% for i in range(900) %}{% set x=s|wordwrap(1) %}{% endfor %}",
    "escape": "{% set s='<'*900000 %}{{ s|e }}{{ s|escape }}",
    "urlencode": "{% set s='<'*900000 %}{{ s|urlencode }}{{ s|urlencode }}",
    "truncate": "{% set s='a '*400000 %}{% for i in range(90000) %}{% set x=s|truncate(5) %}{% endfor %}",
    "striptags": "{{ ('<'*900000)|striptags }}" * 3,
    "dictsort": "{% set d=dict() %}{% for i in range(90000) %}{% set x=messages[0]|dictsort %}{% endfor %}",
    "pow chain": "{{ 2**2**2**2**2**2 }}",
    "neg pow": "{{ 10**-(10**9) }}",
    "float pow": "{{ 1e308**1e308 }}",
    "mod": "{{ (10**900) % (10**899+7) ** 99 }}",
    "shift by mul": "{% set n=namespace(x=7) %}{% for i in range(90000) %}{% set n.x=n.x*n.x %}{% endfor %}",
    "int of string": "{{ ('9'*900000)|int }}",
    "float of string": "{{ ('9'*900000)|float }}",
    "int base": "{{ ('f'*900000)|int(0,16) }}",
    "str of int": "{{ (10**1200)|string * 1000 }}{{ (10**1200)|string * 1000 }}" * 9,
    "slice step": "{{ ('a'*900000)[::2] }}" * 40,
    "list slice": "{% set l=range(90000)|list %}{% for i in range(90000) %}{% set x=l[::-1] %}{% endfor %}",
    "tuple in": "{% set l=range(90000)|list %}{% for i in range(90000) %}{% if 5.5 in l %}{% endif %}{% endfor %}",
    "startswith": "{% set s='a'*900000 %}{% for i in range(90000) %}{% set x=s.startswith(s) %}{% endfor %}",
    "find": "{% set s='a'*900000 %}{% for i in range(90000) %}{% set x=s.find(s[1:]~'b') %}{% endfor %}",
    "quadratic find": "{% set s='a'*400000 %}{% set t='a'*200000~'b' %}{{ s.find(t) }}{{ s.count(t) }}{{ s.replace(t,'') }}{{ s.split(t) }}"
    * 40,
    "long output": "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
    "whitespace": "{{ ' '*900000 }}" * 5,
    "nested for": "".join("{% for a" + str(i) + " in range(99) %}" for i in range(15)) + "x" + "{% endfor %}" * 15,
    "nested if": "{% if 1 %}" * 900 + "{% endif %}" * 900,
    "nested brackets": "{{ " + "(" * 900 + "1" + ")" * 900 + " }}",
    "filters": "{{ 'a'" + "|upper" * 9000 + " }}",
    "attribute chain": "{{ messages" + ".a" * 9000 + " }}",
    "not chain": "{{ " + "not " * 9000 + "1 }}",
    "ternary chain": "{{ " + "1 if 1 else " * 5000 + "1 }}",
    "tilde chain": "{{ 'a'" + "~'a'" * 9000 + " }}",
    "compare chain": "{{ 1" + "<1" * 9000 + " }}",
    "and chain": "{{ 1" + " and 1" * 9000 + " }}",
    "dict nest": "{{ " + "{1:" * 900 + "1" + "}" * 900 + " }}",
    "raw": "{% raw %}" * 20000,
    "comments": "{#" * 30000,
    "unclosed": "{{" * 30000,
    "many macros": "".join("{% macro m" + str(i) + "() %}{% endmacro %}" for i in range(1500)),
    "many sets": "".join("{% set a" + str(i) + "=1 %}" for i in range(3500)),
    "recursive loop deep": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "loop changed": "{% for x in range(99999) %}{{ loop.changed(messages) }}{% endfor %}",
    "loop cycle": "{% for x in range(99999) %}{{ loop.cycle(*range(9999)) }}{% endfor %}",
    "star args": "{{ dict(*range(99999999)) }}",
    "star kwargs": "{% macro m() %}{{ kwargs }}{% endmacro %}{{ m(**messages[0]) }}" * 3 + "{{ range(*range(10**9)) }}",
    "cycler": "{{ cycler(*range(10**9)) }}",
    "zip": "{{ range(10**9)|map('string')|join(',') }}",
    "namespace loop": "{% set n=namespace() %}{% for i in range(99999) %}{% set n.a=n %}{% endfor %}{{ n }}",
}
HARMLESS = {"tilde chain", "compare chain", "many macros", "many sets", "pow chain", "neg pow"}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_little(name: str) -> None:
    """Refused, but for a few that are merely odd; in any case soon and in little memory."""
    started, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        ChatTemplate(BOMBS[name], SPECIAL).render(MESSAGES)
        assert name in HARMLESS
    except ChatTemplateError:
        pass
    assert time.thread_time() - started < 10.0  # what is bounded is steps: most take milliseconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


@pytest.mark.parametrize("search", ["5.5 in l", "none not in l", "true in l", "1 < 2 in l", "not 5.5 in l"])
def test_searching_for_a_constant_is_paid_for(search: str) -> None:
    source = (
        f"{{% set l = range(90000)|list %}}{{% for i in range(90000) %}}{{% if {search} %}}{{% endif %}}{{% endfor %}}"
    )
    with pytest.raises(ChatTemplateError, match="too many steps"):
        ChatTemplate(source).render(MESSAGES)


CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": " Be <b>brief</b>. "},
    {"role": "user", "content": "What's 'it'?\n\"So\" 東京 é"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5, None]}}}],
    },
    {"role": "tool", "content": "sunny"},
]
_TEXTS = (
    "m.role",
    "m.content",
    "m['content']",
    "messages[0].content",
    "messages[-1]['role']",
    "'a b c'",
    "bos_token",
    "x",
)
_FILTERS = ("upper", "lower", "trim", "title", "capitalize", "length", "first", "last", "string", "tojson", "list", "int",
            "replace('a', 'bb')", "default('d')", "join('-')", "reverse|list", "indent(2)", "center(30)", "e", "urlencode",
            "wordcount", "truncate(5)", "sort", "unique|list", "batch(2)|list", "safe", "items|list", "float",
            "round(1)", "abs", "map('upper')|list", "select|list", "dictsort", "tojson(indent=2)", "min", "max")  # fmt: skip
_METHODS = ("upper()", "strip()", "split(' ')", "split('e')[0]", "startswith('W')", "endswith('y')", "replace('e', '')",
            "find('a')", "title()", "lstrip('Be ')", "count('e')", "join(['p', 'q'])", "splitlines()", "isdigit()",
            "rjust(20)", "zfill(9)", "partition(' ')", "items()", "get('role')", "keys()|list", "format(1)")  # fmt: skip
_TESTS = ("defined", "string", "mapping", "iterable", "none", "sequence", "true", "number", "odd", "in ['user']",
          "undefined", "sameas none", "eq 'user'", "ne ''", "upper", "callable")  # fmt: skip


def _expression(chooser: random.Random, depth: int = 0) -> str:
    kind = chooser.choice(("text", "text", "filter", "method", "slice", "binary", "if", "compare", "literal"))
    if depth > 2 or kind == "text":
        return chooser.choice(_TEXTS)
    inner, other = _expression(chooser, depth + 1), _expression(chooser, depth + 1)
    if kind == "filter":
        return f"({inner})|{chooser.choice(_FILTERS)}"
    if kind == "method":
        return f"({inner}).{chooser.choice(_METHODS)}"
    if kind == "slice":
        return f"({inner})[{chooser.choice(('0', '-1', '1:', ':3', '::-1', '::2', '9', 'x'))}]"
    if kind == "binary":
        return f"({inner} {chooser.choice(('~', '+', '*', '%', '-', 'and', 'or', '/', '//', '**'))} {other})"
    if kind == "if":
        return f"({inner} if {other} is {chooser.choice(_TESTS)} else {chooser.choice(_TEXTS)})"
    if kind == "compare":
        return f"({inner} {chooser.choice(('==', '!=', '<', '>=', 'in', 'not in'))} {other})"
    return chooser.choice(
        ("[1, 'b', none]", "{'k': m.role, 'n': 1}", "('a', 2)", "3", "2.5", "true", "none", "range(3)")
    )


def _template(chooser: random.Random) -> str:
    parts = ["{% set x = 'X' %}{% set ns = namespace(n=0) %}"]
    parts.append("{% macro f(a, b='B') %}[{{ a }}{{ b }}{{ caller() if caller else '' }}]{% endmacro %}")
    parts.append(chooser.choice(("{% for m in messages %}", "{%- for m in messages if m.content -%}")))
    for _ in range(chooser.randrange(1, 4)):
        expression = _expression(chooser)
        parts.append(
            chooser.choice(
                (
                    f"{{{{ {expression} }}}}",
                    f"{{% if {expression} %}}\n  yes\n{{% else %}}no{{% endif %}}",
                    f"{{%- set x = {expression} %}}{{{{ x }}}}",
                    f"{{% for i in {expression} %}}{{{{ loop.index0 }}}}{{{{ i }}}},{{% endfor %}}",
                    "{% set ns.n = ns.n + loop.index %}{{ ns.n }}{{ loop.last }}",
                    f"{{{{ f({expression}) }}}}{{% call f(1) %}}in{{% endcall %}}",
                    f"{{% filter upper %}}a{{{{ {expression} }}}}{{% endfilter %}}",
                    f"{{% set y %}}z{{{{ {expression} }}}}{{% endset %}}{{{{ y|length }}}}{{{{ y }}}}",
                )
            )
        )
    return "".join((*parts, "{% endfor %}\n{{ ns.n }}{% if add_generation_prompt %}>{% endif %}"))


def _theirs(source: str) -> str | None:
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [CHAT], chat_template=source, add_generation_prompt=True, **SPECIAL
        )
        return str(rendered[0])
    except Exception:
        return None


def _ours(source: str) -> str | None:
    try:
        return ChatTemplate(source, SPECIAL).render(CHAT).plain()
    except ChatTemplateError:
        return None


def test_random_templates_render_as_hugging_face_renders_them() -> None:
    """The same text wherever both render. Ours may refuse what jinja answers with nothing, as a slice of a number."""
    chooser = random.Random(1)
    num_theirs = num_both = 0
    for _ in range(400):
        source = _template(chooser)
        expected, found = _theirs(source), _ours(source)
        num_theirs += expected is not None
        if expected is not None and found is not None:
            num_both += 1
            assert found == expected, source
    assert num_theirs > 80
    assert num_both >= 0.9 * num_theirs
