"""The schemes of a comparison, from their text on the command line to changes of `model.layers`."""

import copy
import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from x_positional.config.models import plain
from x_positional.config.reading import parse_value, read_yaml
from x_positional.errors import ConfigError, XPositionalError, shown
from x_positional.evidence.comparison.results import Entry
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.registry import SchemeConfig

RECIPE_KEYS = ("position", "pattern", "window", "chunk", "keep_first", "attn")
"""What is taken from the layers of a recipe; its sizes are those of the config that is compared."""
NAMED = re.compile(r"([A-Za-z][\w .+()|-]*)=(.+)", re.DOTALL)
PYTHON = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
LONGEST = 40
"""Characters of a label."""
OPEN, CLOSED = "([{", ")]}"


def split_entries(text: str) -> list[str]:
    """The entries of a comma-separated list; commas inside brackets or quotes do not separate."""
    entries, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in OPEN + CLOSED:
            depth += 1 if character in OPEN else -1
        elif character == "," and depth <= 0:
            entries.append("")
            continue
        entries[-1] += character
    return [entry.strip() for entry in entries]


def read_entries(texts: Iterable[str]) -> tuple[list[Entry], list[str]]:
    """The entries that can be read, with unique labels; and why the others cannot."""
    entries: list[Entry] = []
    problems = []
    for text in texts:
        try:
            entry = read_entry(text)
        except (XPositionalError, ValueError, TypeError) as error:
            problems.append(f"{text or 'an empty entry'}: {error}")
            continue
        same = next((known for known in entries if known.layers == entry.layers), None)
        if same is not None:
            problems.append(f"{text}: the same as {same.label!r}; leave one out")
            continue
        entries.append(entry.model_copy(update={"label": _unused(entry.label, {known.label for known in entries})}))
    return entries, problems


def read_entry(text: str) -> Entry:
    """One entry: names joined by `+`, `module:Config`, a YAML mapping, or a recipe file, after an optional `label=`.

    Raises:
        ConfigError: It is none of these. Whether the scheme exists is left to the validation of the whole config.
    """
    named = None if text[:1] in ("{", "[") else NAMED.fullmatch(text)
    label, text = (None, text) if named is None else (named[1].strip(), named[2].strip())
    if not text:
        raise ConfigError("an entry has no scheme; name one, as rope or none")
    if text[0] in "{[":
        layers, module = _layers_of_value(parse_value(text, text)), None
    elif text.endswith((".yaml", ".yml")):
        layers, module = _recipe(Path(text)), None
        label = label or Path(text).stem
    else:
        parts = [_part(part.strip()) for part in text.split("+")]
        modules = {module for _, module in parts if module is not None}
        if len(modules) > 1:
            raise ConfigError(f"schemes of several modules ({', '.join(sorted(modules))}) cannot be in one entry")
        positions = [position for position, _ in parts]
        layers = {"position": positions[0] if len(positions) == 1 else positions}
        module = next(iter(modules), None)
    return Entry(label=label or _shortened(_words(layers)), layers=layers, module=module)


def with_layers(raw: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    """The fields of a training config with the layers of an entry.

    A position replaces those of the config's own `pattern` too, whose windows stay. A pattern replaces the config's position,
    unless a kind of layer has none of its own.
    """
    fields = copy.deepcopy(dict(raw))
    model = fields.get("model")
    layers = model.get("layers") if isinstance(model, dict) else None
    if not isinstance(layers, dict):
        return fields  # validation reports it
    pattern, own = layers.get("pattern"), entry.layers.get("pattern")
    if "position" in entry.layers and own is None and isinstance(pattern, list):
        layers["pattern"] = [
            {key: value for key, value in kind.items() if key != "position"} if isinstance(kind, dict) else kind
            for kind in pattern
        ]
    if isinstance(own, list) and all(isinstance(kind, dict) and "position" in kind for kind in own):
        layers.pop("position", None)  # it would be ignored
    layers.update(copy.deepcopy(entry.layers))
    return fields


def import_module(name: str) -> Any:
    """A module that registers a scheme, also from the current folder. Raises ConfigError."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"cannot import {name}: {type(error).__name__}: {error}") from error


def _part(text: str) -> tuple[Any, str | None]:
    """A name, or a config given by its path in Python: the position, and the module that registers it."""
    if not text:
        raise ConfigError("a scheme is missing beside '+'; write names joined by +, as alibi+rope")
    if not PYTHON.fullmatch(text):
        return text, None
    module, _, path = text.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        if name not in dir(found):
            raise ConfigError(f"{module} has no {path}")
        found = getattr(found, name)
    if isinstance(found, type) and issubclass(found, SchemeConfig):
        found = found()  # pyright: ignore[reportCallIssue]  (a subclass has a default)
    if isinstance(found, SchemeConfig):
        settings = plain(found)
        return (settings["kind"] if len(settings) == 1 else settings), module
    what = "a scheme" if isinstance(found, PositionScheme | type) else shown(found)
    raise ConfigError(
        f"{path} is {what}, which a config file cannot hold; pass a SchemeConfig (a class with `kind` and `build`)"
    )


def _layers_of_value(value: Any) -> dict[str, Any]:
    """A scheme's config, a list of schemes, or fields of `model.layers` -> the latter."""
    if isinstance(value, list) or (isinstance(value, dict) and "kind" in value):
        return {"position": value}
    if isinstance(value, dict) and value:
        return value
    raise ConfigError("an empty mapping changes nothing; name a scheme, as {kind: rope}, or set fields of model.layers")


def _recipe(path: Path) -> dict[str, Any]:
    """What a recipe sets of `model.layers`: positions and what a layer sees."""
    raw = read_yaml(path)
    for section in ("model", "layers"):
        inner = raw.get(section)
        raw = inner if isinstance(inner, dict) else raw
    found = {key: raw[key] for key in RECIPE_KEYS if key in raw}
    if not found:
        raise ConfigError(f"sets none of {', '.join(RECIPE_KEYS)} in model.layers")
    return found


def _words(value: Any, *, inner: bool = False) -> str:
    """Layers, or a scheme's config, in short."""
    if isinstance(value, list):
        return (" | " if any(isinstance(v, dict) and "kind" not in v for v in value) else "+").join(
            _words(v, inner=True) for v in value
        )
    if not isinstance(value, dict):
        return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    if "kind" in value:
        rest = ", ".join(f"{key}={_words(v, inner=True)}" for key, v in value.items() if key != "kind")
        return f"{value['kind']}({rest})" if rest else str(value["kind"])
    shown_first = [_words(value[key], inner=True) for key in ("position", "pattern") if key in value]
    rest_words = [f"{key}={_words(v, inner=True)}" for key, v in value.items() if key not in ("position", "pattern")]
    return " ".join([*shown_first, *rest_words])


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


def _unused(label: str, used: set[str]) -> str:
    numbered = (label if n == 1 else f"{label} #{n}" for n in range(1, len(used) + 2))
    return next(name for name in numbered if name not in used)
