"""The layout of the package in numbers: modules, imports, functions. Reads source alone, so any checkout can be measured."""

import ast
import graphlib
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "x_positional"
ONE_FILE_AN_ITEM = ("schemes", "pretrained/families")
"""Folders, relative to the package, that hold one file for each scheme or family: as many as there are."""
Graph = dict[str, set[str]]


def module_name(path: Path, root: Path) -> str:
    """ROOT/x_positional/attention/backends/sdpa.py -> x_positional.attention.backends.sdpa"""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source: str, module: str, packages: set[str]) -> Iterator[tuple[int, str, str | None]]:
    """(line, module imported from, name imported or None) of every import, lazy ones too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".") if module in packages else module.split(".")[:-1]
            start = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*start, node.module] if node.module else start)
            yield from ((node.lineno, origin, alias.name) for alias in node.names)


def imports(source: str, module: str, modules: set[str], packages: set[str]) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import: a lazy import points the same way as any other."""
    for line, origin, name in imported_names(source, module, packages):
        submodule = f"{origin}.{name}"
        yield line, submodule if submodule in modules else origin


def import_graph(sources: dict[str, str], packages: set[str]) -> Graph:
    """Module -> modules of the package that it imports."""
    names = set(sources)
    return {name: {to for _, to in imports(text, name, names, packages)} & names for name, text in sources.items()}


def ring(graph: Graph) -> list[str]:
    """Nodes that reach each other in a ring, or []."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def longest_chain(graph: Graph) -> list[str]:
    """The longest path, from the node that imports to the one that is imported. The graph must have no ring."""
    chains: dict[str, list[str]] = {}
    for node in graphlib.TopologicalSorter(graph).static_order():
        below = max((chains[to] for to in graph.get(node, ())), key=len, default=[])
        chains[node] = [node, *below]
    return max(chains.values(), key=len)


def used_names(source: str) -> set[str]:
    """Names that a module reads itself; a name it only imports, or lists in `__all__`, is re-exported and not used."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)} - {"__all__"}


def function_lengths(tree: ast.Module) -> Iterator[tuple[int, int, str]]:
    """(line, lines below the docstring, name) of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            yield node.lineno, (node.end_lineno or node.lineno) - first.lineno + 1, node.name


def format_skips(source: str) -> int:
    """Comments that keep the formatter out."""
    if "fmt:" not in source:
        return 0
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(bool(re.match(r"#\s*fmt:\s*(skip|off)", t.string)) for t in tokens if t.type == tokenize.COMMENT)


@dataclass(frozen=True)
class House:
    """One checkout of the repository."""

    root: Path

    @cached_property
    def sources(self) -> dict[str, str]:
        """Module name -> source of every module of the package."""
        files = sorted((self.root / PACKAGE).rglob("*.py"))
        return {module_name(path, self.root): path.read_text("utf-8") for path in files}

    @cached_property
    def packages(self) -> set[str]:
        """Modules that are an `__init__.py`."""
        return {module_name(path, self.root) for path in (self.root / PACKAGE).rglob("__init__.py")}

    def root_entries(self) -> list[str]:
        """Files and folders at the root of the package; `__init__.py` and `py.typed` do not count."""
        skipped = {"__init__.py", "py.typed", "__pycache__"}
        return sorted(path.name for path in (self.root / PACKAGE).iterdir() if path.name not in skipped)

    def folder_sizes(self) -> dict[str, int]:
        """Modules in each folder, `__init__.py` not counted, without the folders that hold one file an item."""
        sizes: dict[str, int] = {}
        for name in set(self.sources) - self.packages:
            folder = "/".join(name.split(".")[1:-1]) or "."
            sizes[folder] = sizes.get(folder, 0) + 1
        return {folder: size for folder, size in sorted(sizes.items()) if folder not in ONE_FILE_AN_ITEM}

    @cached_property
    def files(self) -> Graph:
        """The graph of modules."""
        return import_graph(self.sources, self.packages)

    def folders(self) -> Graph:
        """The graph of what stands at the package root: each folder or file, and the root `__init__` itself."""
        graph: Graph = {}
        for name, targets in self.files.items():
            here = ".".join(name.split(".")[:2])
            graph.setdefault(here, set()).update({".".join(to.split(".")[:2]) for to in targets} - {here})
        return graph

    @cached_property
    def importers(self) -> Graph:
        """Module -> modules that import it. A re-export in an `__init__` is no importer: what is imported through it
        counts for the module that defines the name."""
        exported = {
            package: {name: origin for _, origin, name in imported_names(self.sources[package], package, self.packages)}
            for package in self.packages
        }
        used = {package: used_names(self.sources[package]) for package in self.packages}
        found: Graph = {name: set() for name in self.sources}
        for module, text in self.sources.items():
            for _, origin, name in imported_names(text, module, self.packages):
                last = name or origin.rpartition(".")[2]
                if module in self.packages and last not in used[module]:
                    continue
                target = self._definer(origin, name, exported)
                if target in found and target != module:
                    found[target].add(module)
        return found

    def _definer(self, origin: str, name: str | None, exported: dict[str, dict[str | None, str]]) -> str:
        """The module that defines `name`, which is imported from `origin`."""
        while f"{origin}.{name}" not in self.sources and name in exported.get(origin, {}) and name is not None:
            if exported[origin][name] == origin:
                break
            origin = exported[origin][name]
        submodule = f"{origin}.{name}"
        return submodule if submodule in self.sources else origin

    def path(self, module: str) -> str:
        """x_positional.config.flags.reader -> config/flags/reader.py"""
        return "/".join(module.split(".")[1:]) + ".py"

    def single_importers(self) -> dict[str, str]:
        """Path of a module -> the only module that imports it, without the folders that hold one file an item."""
        return {
            self.path(name): next(iter(importers))
            for name, importers in self.importers.items()
            if len(importers) == 1 and name not in self.packages and not self._is_item(name)
        }

    def single_importer_items(self) -> int:
        """Schemes and families with a single importer, their table."""
        found = (name for name, importers in self.importers.items() if len(importers) == 1 and self._is_item(name))
        return sum(1 for _ in found)

    def _is_item(self, module: str) -> bool:
        return "/".join(module.split(".")[1:-1]) in ONE_FILE_AN_ITEM and module not in self.packages

    def small_single_importers(self, limit: int = 60) -> dict[str, int]:
        """Path -> lines of the modules below `limit` lines that have a single importer."""
        lines = {self.path(name): text.count("\n") for name, text in self.sources.items()}
        return {path: lines[path] for path in self.single_importers() if lines[path] < limit}

    def skips(self) -> dict[str, int]:
        """Path -> how often the formatter is kept out, in every Python file of the repository."""
        hidden = {"build", "dist"}
        found = {}
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).parts
            if not any(part.startswith(".") or part in hidden for part in parts):
                found["/".join(parts)] = format_skips(path.read_text("utf-8"))
        return {path: count for path, count in found.items() if count}

    def functions(self) -> list[tuple[int, str]]:
        """(lines below the docstring, path: name) of every function of the package, longest first."""
        lengths = (
            (length, f"{self.path(module)}: {name}")
            for module, text in self.sources.items()
            for _, length, name in function_lengths(ast.parse(text))
        )
        return sorted(lengths, reverse=True)

    def median_function(self) -> float:
        """Lines below the docstring."""
        return statistics.median(length for length, _ in self.functions())
