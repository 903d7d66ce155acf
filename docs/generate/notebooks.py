"""Runs the notebooks of docs/notebooks and stores their outputs.

Run from the repository root: PYTHONPATH=. python docs/generate/notebooks.py [--changed] [NAME ...]
--changed leaves out those whose code is what it was when their outputs were stored.
"""

import hashlib
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
LIMIT = 1200
"""Seconds for one cell."""


def digest(notebook: Any) -> str:
    """Of the code that the stored outputs come from."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def stored_digest(notebook: Any) -> str | None:
    """The digest of the code when it was last run."""
    return notebook["metadata"].get("x_positional", {}).get("code")


def read(path: Path) -> Any:
    """A notebook in the newest format."""
    return nbformat.read(path, as_version=4)


def cpu_seconds() -> float:
    """CPU time of all processes that have ended: a busy machine does not change it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def execute(path: Path) -> None:
    """Run one notebook from an empty folder and store its outputs."""
    notebook = read(path)
    started = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=LIMIT,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    seconds = round(cpu_seconds() - started)
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "x_positional": {"code": digest(notebook), "seconds": seconds},
    }
    nbformat.write(notebook, path)
    print(f"{path.name}: {seconds} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


def main(names: list[str], changed: bool) -> None:
    """Run the notebooks with these names; all of them without any."""
    paths = [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        notebook = read(path)
        if not changed or stored_digest(notebook) != digest(notebook):
            execute(path)


if __name__ == "__main__":
    main([word for word in sys.argv[1:] if word != "--changed"], "--changed" in sys.argv[1:])
