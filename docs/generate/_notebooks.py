"""Hook of mkdocs.yml: notebooks in docs/ as pages of the site, from the outputs that are stored in them.

A notebook becomes Markdown before mkdocs reads it, so that links, contents, search and code look as on every other page, and
nothing is loaded from the network. The notebook itself is beside the page, to download.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

CODE = "``` python"
OUTPUT = "``` { .text .output .no-copy }"


class Notebook(File):
    """A notebook that is a page."""

    def is_documentation_page(self) -> bool:
        return True


def text_of(value: str | list[str]) -> str:
    """A field of a notebook: a text, or its lines."""
    return value if isinstance(value, str) else "".join(value)


def outputs(cell: dict[str, Any], name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """The outputs of a code cell as Markdown; its pictures are added to `pictures` by file name."""
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            picture = f"{name}-{len(pictures) + 1}.png"
            pictures[picture] = base64.b64decode(text_of(data["image/png"]))
            yield f"![{cell['metadata']['alt']}]({picture})"
        else:
            shown = text_of(output.get("text") or data.get("text/plain", "")).rstrip("\n")
            yield f"{OUTPUT}\n{shown}\n```"


def page_of(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """The page in Markdown, and its pictures by file name."""
    pictures: dict[str, bytes] = {}
    parts = []
    for cell in notebook["cells"]:
        source = text_of(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"{CODE}\n{source}\n```", *outputs(cell, name, pictures)]
    parts.insert(1, download(notebook, name))
    return "\n\n".join(parts) + "\n", pictures


def download(notebook: dict[str, Any], name: str) -> str:
    """The line below the first cell."""
    took = max(1, round(notebook["metadata"]["x_positional"]["seconds"] / 60))
    needs = "`pip install 'x-positional[notebooks]'`"
    return (
        f"[Download this notebook](../assets/notebooks/{name}.ipynb). It needs {needs}, and takes about "
        f"{took} {'minute' if took == 1 else 'minutes'} of CPU time."
    )


def on_files(files: Files, config: Any) -> Files:
    """Replace each notebook by its page."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name, folder = PurePosixPath(file.src_uri).stem, PurePosixPath(file.src_uri).parent
        page, pictures = page_of(json.loads(file.content_string), name)
        files.remove(file)
        files.append(Notebook.generated(config, file.src_uri, content=page))
        files.append(File.generated(config, f"assets/notebooks/{name}.ipynb", content=file.content_bytes))
        for picture, content in pictures.items():
            files.append(File.generated(config, (folder / picture).as_posix(), content=content))
    return files
