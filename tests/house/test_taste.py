"""The rules of taste that a machine can check, over every file of the package.

Each rule is a function of the syntax tree, and is itself tested on a snippet that breaks it and one that does not.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.house.measure import function_lengths

pytestmark = pytest.mark.quick
PACKAGE = Path(__file__).parents[2] / "x_positional"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
MAX_FUNCTION = 50


def has_docstring(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "1: no module docstring: one sentence, and the shape legend where tensors appear"


def no_assert(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"{node.lineno}: assert; raise with the value, the reason and the way out"


def no_buffers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in ("register_buffer", "Buffer"):
            yield f"{node.lineno}: {name}; hold parameters or nothing, and compute tables from positions"


def no_hasattr(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "hasattr":
            yield f"{node.lineno}: hasattr; give the base class a default instead"


def no_forward_kwargs(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "forward" and node.args.kwarg:
            yield f"{node.lineno}: forward takes **{node.args.kwarg.arg}; name every argument"


def no_pickle(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if "pickle" in names or (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"):
            yield f"{node.lineno}: pickle runs what it reads; use safetensors and JSON"


def short_functions(tree: ast.Module) -> Iterator[str]:
    for line, length, name in function_lengths(tree):
        if length > MAX_FUNCTION:
            yield f"{line}: {name} has {length} lines below its docstring; at most {MAX_FUNCTION}"


Check = Callable[[ast.Module], Iterator[str]]
CHECKS: set[Check] = {
    has_docstring,
    no_assert,
    no_buffers,
    no_hasattr,
    no_forward_kwargs,
    no_pickle,
    short_functions,
}
NOT_IN_TESTING = {no_assert, no_pickle}  # the contract suite judges, and it copies schemes through pickle


def taste_problems(path: str, source: str) -> list[str]:
    checks = CHECKS - NOT_IN_TESTING if path.startswith("testing/") else CHECKS
    return [f"{path}:{found}" for check in checks for found in check(ast.parse(source))]


@pytest.mark.parametrize("path", SOURCES)
def test_rules_of_taste(path: str):
    assert taste_problems(path, SOURCES[path]) == []


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        (has_docstring, "import torch\n", '"""One sentence."""\n'),
        (no_assert, "def f(x):\n    assert x, 'no'\n", "def f(x):\n    raise ValueError(x)\n"),
        (no_buffers, "self.register_buffer('a', t)\n", "self.register_parameter('a', t)\n"),
        (no_buffers, "self.a = nn.Buffer(t)\n", "self.a = nn.Parameter(t)\n"),
        (no_hasattr, "x = hasattr(y, 'z')\n", "x = y.z\n"),
        (no_forward_kwargs, "class A:\n    def forward(self, **kw): ...\n", "def forward(x): ...\ndef f(**kw): ...\n"),
        (no_pickle, "import pickle\n", "import json\n"),
        (no_pickle, "from pickle import load\n", "from safetensors.torch import load_file\n"),
        (no_pickle, "x = torch.load(path)\n", "x = load_file(path)\n"),
        (short_functions, "def f():\n" + "    x = 1\n" * 51, "def f():\n    'Doc.\\\n'\n" + "    x = 1\n" * 50),
    ],
)
def test_each_rule_finds_what_breaks_it(check: Check, bad: str, good: str):
    assert len(list(check(ast.parse(bad)))) == 1
    assert list(check(ast.parse(good))) == []


def test_only_testing_may_assert():
    assert len(taste_problems("masks.py", '"""Doc."""\nassert 1\n')) == 1
    assert taste_problems("testing/suite.py", '"""Doc."""\nassert 1\n') == []
