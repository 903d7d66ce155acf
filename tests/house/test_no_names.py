"""Families are data: no code decides anything by the name of a family."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import x_positional
from x_positional.pretrained import FAMILIES

ROOT = Path(x_positional.__file__).parent
DATA = {"pretrained/rope/families.py"}
"""Tables by name of what a config.json leaves unsaid."""
WORDS = {"family", "model_type"}


def decisions(source: str, names: set[str]) -> Iterator[str]:
    """Comparisons of something called family or model_type, or with the name of a family; branches and matches on them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            constants = {c.value for side in sides for c in ast.walk(side) if isinstance(c, ast.Constant)}
            if constants & names:
                yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant) and node.value.value in names:
            yield f"{node.value.lineno}: case {ast.unparse(node.value)}"


@pytest.mark.parametrize(
    "bad",
    [
        'if family == "llama": pass',
        'x = 1 if hf["model_type"] in ("gpt2", "opt") else 2',
        'match name:\n    case "t5":\n        pass',
    ],
)
def test_it_sees_a_decision(bad: str):
    assert list(decisions(bad, {"llama", "gpt2", "t5"}))


def test_it_sees_none_where_there_is_none():
    assert not list(decisions('FAMILY = Family("llama"); x = FAMILIES["llama"]; y = name in FAMILIES', {"llama"}))


def test_no_code_decides_by_the_name_of_a_family():
    schemes = {"alibi", "t5"}  # also names of schemes, which the flags of a user say
    found = [
        f"{path.relative_to(ROOT)}:{decision}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in DATA
        for decision in decisions(path.read_text("utf-8"), set(FAMILIES) - schemes)
    ]
    assert not found
