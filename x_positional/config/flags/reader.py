"""Reads the flags of one class against the table and collects everything that is wrong with them."""

from collections.abc import Mapping, Sequence
from typing import Any

from x_positional.config.flags.entry import Flag
from x_positional.config.flags.table import PLACES
from x_positional.errors import ArgumentError, FlagError, nearest, shown
from x_positional.schemes.values import bound_problems

PLAIN = (bool, int, float, str, tuple, list, dict)
MAX_HINTS = 20
"""Unknown names that are compared with every known one."""


def require_bounded_flags(where: str, flags: Mapping[str, Any]) -> None:
    """Raises FlagError for values that cannot be used whatever the flag is, such as cyclic ones."""
    if problems := bound_problems(flags):
        raise FlagError(where, problems)


def same(a: Any, b: Any) -> bool:
    """Equal as plain values; tensors, modules and functions only if they are the same object."""
    if a is b:
        return True
    try:
        return isinstance(a, PLAIN) and isinstance(b, PLAIN) and bool(a == b)
    except Exception:  # a tensor or another foreign object among their entries
        return False


def asks(value: Any, default: Any) -> bool:
    """Whether a value changes anything beside the default. None, False, 0 and empty all mean off."""
    if same(value, default):
        return False
    nothing = (type(None), *PLAIN)
    return not (isinstance(value, nothing) and isinstance(default, nothing) and not value and not default)


class FlagReader:
    """The flags given to one class.

    Args:
        given: The flags by name, without the prefix.
        places: The tables of `PLACES` that the class takes keywords from.
        problems: The list that every problem is appended to.
        prefix: What the user wrote before each name (`enc_`).
        defaults: Defaults that depend on the case and replace those of the table.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        places: Sequence[str],
        problems: list[str],
        *,
        prefix: str = "",
        defaults: Mapping[str, Any] | None = None,
    ):
        self.given, self.places, self.problems, self.prefix = given, places, problems, prefix
        self.table: dict[str, Flag] = {name: flag for place in places for name, flag in PLACES[place].items()}
        self.defaults = {name: flag.default for name, flag in self.table.items()} | dict(defaults or {})

    def value(self, name: str) -> Any:
        """What was given, or x-transformers' default."""
        return self.given.get(name, self.defaults[name])

    def asked(self, name: str) -> bool:
        """Given, with a value other than the default."""
        return name in self.given and not same(self.given[name], self.defaults[name])

    def shown(self, name: str) -> str:
        """`enc_heads=8`."""
        return f"{self.prefix}{name}={shown(self.value(name))}"

    def problem(self, text: str) -> None:
        """Adds a problem."""
        self.problems.append(text)

    def check(self, missing: Sequence[str] = ()) -> None:
        """Checks names, refused flags and bools; the names in `missing` are required."""
        unknown = 0
        for name, value in self.given.items():
            flag = self.table.get(name)
            if flag is None:
                unknown += 1
                hint = self._hint(name) if unknown <= MAX_HINTS else "docs/migration.md lists all of them."
                self.problem(f"{self.prefix}{name} is not a flag; {hint}")
            elif flag.verdict == "refused":
                if asks(value, self.defaults[name]):
                    self.problem(f"{self.shown(name)} is refused. {flag.note}")
            elif isinstance(flag.default, bool) and not isinstance(value, bool):
                self.problem(f"{self.shown(name)} must be a bool.")
            elif isinstance(value, tuple) and flag.where == "AttentionLayers" and (flag.copied or not flag.own):
                self.problem(
                    f"{self.shown(name)} must be one value for all layers; a value per layer is not supported."
                )
        for name in missing:
            if self.given.get(name) is None:
                self.problem(f"{self.prefix}{name} is missing. {self.table[name].note}")

    def one_of(self, *names: str) -> Any:
        """The value of a flag with several spellings; the default where none was given."""
        given = [name for name in names if name in self.given]
        for other in given[1:]:
            if not same(self.given[other], self.given[given[0]]):
                self.problem(
                    f"{self.shown(given[0])} and {self.shown(other)} are two spellings of one flag with different values. Give one."
                )
        return self.value(given[0] if given else names[0])

    def whole(self, name: str) -> int | None:
        """An integer, or None where it is not given or not an integer."""
        value = self.value(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if not isinstance(value, tuple):
            self.problem(f"{self.shown(name)} must be an integer.")
        return None

    def _hint(self, name: str) -> str:
        classes = [place for place in reversed(PLACES) if "." not in place]  # the first class that lists a name owns it
        home = {other: place for place in classes for other in PLACES[place]} | dict.fromkeys(self.table, "")
        if home.get(name):
            near = nearest(name, self.table)
            return f"it belongs to {home[name]}" + (f"; or did you mean {self.prefix}{near}?" if near else ".")
        prefixed = [p + name for p in ("attn_", "ff_", "rotary_", "use_") if p + name in self.table]
        close = prefixed[0] if prefixed else nearest(name, home)
        if close is None:
            return "docs/migration.md lists all of them."
        place = home[close]
        return f"did you mean {close} of {place}?" if place else f"did you mean {self.prefix}{close}?"


def check_flags(where: str, flags: Mapping[str, Any]) -> None:
    """Raises FlagError with each unknown or refused name of one class or call, as "AutoregressiveWrapper.generate"."""
    if where not in PLACES:
        raise ArgumentError(f"no table for {where!r}; there are: {', '.join(PLACES)}")
    problems: list[str] = []
    FlagReader(flags, [where], problems).check()
    if problems:
        raise FlagError(where, problems)


class Fields:
    """A nested dict filled flag by flag; two flags that set one field to different values are a problem."""

    def __init__(self, read: FlagReader):
        self.read = read
        self.tree: dict[str, Any] = {}
        self.by: dict[str, str] = {}

    def set(self, path: str, value: Any, name: str) -> None:
        """Sets a dotted path to `value`, on behalf of the flag `name`."""
        *parents, leaf = path.split(".")
        inside: Any = self.tree
        for key in parents:
            inside = inside.setdefault(key, {})
            if not isinstance(inside, dict):
                self._clash(path, name, key)
                return
        if leaf in inside and not same(inside[leaf], value):
            self._clash(path, name, self.by.get(path, name))
            return
        inside[leaf] = value
        self.by.setdefault(path, name)

    def set_copied(self, where: str) -> None:
        """Sets the fields whose flags of one class are copied unchanged."""
        for name, value in self.read.given.items():
            flag = self.read.table.get(name)
            if flag is not None and flag.where == where and flag.copied and flag.field is not None:
                self.set(flag.field, value, name)

    def _clash(self, path: str, name: str, other: str) -> None:
        shown = self.read.shown
        self.read.problem(f"{shown(other)} and {shown(name)} both set {path}. Give one of them.")
