"""The rules of layout: how many entries, modules and floors, and what is too small to stand alone.

`python -m tests.house` prints the numbers.
"""

import ast
from pathlib import Path

import pytest

from tests.house.measure import House, format_skips, function_lengths, longest_chain, ring

pytestmark = pytest.mark.quick
HOUSE = House(Path(__file__).parents[2])
MAX_ROOT, MAX_FOLDER, MAX_FLOORS, MAX_SKIPS, SMALL = 16, 16, 10, 20, 60
MAX_SINGLE = 1 / 5  # of all modules

REASONS: dict[str, str] = {
    "cli/finetune.py": "one file a command",
    "cli/main.py": "the entry point: imports nothing that an extra brings, so that it can report a missing one",
    "modules/pooling.py": "attention over patches; patches.py has pixels and tables",
    "training/loop/sharding.py": "imports torch.distributed, which is imported only where a model is sharded",
}
"""Modules below SMALL lines with a single importer, and why each stands alone."""


def test_package_root_is_read_at_a_glance():
    entries = HOUSE.root_entries()
    assert len(entries) <= MAX_ROOT, entries


@pytest.mark.parametrize(("folder", "size"), HOUSE.folder_sizes().items())
def test_a_folder_holds_few_modules(folder: str, size: int):
    assert size <= MAX_FOLDER


def test_folders_stand_on_few_floors():
    chain = longest_chain(HOUSE.folders())
    assert len(chain) <= MAX_FLOORS, chain


def test_few_modules_serve_a_single_other():
    single = HOUSE.single_importers()
    assert len(single) <= MAX_SINGLE * len(HOUSE.sources), f"merge some into their importer: {single}"


def test_a_small_module_with_a_single_importer_has_a_reason():
    small, importers = HOUSE.small_single_importers(SMALL), HOUSE.single_importers()
    missing = {path: f"{small[path]} lines, for {importers[path]}" for path in small.keys() - REASONS.keys()}
    assert missing == {}, "merge each into its importer, or give a reason in REASONS"
    assert REASONS.keys() - small.keys() == set(), "these need no reason any more"


def test_the_formatter_owns_layout():
    assert sum(HOUSE.skips().values()) <= MAX_SKIPS, HOUSE.skips()


SOME = {
    "__init__.py": "from x_positional.schemes import Rope\n",
    "errors.py": "",
    "schemes/__init__.py": "from x_positional.schemes.rope import Rope\nfrom x_positional.schemes import t5\n__all__ = ['Rope']\n",
    "schemes/rope.py": "from x_positional.errors import E\nclass Rope: ...\n",
    "schemes/t5.py": "from x_positional.errors import E\n",
    "models/__init__.py": "",
    "models/build.py": "from x_positional.schemes import Rope\nfrom x_positional.models import tiny\n",
    "models/head.py": "from x_positional.schemes import Rope\n",
    "models/tiny.py": "x = [  # fmt: skip\n]\ny = '# fmt: skip'\n",
    "pretrained/__init__.py": "from x_positional.pretrained import one\nALL = [one.IT]\n",
    "pretrained/one.py": "IT = 1\n" * 80,
}


@pytest.fixture
def house(tmp_path: Path) -> House:
    for name, text in SOME.items():
        file = tmp_path / "x_positional" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return House(tmp_path)


def test_what_a_small_house_measures(house: House):
    assert house.root_entries() == ["errors.py", "models", "pretrained", "schemes"]
    assert house.folder_sizes() == {".": 1, "models": 3, "pretrained": 1}
    assert house.skips() == {"x_positional/models/tiny.py": 1}
    assert longest_chain(house.folders())[-2:] == ["x_positional.schemes", "x_positional.errors"]
    assert len(longest_chain(house.folders())) == 3


def test_a_re_export_is_no_importer_and_is_looked_through(house: House):
    assert house.importers["x_positional.schemes.rope"] == {"x_positional.models.build", "x_positional.models.head"}
    assert house.importers["x_positional.schemes.t5"] == set()


def test_an_init_that_uses_what_it_imports_is_an_importer(house: House):
    assert house.single_importers() == {
        "models/tiny.py": "x_positional.models.build",
        "pretrained/one.py": "x_positional.pretrained",
    }
    assert house.small_single_importers() == {"models/tiny.py": 3}


def test_a_ring_is_found_and_has_no_longest_chain():
    assert set(ring({"a": {"b"}, "b": {"a"}})) == {"a", "b"}
    assert longest_chain({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ["a", "b", "c"]


def test_functions_are_measured_below_the_docstring():
    tree = ast.parse("def f():\n    'Doc.'\n    x = 1\n    return x\n\ndef g(): ...\n")
    assert list(function_lengths(tree)) == [(1, 2, "f"), (6, 1, "g")]


@pytest.mark.parametrize(
    ("source", "count"), [("x = 1  # fmt: skip\n", 1), ("# fmt: off\n# fmt: on\n", 1), ("'# fmt: off'\n", 0)]
)
def test_only_comments_keep_the_formatter_out(source: str, count: int):
    assert format_skips(source) == count
