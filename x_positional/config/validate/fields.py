"""Whether the fields of a config hold what validation would accept. `model_construct` and `model_copy` do not validate them."""

from collections.abc import Iterator

from pydantic import ValidationError

from x_positional.schemes.registry import Config
from x_positional.schemes.suggest import Loc, messages
from x_positional.schemes.values import bound_problems, dotted


def invalid_fields(config: Config) -> list[str]:
    """What validation would refuse in a config and in those inside it, each by its path; [] if nothing."""
    problems, left, seen = list[str](), list[tuple[Loc, Config]]([((), config)]), set[int]()
    while left:
        path, inner = left.pop()
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        found = _own_problems(inner)
        problems += [f"{dotted(path)}: {text}" if path else text for text in found]
        if not found:  # its fields have the declared types
            left += [((*path, *step), part) for step, part in _parts(inner)]
    return problems


def _own_problems(config: Config) -> list[str]:
    """Those of its own fields; the configs in them count as valid."""
    fields = dict(vars(config))
    if problems := bound_problems(fields):
        return problems
    try:
        type(config).parse(fields)
    except ValidationError as error:
        return messages(type(config), error, fields)
    return []


def _parts(config: Config) -> Iterator[tuple[Loc, Config]]:
    """The configs in its fields and in lists of them."""
    for name, value in vars(config).items():
        if isinstance(value, Config):
            yield (name,), value
        elif isinstance(value, list | tuple):
            yield from (((name, i), part) for i, part in enumerate(value) if isinstance(part, Config))
