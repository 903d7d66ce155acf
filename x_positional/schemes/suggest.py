"""What pydantic found, in words: the value, the reason and the nearest name; and the paths of a config's fields."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from x_positional.errors import nearest, shown
from x_positional.schemes.values import dotted

Loc = tuple[int | str, ...]
"""Where a value is, in pydantic's form: names of fields, numbers in lists."""

CHOSEN: dict[type[BaseModel], tuple[str, Mapping[str, type[BaseModel]]]] = {}
"""Bases of classes that data chooses by name: the key that holds the name, and the classes."""
TAG_WORDS = ("name", "type", "scheme", "kind", "rope_type")
"""Keys that may be meant for such a key."""

ELSEWHERE: list[Callable[[str], str | None]] = []
"""What knows names that are no fields: each gives a hint for a name, or None. The keyword flags add themselves."""

MAX_MESSAGES = 50
"""Problems that are reported; a long list of wrong values has one per value."""


def messages(schema: type[BaseModel], error: ValidationError, data: Any) -> list[str]:
    """One message for each problem that pydantic found in `data`."""
    problems = error.errors(include_url=False)
    more = len(problems) - MAX_MESSAGES
    return _messages(schema, problems[:MAX_MESSAGES], data) + ([f"and {more} more problems."] if more > 0 else [])


def _messages(schema: type[BaseModel], problems: list[Any], data: Any) -> list[str]:
    misspelt = {suggestion(schema, p["loc"], data) for p in problems if p["type"] == "extra_forbidden"}
    reported = [p for p in problems if p["type"] != "missing" or p["loc"] not in misspelt]
    return [_message(schema, problem, data) for problem in reported]


def value_at(data: Any, loc: Loc) -> Any:
    """The value in `data` at a location, None where there is none. One scheme counts as a list of one."""
    for step in loc:
        if isinstance(data, Mapping):
            data = data.get(step, data if isinstance(step, int) else None)
        elif isinstance(data, list | tuple) and isinstance(step, int):
            data = data[step] if step < len(data) else None
    return data


def user_path(loc: Loc, data: Any) -> Loc:
    """The location without list indices that the user did not write."""
    return tuple(step for i, step in enumerate(loc) if isinstance(step, str) or _holds(value_at(data, loc[:i]), step))


def _holds(data: Any, step: int) -> bool:
    return isinstance(data, list | tuple) or (isinstance(data, Mapping) and step in data)


def suggestion(schema: type[BaseModel], loc: Loc, data: Any) -> Loc | None:
    """Where a name that is unknown at `loc` most likely belongs: a close name there, or the same name in another section."""
    name = str(loc[-1])
    section = section_at(schema, loc[:-1], data)
    close = nearest(name, section.model_fields) if section else None
    if close is None and section and name in TAG_WORDS:
        close = next((tag for tag in ("kind", "rope_type") if tag in section.model_fields), None)
    if close is not None:
        return (*loc[:-1], close)
    return min((path for path in paths(schema) if path[-1] == name), key=len, default=None)


def section_at(schema: type[BaseModel], loc: Loc, data: Any) -> type[BaseModel] | None:
    """The config class whose fields are at `loc`, which the data may choose by name; None where it does not."""
    for place, step in enumerate(loc):
        if isinstance(step, str):
            field = schema.model_fields.get(step)
            section = None if field is None else _section(field.annotation)
            if section is None:
                return None
            schema = section
        written = value_at(data, loc[: place + 1])
        if schema in CHOSEN and isinstance(written, Mapping):
            tag, known = CHOSEN[schema]
            name = written.get(tag)
            if not isinstance(name, str) or name not in known:
                return None
            schema = known[name]
    return None if schema in CHOSEN else schema


def paths(schema: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every path from `schema` to a field, sections included. `position` is a leaf: any scheme fits there."""
    for name, field in schema.model_fields.items():
        yield (*before, name)
        section = _section(field.annotation)
        if section is not None and name != "position":
            yield from paths(section, (*before, name))


def _section(annotation: Any) -> type[BaseModel] | None:
    """The config class that a field holds, also behind Optional, Annotated and tuple; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [inner for inner in map(_section, get_args(annotation)) if inner is not None]
    return found[0] if len(found) == 1 else None


def _message(schema: type[BaseModel], problem: Any, data: Any) -> str:
    loc: Loc = problem["loc"]
    name = dotted(user_path(loc, data))
    if problem["type"] == "extra_forbidden":
        return f"{name} is unknown; {_hint(schema, loc, data)}"
    if problem["type"] == "missing":
        return f"{name} is missing."
    if problem["type"] == "invalid_key":
        section = dotted(user_path(loc[:-1], data))
        return f"{f'{section}: ' if section else ''}the key {shown(problem['input'])} must be a string."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        known = [word.strip("' ") for word in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
        close = nearest(problem["input"], known) if isinstance(problem["input"], str) else None
        message += "" if close is None else f"; did you mean {close!r}?"
    if not name:
        return message
    return f"{name}={shown(problem['input'])}: {message[0].lower() + message[1:]}{'' if message[-1] in '.?' else '.'}"


def _hint(schema: type[BaseModel], loc: Loc, data: Any) -> str:
    found = suggestion(schema, loc, data)
    if found is not None:
        return f"did you mean {dotted(user_path(found, data))}?"
    for hint in ELSEWHERE:
        if (text := hint(str(loc[-1]))) is not None:
            return text
    section = section_at(schema, loc[:-1], data)
    return "there are: " + ", ".join(section.model_fields) + "." if section else "leave it out."
