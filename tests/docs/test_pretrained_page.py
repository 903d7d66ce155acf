"""The page on published models: its code runs and prints what it says, its list is that of the tables, its commands exist."""

import contextlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer

from x_positional.cli.app import app
from x_positional.pretrained import FAMILIES
from x_positional.pretrained.families import NESTED
from x_positional.pretrained.gguf.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pretrained.md"
TEXT = PAGE.read_text("utf-8")
PROMISE = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def families() -> Iterator[None]:
    """The page adds a family of its own; it is taken out again."""
    known, state = dict(FAMILIES), torch.get_rng_state()
    yield
    FAMILIES.clear()
    FAMILIES.update(known)
    torch.set_rng_state(state)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_pretrained", ROOT / "docs" / "generate" / "pretrained.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_runs_and_prints_what_it_says(families: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, out = "\n".join(blocks("python")), io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})
    promises = PROMISE.findall(code)
    assert len(promises) >= 9
    assert out.getvalue().splitlines() == promises


def test_the_adapter_is_as_short_as_it_says():
    [adapter] = [block for block in blocks("python") if "NANOGPT = Family" in block]
    body = adapter.split("NANOGPT = ")[1].split("FAMILIES[")[0]
    assert len(body.splitlines()) <= 30


def test_the_list_of_families_is_that_of_the_tables():
    assert generator().render(TEXT) == TEXT, "run make docs"
    for name in [*FAMILIES, *NESTED]:
        assert f"`{name}`" in TEXT
    for architecture in ARCHITECTURES.values():
        assert architecture.model_type in FAMILIES
        assert (
            f"| `{architecture.model_type}` | `{FAMILIES[architecture.model_type].architecture}` | `{architecture.name}` |"
            in TEXT
        )


def test_commands_and_their_options_exist():
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("x-positional ")]
    assert {shlex.split(line)[1] for line in shown} == {"generate", "convert", "verify"}
    for line in shown:
        _, name, *arguments = shlex.split(line, comments=True)
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known
    for script in re.findall(r"python (examples/\S+)", TEXT):
        assert (ROOT / script).is_file()
