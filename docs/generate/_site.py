"""Hooks of mkdocs.yml.

- A page in docs/ links to a file outside of it by a relative path, as GitHub needs it. In the site such a file is a page
  below `repository/`, and the link leads there.
- A public name that a page of docs/reference/ lists gets its parameters and methods, by mkdocstrings.
- Nothing is loaded from the network.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
AWAY = "repository"
LINK = re.compile(r"(\]\()((?!https?:|mailto:|#)[^)#\s]+)")
FENCED = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link(?! rel="canonical"))\b[^>]*(?:src|href)="((?:https?:)?//[^"]+)"""
)
API = re.compile(r"## \w+\n\n.*?<!-- api: (\S+) -->", re.DOTALL)
SHIM = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
"""What mkdocs-material loads so that search works in a page opened from a file."""
LOG = logging.getLogger("mkdocs.plugins.site")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}


def prose(text: str) -> str:
    """The text without its code, which may contain what looks like a link."""
    return FENCED.sub("", text)


def outside(source: Path, text: str) -> Iterator[Path]:
    """Files and folders of the repository that a page links to and that are not in docs/."""
    for _, link in LINK.findall(prose(text)):
        target = (source.parent / link).resolve()
        if target.is_relative_to(ROOT) and not target.is_relative_to(DOCS) and target.exists():
            yield target


def address(target: Path) -> str:
    """The page of a file of the repository."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    path = target.relative_to(ROOT).as_posix()
    if target.is_dir():
        return f"{AWAY}/{path}/index.md"
    return f"{AWAY}/{path}" if target.suffix == ".md" else f"{AWAY}/{path}.md"


def source_of(address: str) -> Path:
    """The file or folder of the repository that a page shows."""
    if not address.startswith(f"{AWAY}/"):
        return DOCS / address
    path = ROOT / address.removeprefix(f"{AWAY}/")
    if path.name == "index.md" and not path.exists():
        return path.parent
    return path if path.exists() else path.with_suffix("")


def content(target: Path) -> str:
    """A file as a page: Markdown as it is, a program as a block of code, a folder as a list."""
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir() if path.suffix in LANGUAGES)
        return "\n".join([f"# {target.name}/", "", *(f"- [{name}]({name})" for name in names), ""])
    text = target.read_text("utf-8")
    if target.suffix == ".md":
        return text
    return f"# {target.relative_to(ROOT).as_posix()}\n\n```{LANGUAGES.get(target.suffix, 'text')}\n{text}```\n"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file of the repository that a page links to, and for those that these link to."""
    waiting = [
        target for page in files.documentation_pages() for target in outside(DOCS / page.src_uri, page.content_string)
    ]
    done: set[Path] = set()
    while waiting:
        target = waiting.pop()
        if target in done:
            continue
        done.add(target)
        text = content(target)
        files.append(File.generated(config, address(target), content=text, inclusion=InclusionLevel.NOT_IN_NAV))
        inside = target / "x" if target.is_dir() else target
        waiting += outside(inside, text)
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Lead links to files of the repository to their pages, and document public names."""
    here = page.file.src_uri
    if here.startswith("reference/api-"):
        return API.sub(r"::: \1", markdown)
    source = source_of(here)
    folder = source if source.is_dir() else source.parent

    def led(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        page = address(target) if target.is_relative_to(ROOT) and target.exists() else ""
        if not page.startswith(f"{AWAY}/") and not here.startswith(f"{AWAY}/"):
            return match[0]
        return match[1] + os.path.relpath(page, Path(here).parent) if files.get_file_from_path(page) else match[0]

    parts = FENCED.split(markdown)
    code = FENCED.findall(markdown)
    return "".join(LINK.sub(led, part) + after for part, after in zip(parts, [*code, ""], strict=True))


def local(html: str, url: str) -> str:
    """Take the shim from the site itself, and warn of what is still loaded from the network."""
    html = html.replace(SHIM, f'<script src="{get_relative_url("assets/worker.js", url)}"></script>')
    for loaded in LOADED.findall(html):
        LOG.warning("%s loads %s from the network", url, loaded)
    return html


def on_post_page(output: str, page: Page, config: Any) -> str:
    """See `local`."""
    return local(output, page.url)


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """See `local`."""
    return local(output_content, template_name)
