"""Hostile chat templates end in ChatTemplateError, soon and in little memory."""

from __future__ import annotations

import resource
import time

import pytest

from tuili.errors import ChatTemplateError
from tuili.text.chat_template import ChatTemplate

pytestmark = pytest.mark.no_cover  # the same lines thousands of times: to count them doubles the time

MESSAGES = [{"role": "user", "content": "<|im_start|>hello " * 20}]
DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
NESTING = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
BIG = "{% set s = 'a' * 900000 %}"
LIST = "{% set l = range(90000)|list %}"

BOMBS = {
    "long range": "{% for i in range(1000000000) %}x{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "wide body": "{% for i in range(99999) %}"
    + "{% set a = messages[0].content[0][0][0][0][0] %}" * 200
    + "{% endfor %}",
    "recursive loop": "{% for i in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "recursive loop over text": BIG + "{% for i in [s] recursive %}{{ loop(s) }}{% endfor %}",
    "long text loop": BIG + "{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
    "string power": "{{ 'a' * 10**9 }}",
    "string times": "{{ 10**9 * 'a' }}",
    "list times": "{{ [1] * 10**9 }}",
    "list times in a loop": "{% for i in range(90000) %}{% set x = [1] * 90000 %}{% endfor %}",
    "integer tower": "{{ 10**(10**10) }}",
    "integer product": DOUBLING.replace("'ab'", "3").replace("ns.x ~ ns.x", "ns.x * ns.x"),
    "doubling": DOUBLING,
    "doubling by plus": DOUBLING.replace("ns.x ~ ns.x", "ns.x + ns.x"),
    "doubling by join": DOUBLING.replace("ns.x ~ ns.x", "[ns.x, ns.x]|join"),
    "doubling by method": DOUBLING.replace("ns.x ~ ns.x", "ns.x.join([ns.x, ns.x])"),
    "doubling by format": DOUBLING.replace("ns.x ~ ns.x", "'%s%s'|format(ns.x, ns.x)"),
    "doubling by percent": DOUBLING.replace("ns.x ~ ns.x", "'%s%s' % (ns.x, ns.x)"),
    "doubling by str.format": DOUBLING.replace("ns.x ~ ns.x", "'{0}{0}'.format(ns.x)"),
    "doubling by block": DOUBLING.replace(
        "{% set ns.x = ns.x ~ ns.x %}", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"
    ),
    "doubling by replace": DOUBLING.replace("ns.x ~ ns.x", "ns.x|replace('a', ns.x)"),
    "doubling by replace of nothing": DOUBLING.replace("ns.x ~ ns.x", "ns.x.replace('', ns.x)"),
    "doubling lists": DOUBLING.replace("'ab'", "[1]").replace("ns.x ~ ns.x", "ns.x + ns.x"),
    "shared lists printed": NESTING + "{{ ns.x }}",
    "shared lists as json": NESTING + "{{ ns.x|tojson }}",
    "shared lists compared": NESTING + "{% set a = ns.x %}" + NESTING + "{{ a == ns.x }}",
    "shared lists tested": NESTING + "{% set a = ns.x %}" + NESTING + "{{ a is eq ns.x }}",
    "shared lists found": NESTING + "{% set a = ns.x %}" + NESTING + "{{ [a].index(ns.x) }}",
    "shared lists joined": NESTING + "{{ [ns.x]|join }}",
    "shared lists as a percentage": NESTING + "{{ '%s' % ns.x }}",
    "shared lists formatted": NESTING + "{{ '{}'.format(ns.x) }}",
    "shared lists changed": NESTING + "{% for a in [1, 2] %}{{ loop.changed(ns.x) }}{% endfor %}",
    "itself in a namespace": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "json indent": LIST + "{{ l|tojson(indent=100000) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "indent": "{{ 'a\n'|indent(1000000000) }}",
    "indent of many lines": "{{ ('a\n' * 400000)|indent(1000) }}",
    "batch": "{{ [1]|batch(1000000000, 0)|list }}",
    "slice": "{{ [1]|slice(1000000000)|list }}",
    "round": "{{ 1.5|round(1000000000) }}",
    "wide field": "{{ '%1000000000d' % 1 }}",
    "wide starred field": "{{ '%*d' % (1000000000, 1) }}",
    "wide format": "{{ '{:1000000000d}'.format(1) }}",
    "wide nested format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "many fields": BIG + "{{ ('{0}' * 900).format(s) }}",
    "sum of lists": LIST + "{% for i in range(9999) %}{% set x = [l, l]|sum(start=[]) %}{% endfor %}",
    "sorting": LIST + "{% for i in range(9999) %}{% set x = l|sort %}{% endfor %}",
    "slicing": LIST + "{% for i in range(90000) %}{% set x = l[1:] %}{% endfor %}",
    "listing": LIST + "{% for i in range(90000) %}{% set x = l|list %}{% endfor %}",
    "searching": BIG + "{% for i in range(90000) %}{% set x = 'b' in s %}{% endfor %}",
    "comparing": BIG + "{% set t = s + 'b' %}{% for i in range(90000) %}{% set x = s ~ 'b' == t %}{% endfor %}",
    "splitting": BIG + "{% for i in range(90000) %}{% set x = s.split('a') %}{% endfor %}",
    "literal in a loop": "{% for i in range(90000) %}{% set x = [" + "1," * 20000 + "] %}{% endfor %}",
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(35) }}",
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "marks": "{% set ns = namespace(x='') %}{% for i in range(90000) %}"
    "{% set ns.x = ns.x ~ messages[0].content[0] ~ 'b' %}{% endfor %}",
    "to_bytes": "{{ (5).to_bytes(1000000000, 'big') }}",
    "long date format": "{{ strftime_now('%c' * 100000) }}",
    "output": "{% for i in range(9000) %}" + "x" * 60000 + "{% endfor %}",
    "deep expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep list": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep statements": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "deep loops": "{% for i in [1] %}" * 50 + "{% endfor %}" * 50,
    "long minus chain": "{{ " + "-" * 20000 + "1 }}",
    "long sum": "{{ " + "1+" * 20000 + "1 }}",
    "too long": "x" * 200_000,
}

ESCAPES = [
    "{{ cycler.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] ~ 1 + 1 }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|first + 1 }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "{{ '{0[__class__]}'.format(messages) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ('{0.__class__}'|string).format(1) }}",
    "{{ ['{0.__class__}']|map('format', 1)|first }}{{ x.y.z }}",
    "{{ [messages]|map('attr', '__class__')|list }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__code__.co_consts }}",
    "{{ strftime_now.__closure__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ dict.mro() }}",
    "{{ dict.__subclasses__() }}",
    "{{ loop.__class__ }}",
    "{% for x in [1] %}{{ loop._iterable }}{{ loop._iterable.x }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._environment.globals }}",
    "{{ lipsum.__globals__ }}",
    "{{ lipsum(1000) }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends 'base' %}",
    "{% autoescape true %}{% endautoescape %}",
    "{{ messages|pprint }}",
    "{{ messages|random }}",
    "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "{% set x %}{% endset %}{{ x.encode() }}",
    "{{ 'a'.maketrans({'a': 'b'}) }}",
    "{% do messages %}",
    "{{ undefined_name.attribute }}",
    "{{ 1 / 0 }}",
    "{{ 'a' + 1 }}",
]


@pytest.fixture(autouse=True)
def _bounded_memory():
    """No payload may take 512 MiB more than there was."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_soon(name: str) -> None:
    started = time.thread_time()
    with pytest.raises(ChatTemplateError, match="chat template"):
        ChatTemplate(BOMBS[name]).render(MESSAGES)
    assert time.thread_time() - started < 10.0  # what is bounded is steps: about a second where nothing traces them


@pytest.mark.parametrize("source", ESCAPES)
def test_escape_is_refused(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="chat template"):
        ChatTemplate(source).render(MESSAGES)
