"""One keyword of x-transformers and what becomes of it here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Verdict = Literal["supported", "refused"]


class Required:
    """The default of a keyword that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclass(frozen=True, kw_only=True)
class Flag:
    """where: the class (or class.method) that takes it. default: the one of x-transformers 2.31.

    note: for a refused flag the reason and what to use instead, for a supported one what it means.
    field: what a supported flag sets: a config field as a dotted path, or an argument of ours.
    copied: the value goes into the field as it is; otherwise code translates it.
    own: not a keyword of x-transformers but one of this library.
    """

    name: str
    default: Any
    verdict: Verdict
    note: str
    field: str | None = None
    copied: bool = False
    own: bool = False
    where: str = ""


def copied(name: str, default: Any, field: str, note: str) -> Flag:
    """Supported: the value is the field's value."""
    return Flag(name=name, default=default, verdict="supported", field=field, note=note, copied=True)


def turned(name: str, default: Any, field: str | None, note: str) -> Flag:
    """Supported: the value is translated, or takes effect together with others."""
    return Flag(name=name, default=default, verdict="supported", field=field, note=note)


def own(name: str, field: str, note: str, *, default: Any = None, copied: bool = True) -> Flag:
    """A flag of this library, accepted beside those of x-transformers."""
    return Flag(name=name, default=default, verdict="supported", field=field, note=note, copied=copied, own=True)


def refused(name: str, default: Any, note: str) -> Flag:
    """Refused: the note says why and what to use instead."""
    return Flag(name=name, default=default, verdict="refused", note=note)


def details(main: str, **names: Any) -> list[Flag]:
    """The refused settings of a refused flag: name=default."""
    note = f"A detail of `{main}`, which is refused; leave it out too."
    return [refused(name, default, note) for name, default in names.items()]


def table(where: str, entries: Sequence[Flag | list[Flag]], prefix: str = "") -> tuple[Flag, ...]:
    """The entries of one class, with the prefix under which it is given its keywords."""
    flat: list[Flag] = []
    for entry in entries:
        flat += entry if isinstance(entry, list) else [entry]
    return tuple(replace(flag, where=where, name=prefix + flag.name) for flag in flat)
