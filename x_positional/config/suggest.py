"""Pydantic's errors in words: the value, the reason, and the nearest name."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from x_positional.config.flags.table import PLACES
from x_positional.schemes.registry import REGISTRY
from x_positional.schemes.rotary.scaling.base import SCALINGS

Loc = tuple[int | str, ...]


def sentences(schema: type[BaseModel], error: ValidationError, data: Any) -> list[str]:
    """One sentence for each problem that pydantic found in `data`."""
    problems = error.errors(include_url=False)
    misspelt = {suggestion(schema, p["loc"], data) for p in problems if p["type"] == "extra_forbidden"}
    told = [p for p in problems if p["type"] != "missing" or p["loc"] not in misspelt]
    return [_sentence(schema, problem, data) for problem in told]


def dotted(loc: Loc) -> str:
    """("layers", "position", 0, "theta") -> layers.position[0].theta"""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).removeprefix(".")


def at(data: Any, loc: Loc) -> Any:
    """What the user wrote at a place; None where there is nothing. One scheme is as good as a list of one."""
    for step in loc:
        if isinstance(data, Mapping):
            data = data.get(step, data if isinstance(step, int) else None)
        elif isinstance(data, list | tuple) and isinstance(step, int):
            data = data[step] if step < len(data) else None
    return data


def as_written(loc: Loc, data: Any) -> Loc:
    """The place without the numbers of lists that the user did not write."""
    return tuple(step for i, step in enumerate(loc) if isinstance(step, str) or _holds(at(data, loc[:i]), step))


def _holds(data: Any, step: int) -> bool:
    return isinstance(data, list | tuple) or (isinstance(data, Mapping) and step in data)


def suggestion(schema: type[BaseModel], loc: Loc, data: Any) -> Loc | None:
    """Where a name that is unknown at `loc` most likely belongs: beside it, or the same name in another section."""
    name = str(loc[-1])
    beside = _section(schema, loc[:-1], data)
    if close := difflib.get_close_matches(name, beside.model_fields, n=1) if beside else []:
        return (*loc[:-1], close[0])
    elsewhere = [path for path in _paths(schema) if path[-1] == name]
    return min(elsewhere, key=len) if elsewhere else None


def _sentence(schema: type[BaseModel], problem: Any, data: Any) -> str:
    loc: Loc = problem["loc"]
    name = dotted(as_written(loc, data))
    if problem["type"] == "extra_forbidden":
        return f"{name} is unknown; {_hint(schema, loc, data)}"
    if problem["type"] == "missing":
        return f"{name} is missing."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        known = [word.strip("' ") for word in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
        close = difflib.get_close_matches(str(problem["input"]), known, n=1)
        message += f"; did you mean {close[0]!r}?" if close else ""
    if not name:
        return message
    return f"{name}={problem['input']!r}: {message[0].lower() + message[1:]}{'' if message[-1] in '.?' else '.'}"


def _hint(schema: type[BaseModel], loc: Loc, data: Any) -> str:
    found = suggestion(schema, loc, data)
    if found is not None:
        return f"did you mean {dotted(as_written(found, data))}?"
    for place in PLACES.values():
        flag = place.get(str(loc[-1]))
        if flag is not None and flag.verdict == "supported" and flag.field is not None:
            return f"it is a keyword flag; a config says it with {flag.field}."
        if flag is not None:
            return f"it is a keyword flag of x-transformers. {flag.note}"
    beside = _section(schema, loc[:-1], data)
    return "there are: " + ", ".join(beside.model_fields) + "." if beside else "leave it out."


def _section(schema: type[BaseModel], loc: Loc, data: Any) -> type[BaseModel] | None:
    """The config class whose keys are written at `loc`."""
    if "position" in loc:
        written = at(data, loc)
        if not isinstance(written, Mapping):
            return None
        return SCALINGS.get(str(written.get("rope_type"))) or REGISTRY.get(str(written.get("kind")))
    for step in loc:
        field = schema.model_fields.get(str(step))
        inner = None if field is None else _config_of(field.annotation)
        if inner is None:
            return None
        schema = inner
    return schema


def _config_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [inner for inner in map(_config_of, get_args(annotation)) if inner is not None]
    return found[0] if len(found) == 1 else None


def _paths(schema: type[BaseModel], before: Loc = ()) -> Iterator[Loc]:
    for name, field in schema.model_fields.items():
        yield (*before, name)
        inner = _config_of(field.annotation)
        if inner is not None and name != "position":
            yield from _paths(inner, (*before, name))
