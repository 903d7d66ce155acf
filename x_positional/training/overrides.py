"""Dotted overrides of a config: whole paths, and short ones as long as they are unambiguous.

OmegaConf and tyro would replace half of this: neither accepts short names (`lr`), opens a scheme given by name
(`position: rope`) into a section, or answers an unknown name with the nearest, and each adds a dependency.
"""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, get_args

from pydantic import BaseModel

from x_positional.config.reading import parse_value
from x_positional.errors import ConfigError, UserError, listed, shown
from x_positional.schemes.registry import REGISTRY
from x_positional.schemes.suggest import paths, section_at
from x_positional.schemes.values import bound_problems

Path = tuple[str, ...]
CLOSE = 0.6
"""Likeness from which a path is suggested."""


def override(schema: type[BaseModel], raw: dict[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Sets each override in `raw`; returns a message for each that cannot be set."""
    problems = []
    for name, value in overrides.items():
        written = tuple(name.split("."))
        found = resolve(schema, written)
        if len(found) == 1:
            problems += place(raw, found[0], value)
        elif found:
            problems.append(f"{name} could be {' or '.join('.'.join(path) for path in found)}; use one of them.")
        else:
            problems.append(f"{name} is unknown; {hint(schema, written)}")
    return problems + bound_problems(raw)


def resolve(schema: type[BaseModel], written: Path) -> list[Path]:
    """The paths that `written` can mean: itself, or the ones it shortens by leaving out sections.

    `model.depth` means `model.layers.depth` and `lr` means `optimizer.lr`. The path that leaves out the fewest sections
    wins; several are returned only when that does not decide. A path below a field without sections
    (`model.layers.position.theta`) is returned unchanged.
    """
    known = list(paths(schema))
    if written in known or _below_a_leaf(known, written):
        return [written]
    meant = [path for path in known if path[-1] == written[-1] and _shortens(written, path)]
    shortest = min((len(path) for path in meant), default=0)
    return [path for path in meant if len(path) == shortest]


def hint(schema: type[BaseModel], written: Path) -> str:
    """`did you mean a?` with the most similar path. Inside a position scheme, names are those of all registered schemes."""
    known = list(paths(schema))
    if _below_a_leaf(known, written):
        known = [(*written[:-1], name) for config in REGISTRY.values() for name in config.model_fields]
    best = max(known, key=lambda path: _likeness(written, path))
    if _likeness(written, best) >= CLOSE:
        return f"did you mean {'.'.join(best)}?"
    return "x-positional train CONFIG --print-config shows all names."


def place(raw: dict[str, Any], path: Path, value: Any) -> list[str]:
    """Sets `raw[path[0]][path[1]]… = value`, adding sections as needed; returns why it cannot.

    A position scheme given by name becomes a section when something inside it is set, and the only entry of a list is
    meant without its number: `position: rope` and `position.theta` give `{kind: rope, theta: …}`. A number selects an
    entry of a list.
    """
    here: Any = raw
    for index, part in enumerate(path[:-1]):
        key: Any = int(part) if isinstance(here, list) else part
        inner = _opened(None if isinstance(here, dict) and key not in here else here[key], path[index + 1])
        if not isinstance(inner, dict) and not (isinstance(inner, list) and _is_index(inner, path[index + 1])):
            return [f"{'.'.join(path)} cannot be set: {'.'.join(path[: index + 1])} is {shown(inner)}"]
        here[key] = inner
        if isinstance(inner, list) and not _is_number(path[index + 1]):
            inner[0] = inner = _opened(inner[0], path[index + 1])
            if not isinstance(inner, dict):
                return [f"{'.'.join(path)} cannot be set: {'.'.join(path[: index + 1])} is [{shown(inner)}]"]
        here = inner
    here[int(path[-1]) if isinstance(here, list) else path[-1]] = value
    return []


def _likeness(written: Path, path: Path) -> float:
    """1 is equal. The last parts count more than the whole; a name that is a prefix of another one is close to it."""
    last = SequenceMatcher(None, written[-1], path[-1]).ratio()
    if len(written[-1]) > 2 and path[-1].startswith(written[-1]):
        last = max(last, 0.95)
    return 0.75 * last + 0.25 * SequenceMatcher(None, written, path).ratio()


def _below_a_leaf(known: list[Path], written: Path) -> bool:
    leaves = [path for path in known if not any(other[:-1] == path for other in known)]
    return any(written[: len(path)] == path and len(written) > len(path) for path in leaves)


def _shortens(written: Path, path: Path) -> bool:
    """Whether `written` is `path` with some parts left out, in the same order."""
    rest = iter(path)
    return all(part in rest for part in written)


def _opened(value: Any, inside: str) -> Any:
    """`value` as something that `inside` can be set in: None becomes an empty section, a name becomes a scheme."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = {"kind": value}
    return [value] if _is_number(inside) and isinstance(value, dict) else value


def _is_index(items: list[Any], part: str) -> bool:
    return int(part) < len(items) if _is_number(part) else len(items) == 1


def _is_number(part: str) -> bool:
    """An index of a list, as no name of a field is."""
    return part.isascii() and part.isdecimal() and len(part) < 10


def parse_overrides(arguments: Sequence[str], schema: type[BaseModel] | None = None) -> dict[str, Any]:
    """Name -> value, the values read as YAML (numbers, true, null, lists and mappings in quotes).

    A name that is followed by nothing or by another option is a switch and means true; with a `schema`, only where its field
    can be true. Raises `UserError` with every argument that cannot be read.
    """
    values: dict[str, Any] = {}
    problems = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--") or argument == "--":
            problems.append(f"unexpected argument {argument!r}; overrides are written --section.name value")
            continue
        name, equals, text = argument[2:].partition("=")
        switch = not equals and (not queue or queue[0].startswith("--"))
        if not equals:
            text = "true" if switch else queue.pop(0)
        name = name.replace("-", "_")
        if name in values:
            problems.append(f"--{name} is given twice")
        if not text.strip() or (switch and schema is not None and not _can_be_true(schema, tuple(name.split(".")))):
            problems.append(f"--{name} has no value; write --{name} VALUE, with null for none")
        try:
            values[name] = parse_value(text, "the value")
        except ConfigError as error:
            problems.append(f"--{name} {shown(text)} cannot be read: {error}")
    if problems:
        raise UserError(listed("cannot read the command line:", problems))
    return values


def _can_be_true(schema: type[BaseModel], written: Path) -> bool:
    """Whether a field that `written` can mean holds a bool; an unknown name gets its own message later."""
    known = list(paths(schema))
    if _below_a_leaf(known, written):
        fields = [c.model_fields[written[-1]] for c in REGISTRY.values() if written[-1] in c.model_fields]
        return not fields or any(_holds_bool(field.annotation) for field in fields)
    found = resolve(schema, written)
    return not found or any(_holds_bool(_annotation(schema, path)) for path in found)


def _annotation(schema: type[BaseModel], path: Path) -> Any:
    """The annotation of the field at `path`."""
    section = section_at(schema, path[:-1], {})
    return None if section is None else section.model_fields[path[-1]].annotation


def _holds_bool(annotation: Any) -> bool:
    return annotation is bool or any(_holds_bool(inner) for inner in get_args(annotation))
