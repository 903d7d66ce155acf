"""The names that an override may use: whole paths, and short ones as long as they are clear."""

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from x_positional.schemes.registry import REGISTRY

Path = tuple[str, ...]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The config class that a field holds, also behind Optional and Annotated; None for plain values and lists."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    found = [inner for inner in get_args(annotation) if isinstance(inner, type) and issubclass(inner, BaseModel)]
    return found[0] if len(found) == 1 else None


def paths(schema: type[BaseModel], before: Path = ()) -> Iterator[Path]:
    """Every path from `schema` to a field, sections included."""
    for name, field in schema.model_fields.items():
        yield (*before, name)
        section = section_of(field.annotation)
        if section is not None:
            yield from paths(section, (*before, name))


def resolve(schema: type[BaseModel], written: Path) -> list[Path]:
    """The paths that `written` can mean: itself, or the ones it shortens by leaving out sections.

    `model.depth` means `model.layers.depth` and `lr` means `optimizer.lr`. Of several, the one that leaves out least
    wins; more than one path comes back only when that does not decide. A path below a field that holds no section
    (`model.layers.position.theta`) is passed on as it is.
    """
    known = list(paths(schema))
    if written in known or _below_a_leaf(known, written):
        return [written]
    meant = [path for path in known if path[-1] == written[-1] and _shortens(written, path)]
    shortest = min((len(path) for path in meant), default=0)
    return [path for path in meant if len(path) == shortest]


def hint(schema: type[BaseModel], written: Path) -> str:
    """`did you mean a?` with the path that is most like `written`: in the same section first, then anywhere.

    Inside a position scheme the names are those of all registered schemes.
    """
    known = list(paths(schema))
    beside = {path[-1]: path for path in known if path[:-1] == written[:-1]}
    if _below_a_leaf(known, written):
        beside = {name: (*written[:-1], name) for config in REGISTRY.values() for name in config.model_fields}
    close = difflib.get_close_matches(written[-1], beside, n=1)
    best = beside[close[0]] if close else max(known, key=lambda path: _likeness(written, path))
    if close or _likeness(written, best) >= 0.6:
        return f"did you mean {'.'.join(best)}?"
    return "--print-config shows all names."


def _likeness(written: Path, path: Path) -> float:
    """1 is equal. The last parts count more than the whole; a name that begins another one is close to it."""
    last = difflib.SequenceMatcher(None, written[-1], path[-1]).ratio()
    if len(written[-1]) > 2 and path[-1].startswith(written[-1]):
        last = max(last, 0.95)
    return 0.75 * last + 0.25 * difflib.SequenceMatcher(None, written, path).ratio()


def _below_a_leaf(known: list[Path], written: Path) -> bool:
    leaves = [path for path in known if not any(other[:-1] == path for other in known)]
    return any(written[: len(path)] == path and len(written) > len(path) for path in leaves)


def _shortens(written: Path, path: Path) -> bool:
    """Whether `written` is `path` with some parts left out, the order kept."""
    rest = iter(path)
    return all(part in rest for part in written)
