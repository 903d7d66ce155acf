"""One keyword of another library, x-transformers or transformers, and how it is handled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Translation = Callable[[Any, Mapping[str, Any]], dict[str, Any] | str]
"""A value and all keywords of its call -> the parameters it sets, or the reason why it cannot be translated."""

Verdict = Literal["supported", "refused"]


class Required:
    """The default of a keyword that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One keyword of one class or call."""

    name: str
    """With its prefix, as in `attn_dropout`."""
    default: Any
    """The default of x-transformers 2.31."""
    verdict: Verdict
    """Whether it is supported or refused."""
    note: str
    """Of a refused flag the reason and what to use instead; of a supported one its meaning."""
    field: str | None = None
    """What a supported flag sets: a config field as a dotted path, or an argument of this library's call. Of a refused
    keyword of a call: the argument to use instead, in the calls that have it."""
    copied: bool = False
    """The value goes into the field unchanged; otherwise code translates it."""
    own: bool = False
    """A keyword of this library that x-transformers does not have."""
    where: str = ""
    """The class, or class.method, that takes it."""
    how: Translation | None = None
    """Of a keyword of a call: how its value is translated; None passes it on unchanged."""


def copied(name: str, default: Any, field: str, note: str) -> Flag:
    """Supported: the field gets the value unchanged."""
    return Flag(name=name, default=default, verdict="supported", field=field, note=note, copied=True)


def translated(name: str, default: Any, field: str | None, note: str, how: Translation | None = None) -> Flag:
    """Supported: the value is translated, or takes effect together with others."""
    return Flag(name=name, default=default, verdict="supported", field=field, note=note, how=how)


def own(name: str, field: str, note: str, *, default: Any = None, copied: bool = True) -> Flag:
    """A flag of this library, accepted beside those of x-transformers."""
    return Flag(name=name, default=default, verdict="supported", field=field, note=note, copied=copied, own=True)


def refused(name: str, default: Any, note: str, instead: str | None = None) -> Flag:
    """Refused: the note gives the reason and what to use instead. instead: an argument that replaces it, as in `Flag.field`."""
    return Flag(name=name, default=default, verdict="refused", note=note, field=instead)


def details(main: str, **names: Any) -> list[Flag]:
    """The settings of a refused flag, refused with it: name=default."""
    note = f"A detail of `{main}`, which is refused; leave it out too."
    return [refused(name, default, note) for name, default in names.items()]


def table(where: str, entries: Sequence[Flag | list[Flag]], prefix: str = "") -> tuple[Flag, ...]:
    """The entries of one class, named with the prefix that its keywords take."""
    flat: list[Flag] = []
    for entry in entries:
        flat += entry if isinstance(entry, list) else [entry]
    return tuple(replace(flag, where=where, name=prefix + flag.name) for flag in flat)
