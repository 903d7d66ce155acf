"""What a config may be given: plain values, bounded in depth, number and size. Checked before anything else reads them.

Flags, dicts and files come from anywhere, so a value may contain itself, expand to billions of entries, or overflow every
number format. Whatever passes here can be walked, printed and converted to float.
"""

import math
from collections.abc import Iterator, Mapping, MappingView, Sized
from itertools import islice
from typing import Any

from x_positional.errors import ConfigError, printable, shown

MAX_NESTING = 32
"""Levels of lists and mappings. The deepest config, a scaling of a scheme of a pattern's entry in a training file, has 10."""
MAX_VALUES = 50_000
"""Values in total. A training file that spells out every field of 128 different layers has about 10,000."""
MAX_TEXT = 65_536
"""Characters of a string."""
MAX_KEY = 200
"""Characters of a key."""
MAX_INT = 2**63
"""Integers are below it: those of tensors."""
MIN_FLOAT, MAX_FLOAT = 1e-30, 1e30
"""Numbers are 0 or between these: well inside float32, so that products with positions are too."""

MAX_KEYS = 256
"""Keys of one mapping: more than any class takes."""

MAX_HEADS = 4096
"""Heads of a layer, and slopes of ALiBi. Published models have up to 256."""
MAX_HEAD_DIM = 65_536
"""Channels of a head."""
MAX_WIDTH = 2**20
"""Channels of a model, of a feedforward or of a latent."""
MAX_LAYERS = 10_000
"""Layers of a stack, ten times the deepest published one."""
MAX_PATTERN = 1024
"""Entries of a pattern."""
MAX_KINDS = 128
"""Distinct layers of a stack: each kind has masks, a ring of the cache and a backend of its own."""
MAX_SCHEMES = 64
"""Distinct position schemes of a stack."""
MAX_PARTS = 16
"""Position schemes of one layer."""
MAX_AXES = 64
"""Axes of a position."""
MAX_ROWS = 2**20
"""Rows of a table of buckets or counts."""
MAX_LENGTH = 2**31
"""Tokens of a sequence, rows of a vocabulary: kernels index them with 32 bits."""
MAX_PIXELS = 65_536
"""Height and width of an image."""

Path = tuple[str | int, ...]
"""Where a value is: keys of mappings, indices of lists."""


def dotted(path: Path) -> str:
    """("layers", "position", 0, "theta") -> layers.position[0].theta"""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def bound_problems(value: Any) -> list[str]:
    """Why a value cannot be used, by its path; [] if it can. Foreign objects inside are not looked into."""
    walk = _Walk()
    try:
        walk.visit(value, ())
    except _TooManyError:
        return [f"more than {MAX_VALUES} values, aliases and repeated objects expanded. Give fewer."]
    return walk.problems


def require_bounded(value: Any, what: str) -> None:
    """Raises ConfigError, which begins with `what`, with every problem of a value."""
    if problems := bound_problems(value):
        raise ConfigError(f"{what}: {counted(problems)}", problems)


def counted(problems: list[str]) -> str:
    """`2 problems`."""
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


class _TooManyError(Exception):
    """There are more than MAX_VALUES."""


class _Walk:
    """One pass over a value."""

    def __init__(self) -> None:
        self.values = 0
        self.problems: list[str] = []
        self.around: dict[int, Path] = {}

    def visit(self, value: Any, path: Path) -> None:
        """Adds the problems of one value to `problems`."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise _TooManyError
        if isinstance(value, Mapping | list | tuple):
            self._container(value, path)
        elif (problem := leaf_problem(value)) is not None:
            self._problem(path, problem)

    def _container(self, value: Any, path: Path) -> None:
        if id(value) in self.around:
            outer = dotted(self.around[id(value)])
            self._problem(path, f" contains itself{f' ({outer})' if outer else ''}. Give values without cycles.")
        elif len(path) > MAX_NESTING:
            self._problem(path[:3], f" is nested more than {MAX_NESTING} levels deep. Give plain values.")
        elif isinstance(value, Mapping) and len(value) > MAX_KEYS:
            self._problem(path, f" has {len(value)} keys; at most {MAX_KEYS} are supported.")
        else:
            self.around[id(value)] = path
            for step, inner in self._entries(value, path):
                self.visit(inner, (*path, step))
            del self.around[id(value)]

    def _entries(self, value: Any, path: Path) -> list[tuple[Any, Any]]:
        if not isinstance(value, Mapping):
            return list(enumerate(islice(value, MAX_VALUES + 1)))
        entries = []
        for key, inner in value.items():
            step = key if isinstance(key, str) else shown(key)  # keys that are no strings are refused by the schema
            if isinstance(key, Mapping | tuple | frozenset):
                self._problem(path, f" has the key {shown(key)}; keys must be strings.")
            if len(step) > MAX_KEY or not is_unicode(step):
                self._problem(path, f" has the key {shown(step)}; keys are text of at most {MAX_KEY} characters.")
                step = "..."
            entries.append((step, inner))
        return entries

    def _problem(self, path: Path, text: str) -> None:
        self.problems.append(printable(f"{dotted(path) or 'the value'}{text}"))


def leaf_problem(value: Any) -> str | None:
    """Why a value without values inside cannot be used, to follow its name; None if it can. Foreign objects can."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if abs(value) < MAX_INT else f"={shown(value)} is outside the range of 64-bit integers."
    if isinstance(value, float):
        fits = value == 0 or not math.isfinite(value) or MIN_FLOAT <= abs(value) <= MAX_FLOAT
        return None if fits else f"={value!r} must be 0 or between {MIN_FLOAT:g} and {MAX_FLOAT:g}, to fit float32."
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            return f" is a string of {len(value)} characters; at most {MAX_TEXT} are supported."
        return None if is_unicode(value) else f"={shown(value)} contains a lone surrogate, which is not Unicode."
    if isinstance(value, Iterator | MappingView | range):  # without an end, or longer than it looks
        return f" is a {type(value).__name__}. Give a list."
    entries = _length(value) if isinstance(value, Sized) else 0
    return (
        f" is a {type(value).__name__} of {entries} entries; at most {MAX_VALUES} are supported."
        if entries > MAX_VALUES
        else None
    )


def _length(value: Sized) -> int:
    """Entries of a foreign object, such as a tensor, which pydantic would turn into as many objects; 0 where it has none."""
    try:
        return len(value)
    except Exception:  # a tensor without axes, or whatever a foreign object raises
        return 0


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded."""
    try:
        str.encode(text, "utf-8")
    except UnicodeEncodeError:
        return False
    return True
