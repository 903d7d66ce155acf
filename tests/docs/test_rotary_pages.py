"""The pages on rotary schemes: code runs and prints what its comments show; YAML, Python and config.json are equivalent."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from x_positional.pretrained.rope import from_hf
from x_positional.schemes.registry import scheme_config

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "rotary").glob("*.md"))
OTHERS = [ROOT / "docs" / "plot.md", ROOT / "docs" / "axes.md"]
VARIANTS = [page for page in PAGES if page.stem != "index"]
NO_FORM = {"ntk", "ntk_by_parts", "xpos", "polar", "axial", "mixed", "learned"}
"""Pages of schemes without a Hugging Face form."""
PROMISE = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def run(page: Path) -> tuple[dict[str, Any], str]:
    """Run all Python of a page in order; its names and its output."""
    names: dict[str, Any] = {"__name__": page.stem}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n".join(blocks(page, "python")), str(page), "exec"), names)
    return names, out.getvalue()


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.stem)
def test_code_runs_and_prints_what_its_comments_show(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(page, "python"))
    _, out = run(page)
    promises = PROMISE.findall(code)
    assert out
    assert [line for line in out.splitlines() if line in promises] == promises


@pytest.mark.parametrize("page", VARIANTS, ids=lambda page: page.stem)
def test_yaml_python_and_config_json_are_equivalent(page: Path):
    names, _ = run(page)
    [written] = blocks(page, "yaml")
    assert scheme_config(yaml.safe_load(written)["position"]) == names["position"]
    files = blocks(page, "json")
    assert bool(files) == (page.stem not in NO_FORM)
    for file in files:
        assert from_hf(json.loads(file)) == names["position"]


@pytest.mark.parametrize("page", VARIANTS, ids=lambda page: page.stem)
def test_a_page_is_short_and_has_every_part(page: Path):
    text = page.read_text("utf-8")
    parts = (
        "Formula.",
        "When to use it.",
        "Cost.",
        "Past the trained length.",
        "Usage.",
        "In a `config.json`.",
        "Source.",
    )
    places = [text.index(f"**{part}**") for part in parts]
    assert places == sorted(places)
    assert len(text.splitlines()) < 80
    assert "arXiv:" in text[places[-1] :] or "code" in text[places[-1] :]
    index = (ROOT / "docs" / "rotary" / "index.md").read_text("utf-8")
    assert f"[{page.stem}]({page.name})" in index
