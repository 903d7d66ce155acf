"""Chat templates are limited in time and memory: what would exhaust the machine is refused, and what published ones do is not."""

import resource
import time

import pytest

from x_positional import PretrainedError
from x_positional.pretrained.tokenizers.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
DOUBLED = "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(60) %}{% set ns.s = BODY %}{% endfor %}"

BOMBS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "output in loops": "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "long text in a macro": "{% macro m() %}{% for a in range(99999) %}"
    + "y" * 20_000
    + "{% endfor %}{% endmacro %}{{ m() }}",
    "doubling +": DOUBLED.replace("BODY", "ns.s + ns.s"),
    "doubling ~": DOUBLED.replace("BODY", "ns.s ~ ns.s"),
    "many ~": DOUBLED.replace("BODY", " ~ ".join(["ns.s"] * 500)),
    "doubling *": DOUBLED.replace("BODY", "ns.s * 2"),
    "doubling join": DOUBLED.replace("BODY", "[ns.s, ns.s] | join"),
    "doubling format": DOUBLED.replace("BODY", "'%s%s' % (ns.s, ns.s)"),
    "doubling str.format": DOUBLED.replace("BODY", "'{0}{0}'.format(ns.s)"),
    "doubling a block": DOUBLED.replace(
        "{% set ns.s = BODY %}", "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}"
    ),
    "doubling lists": DOUBLED.replace("BODY", "[ns.s, ns.s]") + "{{ ns.s }}",
    "doubling lists +": DOUBLED.replace("BODY", "[1] + ns.s | list + ns.s | list"),
    "doubling dicts": DOUBLED.replace("BODY", "{'a': ns.s, 'b': ns.s}") + "{{ ns.s | tojson }}",
    "doubling namespaces": "{% set ns = namespace(s=1) %}{% for i in range(60) %}{% set ns.s = namespace(a=ns.s, b=ns.s) %}"
    "{% endfor %}{{ 'x' * (ns.s | string | length) * 1000000 }}",
    "comparing doubled lists": "{% set n = namespace(a=1, b=1) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    "comparing long texts": "{% set a = 'a' * 1900000 %}{% set b = 'a' * 1900000 %}{% for i in range(99999) %}"
    "{% if a == b %}{% endif %}{% if a is eq b %}{% endif %}{% endfor %}",
    "copies of a long text": "{% set a = 'a' * 1900000 %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "calls on a long text": "{% set a = 'a' * 1900000 %}{% for i in range(99999) %}{% set b = a.count('b') %}{% endfor %}",
    "string *": "{{ 'a' * 10**9 }}",
    "list *": "{{ [1] * 10**9 }}",
    "replace": "{% set s = 'a' * 99999 %}{{ s | replace('a', s) }}",
    "replace nothing": "{% set s = 'a' * 99999 %}{{ s.replace('', s) }}",
    "join": "{% set s = 'a' * 999999 %}{{ range(99999) | join(s) }}",
    "str.join": "{% set s = 'a' * 999999 %}{{ s.join('b' * 99999) }}",
    "join of defaults": "{% set s = 'a' * 999999 %}{{ range(99999) | map(attribute='x', default=s) | join }}",
    "str.join of defaults": "{% set s = 'a' * 999999 %}{{ ''.join(range(99999) | map(attribute='x', default=s)) }}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "powers in turn": "{% set ns = namespace(s=9) %}{% for i in range(60) %}{% set ns.s = ns.s * ns.s %}{% endfor %}",
    "%": "{{ '%1000000000d' % 1 }}",
    "% precision": "{{ '%.1000000000f' % 1.5 }}",
    "% *": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "str.format": "{{ '{:1000000000}'.format(1) }}",
    "str.format nested": "{{ '{:{}}'.format(1, 1000000000) }}",
    "str.format by attr": "{{ ('{:1000000000}' | attr('format'))(1) }}",
    "str.format by map": "{{ [1] | map('{:1000000000}'.format) | list }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "str.center": "{{ 'a'.center(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "translate": "{{ ('a' * 999999).translate({97: 'b' * 999999}) }}",
    "indent": "{{ ('a\\n' * 99999) | indent(99999) }}",
    "indent by text": "{{ ('a\\n' * 99999) | indent('b' * 99999) }}",
    "tojson indent": "{{ [1, [2]] | tojson(indent=1000000000) }}",
    "tojson indent text": "{{ range(99999) | list | tojson(indent='a' * 999999) }}",
    "tojson separators": "{{ range(99999) | list | tojson(separators=('a' * 999999, 'b')) }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "batch": "{{ [1] | batch(1000000000, 'a') | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "sum": "{{ ([[1] * 1000] * 9999) | sum(start=[]) }}",
    "range": "{{ range(10**9) | list }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "wordwrap": "{{ ('a' * 99999) | wordwrap(1, wrapstring='b' * 99999) }}",
    "recursion": "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('a') }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop(x and [x, x]) }}{% endfor %}",
    "title": "{% for i in range(99999) %}{% set b = ('a b ' * 450000) | title %}{% endfor %}",
    "sort": "{% set l = range(99999) | list %}{% for i in range(99999) %}{% set b = l | sort(reverse=true) %}{% endfor %}",
    "constants": "{{ 'a' | center(1000000000) | center(1000000000) }}{{ 'a' ~ ('b' * 1000000000) }}",
    "cycler": "{% set c = cycler(*range(99999)) %}{% for i in range(99999) %}{% for j in range(99999) %}{{ c.next() }}"
    "{% endfor %}{% endfor %}",
    "a template too long to compile": "{{ x }}" * 100_000,
    "nested parentheses": "{{ " + "(" * 20_000 + ")" * 20_000 + " }}",
    "nested ifs": "{% if true %}" * 300 + "{% endif %}" * 300,
    "long sums": "{{ 1" + "+1" * 20_000 + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_time(name: str):
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PretrainedError, match="chat template of somewhere failed"):
        ChatTemplate(BOMBS[name], {}, "somewhere").render(MESSAGES)
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10, "KiB"


def test_long_conversations_are_rendered():
    """Four million characters, through a template that trims, splits, compares and looks ahead at every message."""
    text = (
        "{%- set ns = namespace(last=0) -%}{%- for m in messages[::-1] -%}{%- if m.role == 'user' and not ns.last -%}"
        "{%- set ns.last = loop.revindex0 -%}{%- endif -%}{%- endfor -%}"
        "{%- for m in messages -%}{%- set c = m.content | trim -%}"
        "{%- if m.content is string and '</think>' in c -%}{%- set c = c.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
        "{%- for later in messages[loop.index:] -%}{%- if later.role == 'tool' or later.content == c -%}{%- endif -%}"
        "{%- endfor -%}<|{{ m.role }}|>{{ '\\n' + c + '<|end|>' }}\n{{ {'a': c} | tojson(indent=2) | length }}"
        "{%- endfor -%}"
    )
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 4000} for i in range(200)]
    started = time.process_time()
    rendered = ChatTemplate(text, {}, "somewhere").render(messages)
    assert len(rendered) > 4_000_000
    assert "<|user|>\n198 word word" in rendered
    assert time.process_time() - started < 5
