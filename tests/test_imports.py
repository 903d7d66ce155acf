"""Imports go one way: LAYOUT says what each module of the package may import, and a module that it lacks fails.

Each finding is a function of source text, and is itself tested on snippets that it must reject.
"""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "x_positional"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

ABOVE = "everything above"
LAYOUT = {
    # What a module may import from the package, in the order of docs/architecture.md.
    "context": "",
    "scheme": "context",
    "masks": "scheme",
    "slots": "scheme",
    "anchors": "context scheme slots",
    "cache": "scheme slots",
    "registry": "scheme",
    "schemes": "context scheme registry",
    "rope": "registry schemes",
    "rotary": "schemes",
    "backends": "scheme masks",
    "norms": "",
    "feedforward": "",
    "experts": "feedforward",
    "head_norm": "",
    "head": "norms feedforward",
    "attention": "context scheme masks anchors cache backends head_norm",
    "latent": "context scheme norms attention",
    "placement": "scheme masks cache",
    "crossing": "scheme masks cache backends attention placement",
    "block": "scheme cache norms feedforward experts attention latent",
    "transformer": "scheme masks anchors cache backends norms attention placement crossing block",
    "experts_config": "registry",
    "latent_config": "registry",
    "config": "scheme registry schemes experts_config latent_config",
    "vision_config": "registry schemes config",
    "seq2seq_config": "config",
    "flag_table": "",
    "flags": "scheme registry schemes config flag_table",
    "validate": "scheme anchors registry schemes backends config vision_config seq2seq_config flag_table flags latent_config",
    "saving": "",
    "build": ABOVE,
    "describe": ABOVE,
    "layers": ABOVE,
    "wrappers": ABOVE,
    "continuous": ABOVE,
    "vision": ABOVE,
    "sampling": "",
    "multimodal": "scheme",
    "prompts": "cache placement",
    "decoding": ABOVE,
    "generate": ABOVE,
    "seq2seq": ABOVE,
    "pretrained": ABOVE,
    "porting": ABOVE,
    PACKAGE: ABOVE,  # x_positional/__init__.py: the public names
    "testing": ABOVE,
    "training": ABOVE,
    "plotting": ABOVE,
    "cli": ABOVE,
}
FAMILIES = ("flag_table", "flags", "rope", "validate")  # flags_reader.py belongs to flags, and so on

TORCH_ONLY = {"context", "scheme", "masks", "slots", "cache", "sampling"}
BASE = {"torch", "einops", "pydantic", "typing_extensions", "yaml", "safetensors", "rich"}  # always installed
EXTRAS = {
    "training": {"accelerate", "matplotlib", "numpy", "tensorboard", "tokenizers"},
    "plotting": {"matplotlib"},
    "pretrained": {"huggingface_hub", "gguf", "tokenizers", "jinja2"},
    "cli": {"typer", "click"},
}


def module_name(path: Path) -> str:
    """.../x_positional/backends/sdpa.py -> x_positional.backends.sdpa"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in FILES}
PACKAGES = {module_name(path) for path in FILES if path.name == "__init__.py"}


def imports(source: str, module: str, modules: set[str], packages: set[str]) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import, wherever it stands: a lazy import points the same way as any other."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".") if module in packages else module.split(".")[:-1]
            start = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*start, node.module] if node.module else start)
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield node.lineno, submodule if submodule in modules else origin


def unit(module: str) -> str:
    """The line of LAYOUT that a module of the package belongs to."""
    top = [*module.split("."), PACKAGE][1]
    return next((family for family in FAMILIES if top.startswith(family + "_")), top)


def allowed(name: str) -> set[str]:
    if LAYOUT[name] != ABOVE:
        return set(LAYOUT[name].split())
    names = list(LAYOUT)
    return set(names[: names.index(name)])


def registers_a_scheme(source: str) -> bool:
    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    return any(isinstance(base, ast.Name) and base.id == "SchemeConfig" for node in classes for base in node.bases)


def import_problems(module: str, sources: dict[str, str], packages: set[str]) -> list[str]:
    """Imports of one module that the layout does not allow."""
    own = unit(module)
    if own not in LAYOUT:
        return [f"{module} is not in LAYOUT: add a line that says what {own!r} may import"]
    third_party = {"torch"} if own in TORCH_ONLY else BASE | EXTRAS.get(own, set())
    problems = []
    for line, target in imports(sources[module], module, set(sources), packages):
        top = target.split(".")[0]
        if top != PACKAGE:
            if top not in third_party and top not in sys.stdlib_module_names:
                problems.append(f"{module}:{line} imports {target}; {own} may use {', '.join(sorted(third_party))}")
        elif unit(target) != own:
            if unit(target) not in allowed(own):
                problems.append(f"{module}:{line} imports {target}; {own} may import: {LAYOUT[own] or 'nothing'}")
        elif own == "schemes" and module not in packages and registers_a_scheme(sources[target]):
            problems.append(f"{module}:{line} imports {target}, another scheme; only shared bases may be imported")
    return problems


def cycle(sources: dict[str, str], packages: set[str]) -> list[str]:
    """Modules that import each other in a ring, or []."""
    names = set(sources)
    graph = {name: {target for _, target in imports(text, name, names, packages)} for name, text in sources.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_one_way(module: str):
    assert import_problems(module, SOURCES, PACKAGES) == []


def test_no_import_cycle():
    assert cycle(SOURCES, PACKAGES) == []


def test_layout_names_only_what_exists_in_order():
    names = list(LAYOUT)
    for name, line in LAYOUT.items():
        assert line == ABOVE or set(line.split()) <= set(names[: names.index(name)]), f"{name} looks down"
    assert set(names) == {unit(module) for module in SOURCES}, "LAYOUT and the package differ"


SOME = {
    "x_positional": "",
    "x_positional.scheme": "class PositionScheme: ...\n",
    "x_positional.masks": "",
    "x_positional.build": "",
    "x_positional.flags_reader": "",
    "x_positional.backends": "",
    "x_positional.backends.sdpa": "",
    "x_positional.schemes.rotary": "class Rope(SchemeConfig): ...\n",
    "x_positional.schemes.distance": "class DistanceScheme(PositionScheme): ...\n",
    "x_positional.schemes.t5": "",
    "x_positional.training.engine": "",
    "x_positional.novelty": "",
}
SOME_PACKAGES = {"x_positional", "x_positional.backends"}


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("x_positional.scheme", "from x_positional.masks import causal", "scheme may import: context"),
        ("x_positional.scheme", "import pydantic", "imports pydantic; scheme may use torch"),
        ("x_positional.scheme", "def f():\n    from x_positional import build", "imports x_positional.build"),
        ("x_positional.masks", "import x_positional.build", "imports x_positional.build"),
        ("x_positional.masks", "from .build import build_model", "imports x_positional.build"),
        ("x_positional.backends", "from ..build import build_model", "imports"),
        ("x_positional.backends.sdpa", "from ..build import build_model", "imports x_positional.build"),
        ("x_positional.backends.sdpa", "from x_positional import Decoder", "imports x_positional;"),
        ("x_positional.flags_reader", "from x_positional.build import build_model", "flags may import"),
        ("x_positional.build", "import accelerate", "imports accelerate"),
        ("x_positional.schemes.t5", "from x_positional.schemes.rotary import Rope", "another scheme"),
        ("x_positional.novelty", "", "is not in LAYOUT"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, message: str):
    problems = import_problems(module, SOME | {module: source}, SOME_PACKAGES)
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("x_positional.scheme", "import math\nimport torch.nn.functional as F"),
        ("x_positional.masks", "from x_positional.scheme import NO_TOKEN"),
        ("x_positional.backends", "from .sdpa import Sdpa"),
        ("x_positional.backends.sdpa", "from ..scheme import Bias\nfrom x_positional import masks"),
        ("x_positional.schemes.t5", "from x_positional.schemes.distance import DistanceScheme"),
        ("x_positional.training.engine", "import accelerate\nfrom x_positional import Decoder"),
    ],
)
def test_a_right_import_passes(module: str, source: str):
    assert import_problems(module, SOME | {module: source}, SOME_PACKAGES) == []


def test_a_ring_of_imports_is_found():
    ring = {"p.a": "from p import b", "p.b": "def f():\n    from p.c import x", "p.c": "import p.a"}
    assert set(cycle(ring, set())) == set(ring)
    assert cycle(ring | {"p.c": ""}, set()) == []
