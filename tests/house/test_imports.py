"""Imports go one way: LAYOUT says what each folder of the package may import; inside a folder no circle.

Each finding is a function of source text, and is itself tested on snippets that it must reject.
"""

import ast
import sys
from pathlib import Path

import pytest

from tests.house.measure import PACKAGE, House, import_graph, imports, ring

pytestmark = pytest.mark.quick
HOUSE = House(Path(__file__).parents[2])

LAYOUT = {
    # What a folder of the package may import from other folders, from the ground up, as docs/architecture.md draws it.
    "errors": "",
    "progress": "",
    "schemes": "errors",
    "attention": "errors schemes",
    "modules": "errors schemes attention",
    "generation": "errors schemes attention",
    "config": "errors schemes attention modules",
    "models": "errors schemes attention modules generation config",
    "pretrained": "errors schemes attention modules generation config models",
    "hf": "errors schemes attention modules generation config models pretrained",
    "rotary": "errors schemes",
    PACKAGE: "errors schemes attention modules generation config models pretrained",  # __init__.py: the public names
    "testing": "errors schemes attention modules generation config models",
    "training": "errors progress schemes attention modules generation config models pretrained",
    "plotting": "errors progress schemes attention modules generation config models",
    "evidence": "errors progress schemes attention modules generation config models pretrained training plotting rotary "
    + PACKAGE,
    "cli": "errors progress schemes attention modules generation config models pretrained testing training plotting evidence",
}

BASE = {"torch", "einops", "pydantic", "typing_extensions", "yaml", "safetensors", "rich"}  # always installed
TENSORS = {"torch", "einops", "typing_extensions"}
THIRD_PARTY = {
    "errors": set(),
    "progress": {"rich", "typing_extensions"},
    "attention": TENSORS,
    "modules": TENSORS,
    "generation": TENSORS,
    "training": BASE
    | {"accelerate", "datasets", "filelock", "huggingface_hub", "matplotlib", "numpy", "tensorboard", "tokenizers"},
    "plotting": BASE | {"matplotlib"},
    "evidence": BASE | {"numpy", "lm_eval", "altair", "vl_convert", "jinja2"},
    "pretrained": BASE | {"huggingface_hub", "gguf", "tokenizers", "jinja2", "peft"},
    "hf": BASE | {"transformers"},
    "cli": BASE | {"typer", "click"},
}

BASES = f"{PACKAGE}.schemes.registry"  # the base of all configs, and `custom`, which is no scheme of ours


SOURCES, PACKAGES = HOUSE.sources, HOUSE.packages


def folder(module: str) -> str:
    """The line of LAYOUT that a module of the package belongs to."""
    return [*module.split("."), PACKAGE][1]


def registers_a_scheme(source: str) -> bool:
    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    return any(isinstance(base, ast.Name) and base.id == "SchemeConfig" for node in classes for base in node.bases)


def import_problems(module: str, sources: dict[str, str], packages: set[str]) -> list[str]:
    """Imports of one module that the layout does not allow."""
    own = folder(module)
    if own not in LAYOUT:
        return [f"{module} is not in LAYOUT: add a line that says what {own!r} may import"]
    third_party = THIRD_PARTY.get(own, BASE)
    problems = []
    for line, target in imports(sources[module], module, set(sources), packages):
        top = target.split(".")[0]
        if top != PACKAGE:
            if top not in third_party and top not in sys.stdlib_module_names:
                problems.append(f"{module}:{line} imports {target}; {own} may use {', '.join(sorted(third_party))}")
        elif folder(target) != own:
            if folder(target) not in LAYOUT[own].split():
                problems.append(f"{module}:{line} imports {target}; {own} may import: {LAYOUT[own] or 'nothing'}")
        elif own == "schemes" and module not in packages and registers_a_scheme(sources[target]) and target != BASES:
            problems.append(f"{module}:{line} imports {target}, another scheme; only shared bases may be imported")
    return problems


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_one_way(module: str):
    assert import_problems(module, SOURCES, PACKAGES) == []


def test_no_import_cycle():
    assert ring(HOUSE.files) == []


def test_no_cycle_of_folders():
    assert ring(HOUSE.folders()) == []
    assert ring({own: set(allowed.split()) for own, allowed in LAYOUT.items()}) == []


def test_layout_names_exactly_the_folders_there_are():
    assert set(LAYOUT) == {folder(module) for module in SOURCES}


SOME = {
    "x_positional": "",
    "x_positional.schemes.base": "class PositionScheme: ...\n",
    "x_positional.schemes.rope": "class Rope(SchemeConfig): ...\n",
    "x_positional.schemes.distance": "class DistanceScheme(PositionScheme): ...\n",
    "x_positional.schemes.t5": "",
    "x_positional.attention.masks": "",
    "x_positional.attention.backends": "",
    "x_positional.attention.backends.sdpa": "",
    "x_positional.config.flags": "",
    "x_positional.models.build": "",
    "x_positional.training.engine": "",
    "x_positional.novelty": "",
}
SOME_PACKAGES = {"x_positional", "x_positional.attention.backends", "x_positional.config.flags"}


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("x_positional.schemes.base", "from x_positional.attention.masks import causal", "schemes may import: errors"),
        (
            "x_positional.attention.masks",
            "import pydantic",
            "imports pydantic; attention may use einops, torch, typing_extensions",
        ),
        (
            "x_positional.schemes.base",
            "def f():\n    from x_positional.models import build",
            "imports x_positional.models.b",
        ),
        ("x_positional.attention.masks", "import x_positional.models.build", "imports x_positional.models.build"),
        ("x_positional.attention.masks", "from ..models.build import build_model", "imports x_positional.models.build"),
        ("x_positional.attention.backends", "from ...models.build import f", "imports x_positional.models.build"),
        ("x_positional.attention.backends.sdpa", "from ...models.build import f", "imports x_positional.models.build"),
        ("x_positional.attention.backends.sdpa", "from x_positional import Decoder", "imports x_positional;"),
        ("x_positional.config.flags", "from x_positional.models.build import build_model", "config may import"),
        ("x_positional.models.build", "import accelerate", "imports accelerate"),
        ("x_positional.schemes.t5", "from x_positional.schemes.rope import Rope", "another scheme"),
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
        ("x_positional.schemes.base", "import math\nimport torch.nn.functional as F"),
        ("x_positional.attention.masks", "from x_positional.schemes.base import NO_TOKEN"),
        ("x_positional.attention.backends", "from .sdpa import Sdpa"),
        (
            "x_positional.attention.backends.sdpa",
            "from ..masks import causal\nfrom x_positional.attention import masks",
        ),
        ("x_positional.schemes.t5", "from x_positional.schemes.distance import DistanceScheme"),
        ("x_positional.training.engine", "import accelerate\nfrom x_positional.models.build import build"),
    ],
)
def test_a_right_import_passes(module: str, source: str):
    assert import_problems(module, SOME | {module: source}, SOME_PACKAGES) == []


def test_a_ring_of_imports_is_found():
    circle = {"p.a": "from p import b", "p.b": "def f():\n    from p.c import x", "p.c": "import p.a"}
    assert set(ring(import_graph(circle, set()))) == set(circle)
    assert ring(import_graph(circle | {"p.c": ""}, set())) == []
