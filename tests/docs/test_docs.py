"""What the documentation shows runs, links lead somewhere, and generated pages are up to date."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks.evidence.store import read
from tests.support.doc_pages import ROOT, generator
from x_positional.cli.app import app
from x_positional.schemes.registry import REGISTRY

SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
SHOWN = {
    "README.md": "loss",
    "docs/adding-a-scheme.md": "GaussianWindow",
    "docs/evaluate.md": "found",
    "docs/compare.md": "result",
    "docs/generation.md": "tokens",
    "docs/layers.md": "logits",
    "docs/migration.md": "ours",
    "docs/validator.md": "report",
}
"""Pages whose Python blocks are one program, and a name that it defines; other pages are run by tests of their own."""
HOW_TO = [page.relative_to(ROOT).as_posix() for page in sorted(ROOT.glob("docs/how-to/*.md"))]
"""Pages of one job each. Their Python blocks are one program that prints what it shows."""
NEEDS = {"docs/how-to/lm-eval.md": "lm_eval"}
"""Packages that the tests do without."""
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"]


@pytest.mark.parametrize("page", [*SHOWN, *HOW_TO])
def test_snippets_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snippets = SNIPPET.findall((ROOT / page).read_text())
    assert snippets
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], reason=f"{NEEDS[page]} is not installed, so {page} is not run")
    name = f"snippets_of_{Path(page).stem.replace('-', '_').lower()}"  # a module, so that its classes can be pickled
    (tmp_path / f"{name}.py").write_text("\n".join(snippets))
    monkeypatch.syspath_prepend(tmp_path)
    if page in (*HOW_TO, "docs/compare.md"):
        monkeypatch.chdir(tmp_path)  # pages write folders
    known = dict(REGISTRY)
    try:
        module = importlib.import_module(name)
    finally:
        for extra in set(REGISTRY) - set(known):
            del REGISTRY[extra]
    assert SHOWN.get(page, "torch") in vars(module)
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


def test_scheme_pages_are_up_to_date() -> None:
    schemes = generator("schemes")
    assert (ROOT / "docs" / "schemes.md").read_text() == schemes.render(), "run make docs"
    readme = (ROOT / "README.md").read_text()
    assert readme == schemes.render_readme(readme), "run make docs"
    pages, folder = schemes.render_pages(read()), ROOT / "docs" / "schemes"
    assert {path.name for path in folder.iterdir()} == set(pages)
    assert [name for name, text in pages.items() if (folder / name).read_text() != text] == [], "run make docs"


def test_evidence_page_is_up_to_date() -> None:
    evidence = generator("evidence")
    measured, readme = evidence.read(), (ROOT / "README.md").read_text()
    assert (ROOT / "docs" / "evidence.md").read_text() == evidence.render(measured), "run make docs"
    assert readme == evidence.render_readme(readme, measured), "run make docs"


def test_performance_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "performance.md").read_text() == generator("performance").render(), "run make docs"


def test_the_reference_has_every_verb_of_the_command_line() -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(get_command(app).commands)  # type: ignore[attr-defined]


def test_reference_pages_are_up_to_date() -> None:
    pages = generator("reference").render()
    folder = ROOT / "docs" / "reference"
    assert {path.name for path in folder.iterdir()} == set(pages)
    assert [name for name, text in pages.items() if (folder / name).read_text() != text] == [], "run make docs"
