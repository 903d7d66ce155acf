"""The notebooks run in their reduced form, and what is stored in them is what their code printed."""

import io
import json
import re
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

from tests.support.doc_pages import ROOT, generator
from tests.support.real_weights import SMOLLM2, weights

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 400_000
FULL_ONLY = "full-only"
"""Tag of a cell that other tests cover and that takes seconds."""
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Source and metadata."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell["metadata"]) for cell in cells]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a notebook with its reduced parameters from an empty folder, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    before, settings = torch.get_rng_state(), plt.rcParams.copy()
    backend = plt.get_backend()
    plt.switch_backend("agg")

    def run(path: Path, **changed: Any) -> str:
        names: dict[str, Any] = {"__name__": "__main__"}
        with redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for number, (source, metadata) in enumerate(code_cells(read(path)), 1):
                if FULL_ONLY in metadata.get("tags", []):
                    continue
                exec(compile(source, f"{path.name}, code cell {number}", "exec"), names)
                names |= {**metadata["reduced"], **changed} if number == 1 else {}
        return printed.getvalue()

    yield run
    plt.close("all")
    plt.rcParams.update(settings)
    plt.switch_backend(backend)
    torch.set_rng_state(before)


@each_notebook
def test_a_notebook_runs_in_its_reduced_form(path: Path, run: Any, request: pytest.FixtureRequest) -> None:
    [(_, metadata), *_] = code_cells(read(path))
    real = {"weights": str(weights(request.config, *SMOLLM2))} if "smollm2" in metadata["tags"] else {}
    assert run(path, **real)


@each_notebook
def test_the_first_code_cell_sets_parameters(path: Path) -> None:
    [(source, metadata), *others] = code_cells(read(path))
    assert metadata["tags"][0] == "parameters"
    names: dict[str, Any] = {}
    exec(source, names)
    assert set(metadata["reduced"]) <= set(names)
    assert all(cell.get("tags", [FULL_ONLY]) == [FULL_ONLY] for _, cell in others)


@each_notebook
def test_stored_outputs_are_those_of_the_code(path: Path) -> None:
    pytest.importorskip("nbclient", reason="the extra notebooks is not installed")
    generate, notebook = generator("notebooks"), generator("notebooks").read(path)
    assert generate.stored_digest(notebook) == generate.digest(notebook), (
        f"run PYTHONPATH=. python docs/generate/notebooks.py {path.stem}"
    )
    kinds = [out["output_type"] for cell in notebook["cells"] for out in cell.get("outputs", [])]
    assert set(kinds) == {"stream", "display_data"}
    assert "stderr" not in {out.get("name") for cell in notebook["cells"] for out in cell.get("outputs", [])}
    assert path.stat().st_size < LARGEST


@each_notebook
def test_pictures_are_described_and_links_lead_to_files(path: Path) -> None:
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            links = LINK.findall("".join(cell["source"]))
            assert [link for link in links if not (path.parent / link).exists()] == []
        else:
            drawn = any("image/png" in output.get("data", {}) for output in cell["outputs"])
            assert drawn == ("alt" in cell["metadata"]), cell["source"]


def test_a_notebook_becomes_a_page() -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    picture = {"output_type": "display_data", "data": {"image/png": "aGk=\n", "text/plain": ["<Figure>"]}}
    printed = {"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}
    notebook = {
        "metadata": {"x_positional": {"seconds": 130}},
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
            {
                "cell_type": "code",
                "source": "f()",
                "metadata": {"alt": "a line"},
                "outputs": [printed, picture],
            },
        ],
    }
    page, pictures = generator("_notebooks").page_of(notebook, "small")
    assert pictures == {"small-1.png": b"hi"}
    title, text, download, code, output, drawn = re.split(r"\n\n|(?<=Title)\n", page.strip())
    assert (title, text, drawn) == ("# Title", "Text.", "![a line](small-1.png)")
    assert "(../assets/notebooks/small.ipynb)" in download
    assert "about 2 minutes" in download
    assert code == "``` python\nf()\n```"
    assert output.endswith("}\n1\n2\n```")
