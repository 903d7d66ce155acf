"""The names that a config may use, and pydantic's errors in words, each with the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

Path = tuple[str, ...]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The config class that a field holds, also behind Optional and Annotated; None for plain values and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin = get_origin(annotation)
    if origin is Union or str(origin) in ("<class 'types.UnionType'>", "typing.Annotated"):
        found = [section for section in map(section_of, get_args(annotation)) if section is not None]
        return found[0] if len(found) == 1 else None
    return None


def paths(schema: type[BaseModel], before: Path = ()) -> Iterator[Path]:
    """Every path from `schema` to a field, sections included."""
    for name, field in schema.model_fields.items():
        yield (*before, name)
        section = section_of(field.annotation)
        if section is not None:
            yield from paths(section, (*before, name))


def resolve(schema: type[BaseModel], written: Path) -> list[Path]:
    """The paths that `written` can mean: itself, or the ones it shortens by leaving out sections.

    `model.depth` means `model.layers.depth` and `lr` means `optimizer.lr`, as long as there is only one such path. The
    first part must fit if there are several; the last part always. A path below a field that holds no section
    (`model.layers.position.theta`) is passed on as it is.
    """
    known = list(paths(schema))
    if written in known or any(written[: len(path)] == path and _is_leaf(known, path) for path in known):
        return [written]
    return [path for path in known if path[-1] == written[-1] and _shortens(written, path)]


def nearest(schema: type[BaseModel], written: Path) -> list[str]:
    """Up to three known paths that look like `written`, best first."""
    known = {".".join(path): path for path in paths(schema)}
    close = difflib.get_close_matches(".".join(written), known, n=3, cutoff=0.6)
    by_last = difflib.get_close_matches(written[-1], {path[-1] for path in known.values()}, n=2, cutoff=0.6)
    for name, path in known.items():
        if path[-1] in by_last and name not in close and len(close) < 3:
            close.append(name)
    return close


def explain(schema: type[BaseModel], error: ValidationError) -> list[str]:
    """One sentence for each problem that pydantic found."""
    return [_sentence(schema, problem) for problem in error.errors(include_url=False)]


def _sentence(schema: type[BaseModel], problem: Any) -> str:
    where = tuple(str(part) for part in problem["loc"])
    name = ".".join(where)
    if problem["type"] == "extra_forbidden":
        return f"{name} is unknown{did_you_mean(nearest(schema, where))}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not where:
        return message
    return f"{name}={problem['input']!r}: {message[0].lower() + message[1:]}"


def did_you_mean(names: list[str]) -> str:
    """`; did you mean a or b?`, or nothing."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _is_leaf(known: list[Path], path: Path) -> bool:
    return not any(other[: len(path)] == path and len(other) > len(path) for other in known)


def _shortens(written: Path, path: Path) -> bool:
    """Whether `written` is `path` with some parts left out, the order kept."""
    rest = iter(path)
    return all(part in rest for part in written)
