"""Random damage to files: to bytes, to JSON values, and templates put together at random."""

import copy
import json
import random
import struct
from typing import Any

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
    10**5,
    10**8,
    10**12,
    10**30,
    0.5,
    -0.0,
    1e308,
    1e-308,
)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    None,
    True,
    False,
    "",
    "x",
    "../x",
    "/etc/passwd",
    "\ud800",
    "\0",
    "9" * 50,
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    [1, 2, 3],
    {"rope_type": "yarn"},
    {"rope_type": "llama3", "factor": 0},
    ["full_attention"],
    [0, 0, 0],
    "none",
    "gelu",
)


def damaged_bytes(data: bytes, draw: random.Random, head: int) -> bytes:
    """Several edits, most of them within the first `head` bytes."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            break
        at = draw.randrange(min(len(out), head) if draw.random() < 0.9 else len(out))
        kind = draw.randrange(7)
        if kind == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[at] = draw.randrange(256)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + draw.randrange(1, 40)]
        elif kind == 4:
            out[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 20)))
        elif kind == 5:
            value = draw.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**40, 10**5))
            out[at : at + 8] = struct.pack("<Q", value)
        else:
            start = draw.randrange(len(out))
            out[at:at] = out[start : start + draw.randrange(1, 60)]
    return bytes(out)


def damaged_json(data: Any, draw: random.Random) -> bytes:
    """The text of a JSON value with a few values replaced, removed, moved or nested; sometimes no JSON any more."""
    tree = copy.deepcopy(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        tree = _changed(tree, draw)
    text = json.dumps(tree)
    if draw.random() < 0.15:
        at = draw.randrange(len(text) + 1)
        text = (
            text[:at] + draw.choice(('"', "}", ",", "NaN", "[" * 5000, "1e999", "\\u12", "//", "9" * 5000)) + text[at:]
        )
    return text.encode("utf-8", "surrogatepass")


def _changed(tree: Any, draw: random.Random) -> Any:
    places = list(_places(tree))
    if not places:
        return draw.choice(VALUES)
    holder, key = draw.choice(places)
    kind = draw.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = [holder[key]] * draw.choice((1, 2, 50))
    elif kind == 2:
        holder[key] = {str(key): holder[key]}
    elif kind == 3:
        other, at = draw.choice(places)
        holder[key] = copy.deepcopy(other[at])
    elif kind == 4 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * draw.choice((-1, 2, 1000, 10**9)) + draw.choice((0, 1, -1))
    elif kind == 5 and isinstance(holder, dict):
        holder[draw.choice((str(key) + "x", "layers", "rope_scaling", "model_type", "depth"))] = holder[key]
    else:
        holder[key] = copy.deepcopy(draw.choice(VALUES))
    return tree


def _places(tree: Any) -> Any:
    """(Container, key) of every value."""
    if isinstance(tree, dict | list):
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        for key in keys:
            yield tree, key
            yield from _places(tree[key])


EXPRESSIONS = (
    "x",
    "s",
    "l",
    "d",
    "1",
    "99999",
    "10**9",
    "'ab'",
    "[s, s]",
    "{'a': s, 'b': l}",
    "messages",
    "range(99999)",
    "loop",
    "none",
    "E + E",
    "E ~ E",
    "E * E",
    "E ** E",
    "E % E",
    "E - E",
    "E // E",
    "E == E",
    "E in E",
    "E[E]",
    "E[1:]",
    "E[::-1]",
    "(E, E)",
    "E | join(E)",
    "E | replace(E, E)",
    "E | center(E)",
    "E | indent(E)",
    "E | tojson(indent=E)",
    "E | list",
    "E | string",
    "E | map('string') | list",
    "E | batch(E, E) | list",
    "E | slice(E) | list",
    "E | sum(start=E)",
    "E | sort",
    "E | upper",
    "E | map(attribute='y', default=E) | list",
    "E | format(E)",
    "E | round(E, 'ceil')",
    "E | title",
    "E | unique | list",
    "E | truncate(E)",
    "E | wordcount",
    "E | urlencode",
    "E | attr('format')",
    "E | items | list",
    "E | groupby('a') | list",
    "E.format(E)",
    "E.replace(E, E)",
    "E.join(E)",
    "E.split(E)",
    "E.center(E)",
    "E.zfill(E)",
    "E.__class__",
    "E.to_bytes(E, 'big')",
    "E.encode()",
    "E.items()",
    "E.append(E)",
    "'%99999999d' % E",
    "'{:999999999}'.format(E)",
    "'%*d' % (E, E)",
    "dict(a=E)",
    "namespace(a=E)",
    "cycler(E)",
    "f(E)",
    "raise_exception(E)",
    "strftime_now(E)",
    "E is defined",
    "E if E else E",
    "E is eq E",
)
STATEMENTS = (
    "{{ E }}",
    "text ",
    "{% set s = E %}",
    "{% set l = E %}",
    "{% set d = E %}",
    "{% for x in E %}B{% endfor %}",
    "{% if E %}B{% else %}B{% endif %}",
    "{% set ns.s = E %}",
    "{% macro f(x) %}B{% endmacro %}",
    "{{ f(E) }}",
    "{% for x in range(99999) %}B{% endfor %}",
    "{% set s %}B{% endset %}",
    "{% filter upper %}B{% endfilter %}",
    "{% call(y) f(E) %}B{% endcall %}",
    "{% generation %}B{% endgeneration %}",
    "{% break %}",
    "{% include E %}",
    "{% for x in E",
    "{% for x in E recursive %}{{ loop(E) }}{% endfor %}",
    "{% with a = E %}B{% endwith %}",
)


def template(draw: random.Random) -> str:
    """A template of random statements, with a few variables set."""
    body = "".join(_grown(draw.choice(STATEMENTS), draw, 4) for _ in range(draw.randrange(1, 6)))
    return (
        "{% set ns = namespace(s='ab', l=[1]) %}{% set s = 'abc ' * 200 %}{% set l = [1, 2, s] %}{% set d = {'a': s} %}"
        + body
    )


def _grown(text: str, draw: random.Random, depth: int) -> str:
    out = []
    for letter in text:
        if letter in "EB":
            choices = EXPRESSIONS if letter == "E" else STATEMENTS
            grown = draw.choice(choices[:14] if depth <= 0 and letter == "E" else choices if depth > 0 else ("text",))
            out.append(_grown(grown, draw, depth - 1) if letter == "B" else f"({_grown(grown, draw, depth - 1)})")
        else:
            out.append(letter)
    return "".join(out)
