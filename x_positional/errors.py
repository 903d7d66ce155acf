"""Every error of the package, under one base, and the helpers that their messages share.

A message names the value, the reason and the way out. An error that can have several causes holds all of them in `problems`.
"""

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain, islice
from typing import Any

MAX_SHOWN = 12
"""Problems of a checkpoint that a message shows in full; a wrong checkpoint has one per tensor."""
MAX_VALUE = 400
"""Characters of a value that a message shows."""
MAX_VALUES = 50_000
"""Values in a value whose text is made at all; nested lists may repeat one list a billion times."""
MAX_WORD = 64
"""Longest word that is compared with known ones; no name is as long."""


class XPositionalError(Exception):
    """Base of every error that the package raises on purpose."""


class ArgumentError(XPositionalError, ValueError):
    """An argument of a function that is out of range, or that cannot be combined with another one."""


class ConfigError(XPositionalError, ValueError):
    """A configuration that cannot be read or written. `problems` lists every reason."""

    def __init__(self, what: str, problems: Sequence[str] = ()):
        self.problems = list(problems) or [what]
        super().__init__(listed(what, problems) if problems else what)


class IncompatibleConfig(XPositionalError, ValueError):
    """A configuration with at least one error; the message lists all of them."""


class FlagError(XPositionalError, TypeError):
    """Keyword flags that are unknown, unsupported or contradict each other. `problems` lists all of them."""

    def __init__(self, where: str, problems: Sequence[str]):
        self.where, self.problems = where, list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        kind = "flags" if where[:1].isupper() and "." not in where else "arguments"
        super().__init__("\n  - ".join([f"{where}: {count} with its {kind}", *problems]))


class InputError(XPositionalError, ValueError):
    """Tokens, masks or other inputs of a call that do not fit the model or each other."""


class SamplingError(XPositionalError, ValueError):
    """Logits from which no token can be drawn: NaN, infinite, or none left by the filters. Names the step and the row."""


class PositionError(XPositionalError, ValueError):
    """Positions that a scheme cannot use."""


class CacheError(XPositionalError, ValueError):
    """A cache that is full or stale, or that was made for another model, batch or device."""


class BackendError(XPositionalError, ValueError):
    """An attention backend that cannot run what was asked of it; the message says which can."""


class RopeError(XPositionalError, ValueError):
    """RoPE parameters of a published config that cannot be read or written. `problems` lists all of them."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(f"- {problem}" for problem in problems))
        self.problems = problems


class PretrainedError(XPositionalError, ValueError):
    """A checkpoint that cannot be read, or a model that cannot be written. `problems` lists every reason."""

    def __init__(self, what: str, problems: Iterable[str]):
        self.problems = list(problems)
        shown = [f"- {problem}" for problem in self.problems[:MAX_SHOWN]]
        more = len(self.problems) - len(shown)
        super().__init__("\n".join([what, *shown, *([f"- and {more} more"] if more > 0 else [])]))


class ConversionError(XPositionalError, ValueError):
    """A model of x-transformers that cannot be converted. `problems` lists every reason."""

    def __init__(self, what: str, problems: Iterable[str]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join([what, *(f"- {problem}" for problem in self.problems)]))


class UserError(XPositionalError, ValueError):
    """A problem with what a training run or a command was asked to do: bad config, unreadable data, foreign checkpoint.

    The command line prints the message without a traceback and exits with code 2.
    """


class NonFiniteLoss(UserError):
    """The loss or the gradient became NaN or infinite; the message names the step and the last good checkpoint."""


class DamagedCheckpoint(UserError):
    """A file of a training checkpoint is missing or not what was written; the message names the newest good checkpoint."""


class MainProcessFailed(UserError):
    """In a run of several processes: the main one stopped with an error, and reports the reason."""


class ProcessLost(UserError):
    """In a run of several processes: another one was killed or crashed; the message names the newest checkpoint."""


class MissingExtra(UserError):
    """A package of an optional extra is not installed; the message says what to install."""


class ContractError(XPositionalError, AssertionError):
    """A scheme failed the contract suite; `report` (a `ContractReport`) holds the outcome of every check."""

    def __init__(self, report: Any):
        super().__init__("\n".join(f"{o.check}: {o.detail}" for o in report.failures))
        self.report = report


def shown(value: Any) -> str:
    """`repr(value)` for a message: never raises, is never long, takes bounded time, and can be printed."""
    try:
        large = next(islice(_values(value), MAX_VALUES, None), None) is not None
        text = f"a {type(value).__name__} of more than {MAX_VALUES} values" if large else repr(value)
    except Exception:  # a foreign object, or an integer with thousands of digits
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"<{type(value).__name__}>"
    if len(text) > MAX_VALUE:
        text = f"{text[: MAX_VALUE // 2]} ... {text[-MAX_VALUE // 4 :]}"
    return printable(text)


def _values(value: Any, around: tuple[int, ...] = ()) -> Iterator[int]:
    """One item for each value that `repr` visits: a list inside that is used twice counts twice, a cycle ends."""
    yield len(around)
    if isinstance(value, Mapping | Set | list | tuple) and id(value) not in around:
        for inner in chain(value, value.values()) if isinstance(value, Mapping) else value:
            yield from _values(inner, (*around, id(value)))


def printable(text: str) -> str:
    """The same text, with lone surrogates, which no output can encode, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def nearest(word: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str | None:
    """The known word that is closest to `word`, or that `synonyms` give for it; None where none is close."""
    names, word = list(known), word.strip()
    plain = word.lower().replace("-", "_").replace(" ", "_")
    if len(word) > MAX_WORD:
        return None
    for name in (plain, (synonyms or {}).get(plain)):
        if name in names:
            return name
    return next(iter(difflib.get_close_matches(word, names, n=1)), None)


def did_you_mean(word: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str:
    """`did you mean 'rope'?` where a known word is close, otherwise the list of what is known."""
    names = sorted(known)
    close = nearest(word, names, synonyms)
    return f"there are: {', '.join(names)}" if close is None else f"did you mean {close!r}?"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 key head`, `2 key heads`, `1,024 tokens`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(title: str, problems: Iterable[str]) -> str:
    """One message for all `problems`, one a line."""
    return "\n".join([title, *(f"  - {problem}" for problem in problems)])


def import_extra(module: str, what: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: As in `import module`.
        what: Beginning of the message, up to its verb, as `"chat templates need"`.
        extra: The extra of x-positional that installs the package.

    Raises:
        MissingExtra: If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"{what} {module.split('.')[0]}: pip install 'x-positional[{extra}]'") from error
