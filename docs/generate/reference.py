"""Renders docs/reference/: the keys of a config file, the command line, and the public names.

Run from the repository root: PYTHONPATH=. python docs/generate/reference.py
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo

import x_positional
from docs.generate._fields import default, field_docs, kind, type_words
from x_positional.cli.app import app
from x_positional.schemes.registry import REGISTRY, SchemeConfig
from x_positional.training.config import TrainConfig

FOLDER = Path(__file__).parents[1] / "reference"

CONFIG = """\
# Config keys

Every key of a training config, as a YAML file holds it and as `x-positional train` takes it (`--model.layers.depth 6`, or
`--depth 6` where that is unambiguous). Only `model` is required. [Training](../training.md) shows how files, options and
defaults combine. This page is generated from the classes that validate a config; `null` is no value.

The settings of each position scheme, under `model.layers.position`, are in [Schemes](../schemes.md).
"""

COMMANDS = """\
# Command line

Generated from the parser of `x-positional`; `x-positional VERB --help` prints the same.

Exit codes: 0 is success, 1 a check or comparison that failed, 2 a mistake in what was given: the message names the value, the
reason and the way out.
"""

OWN = "x_positional"
GROUPS = {
    "models": ("models", "modules", "config.models", "config.vision"),
    "checks": ("config.validate",),
    "schemes": ("schemes",),
    "sampling": ("generation",),
    "pretrained": ("pretrained",),
    "errors": ("errors",),
}
"""Pages, and the folders whose public names are on each."""
MODULES = {
    "checks": f"{OWN}.testing",
    "training": f"{OWN}.training",
    "rotary": f"{OWN}.rotary",
}
"""Pages with the public names of a module besides."""
TITLES = {
    "models": "Models",
    "schemes": "Position schemes",
    "checks": "Checks, before training and of schemes",
    "training": "Training",
    "sampling": "Sampling",
    "pretrained": "Published models",
    "rotary": "Rotary embeddings alone",
    "errors": "Errors",
}


def cell(text: str) -> str:
    """Text in a table."""
    return text.replace("|", "\\|")


def nested(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config classes in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from nested(part)


def sections(config: type[BaseModel], path: str, seen: dict[type[BaseModel], str]) -> None:
    """Every section of the file in order: class -> its path where it first occurs."""
    for name, field in config.model_fields.items():
        for inner in nested(field.annotation):
            if issubclass(inner, SchemeConfig) or inner in seen:
                continue
            seen[inner] = f"{path}.{name}".lstrip(".")
            sections(inner, seen[inner], seen)


def render_config() -> str:
    """The page of keys."""
    found: dict[type[BaseModel], str] = {}
    sections(TrainConfig, "", found)

    def named(config: type[BaseModel]) -> str:
        if issubclass(config, SchemeConfig):
            return "[scheme](../schemes.md)"
        return f"[{config.__name__.removesuffix('Config')}](#{found[config].replace('.', '')})"

    lines = [CONFIG]
    for config, path in {TrainConfig: "", **found}.items():
        docs = field_docs(config)
        lines += [f"## {path or 'Sections'}", "", *([about(config), ""] if path else [])]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for name, field in config.model_fields.items():
            lines.append(f"| `{name}` | {cell(kind(field, named))} | {cell(default(field))} | {cell(docs[name])} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def about(named: Any) -> str:
    """A docstring without its arguments."""
    return inspect.cleandoc(named.__doc__ or "").split("\nArgs:")[0].rstrip()


def first_sentence(named: Any) -> str:
    """The first sentence of a docstring on one line."""
    paragraph = " ".join(about(named).split("\n\n")[0].split())
    return re.split(r"(?<!et al)\. ", paragraph)[0].rstrip(".") + "."


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a verb."""

    name: str
    info: ArgumentInfo | OptionInfo
    kind: Any
    default: Any

    @property
    def is_argument(self) -> bool:
        return isinstance(self.info, ArgumentInfo)

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def names(self) -> list[str]:
        """How an option is written."""
        first = self.info.default if isinstance(self.info.default, str) else None
        if written := [name for name in (first, *(self.info.param_decls or ())) if name]:
            return [part for name in written for part in name.split("/")]
        name = self.name.replace("_", "-")
        return [f"--{name}", f"--no-{name}"] if bool in (self.kind, *get_args(self.kind)) else [f"--{name}"]

    @property
    def value(self) -> str:
        """What it takes: its choices, or its type in capitals; nothing for a switch."""
        if self.info.metavar:
            return self.info.metavar.strip("[].")
        words = type_words(self.kind, lambda config: config.__name__)
        return "" if words == "bool" else words.replace("`", "").replace(", ", "|") if "`" in words else words.upper()

    @property
    def usage(self) -> str:
        """The parameter in the line that shows how a verb is called."""
        if not self.is_argument:
            return f"{self.names[0]} {self.value}"
        value = f"{self.value}..." if "list" in type_words(self.kind, lambda config: config.__name__) else self.value
        return value if self.required else f"[{value}]"

    def line(self) -> str:
        """The parameter in a list, with its meaning and default."""
        if self.is_argument:
            return f"- `{self.value}`: {self.info.help}"
        names = ", ".join(f"`{name}`" for name in self.names)
        return f"- {names}{f' `{self.value}`' if self.value else ''}: {self.info.help}{self.shown_default()}"

    def shown_default(self) -> str:
        """A sentence with the default, unless it is none or the help names it."""
        if self.required:
            return " Required."
        if isinstance(self.info.show_default, str):
            return f" Default: {self.info.show_default}."
        if self.default is None or self.default is False or "efault" in (self.info.help or ""):
            return ""
        return f" Default: {'on' if self.default is True else f'`{self.default}`'}."


def parameters(function: Any) -> list[Parameter]:
    """What a verb takes, from the signature that its parser is made from."""
    defaults, found = inspect.signature(function).parameters, []
    for name, hint in get_type_hints(function, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, info = get_args(hint)[:2]
            found.append(Parameter(name, info, kind, defaults[name].default))
    return found


def render_commands() -> str:
    """The page of the command line."""
    apps = [app, *(group.typer_instance for group in app.registered_groups if group.typer_instance)]
    commands = [verb for one in apps for verb in one.registered_commands if verb.callback]
    verbs = {verb.name or verb.callback.__name__: verb for verb in commands if verb.callback}
    lines = [COMMANDS, "| verb | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {cell(first_sentence(verb.callback))} |" for name, verb in verbs.items()]
    lines.append("")
    for name, verb in verbs.items():
        given = parameters(verb.callback)
        needed = [one.usage for one in given if one.is_argument or one.required]
        call = " ".join(["x-positional", name, *needed, "[OPTIONS]"])
        lines += [
            f"## {name}",
            "",
            about(verb.callback),
            "",
            "```sh",
            call,
            "```",
            "",
            *(one.line() for one in given),
            "",
        ]
        lines += [f"{verb.epilog}", ""] if verb.epilog else []
    return "\n".join(lines).rstrip() + "\n"


def page_of(name: str) -> str:
    """The page of a public name of the package."""
    folder = getattr(x_positional, name).__module__.removeprefix(f"{OWN}.")
    [page] = [page for page, folders in GROUPS.items() if any(f"{folder}.".startswith(f"{part}.") for part in folders)]
    return page


def summary(value: Any) -> str:
    """What a public name is."""
    if isinstance(value, type) and issubclass(value, SchemeConfig) and value in REGISTRY.values():
        return f'`position="{value.model_fields["kind"].default}"`: {value.summary}.'
    return first_sentence(value) if isinstance(value, type) or callable(value) else ""


def render_api(page: str) -> str:
    """A page of public names. The site puts parameters and methods in place of the comments."""
    names = {name: OWN for name in x_positional.__all__ if page_of(name) == page}
    module = MODULES.get(page)
    if module is not None:
        names |= {name: module for name in import_module(module).__all__ if name not in names}
    lines = [f"# API: {TITLES[page]}", ""]
    for name, home in names.items():
        value = getattr(import_module(home), name)
        lines += [f"## {name}", "", f"`from {home} import {name}`", ""]
        lines += [summary(value), "", f"<!-- api: {home}.{name} -->", ""]
    return "\n".join(lines).rstrip() + "\n"


def render() -> dict[str, str]:
    """Every page by its name."""
    pages = {"config.md": render_config(), "command-line.md": render_commands()}
    return pages | {f"api-{page}.md": render_api(page) for page in TITLES}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for page, text in render().items():
        (FOLDER / page).write_text(text)
