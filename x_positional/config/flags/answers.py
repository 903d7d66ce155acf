"""Keywords that a call does not have: renamed where another library's word means the same, otherwise refused with the reason.

The public methods are wrapped by `answers`, which compares the names of a call with the signature. Known names pass
unchanged, so that is all a normal call pays; other names are looked up in the tables of x-transformers and transformers.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Set
from typing import Any, Literal, TypeVar

from torch import Tensor

from x_positional.config.flags.entry import Flag
from x_positional.config.flags.reader import asks, same
from x_positional.config.flags.table import PLACES
from x_positional.config.flags.transformers import WORDS
from x_positional.errors import FlagError, did_you_mean, shown

Method = TypeVar("Method", bound=Callable[..., Any])
Status = Literal["supported", "refused"]

PARAMETERS: dict[str, frozenset[str]] = {}
"""The parameters of every wrapped method, by class.method."""


def answers(where: str, *after: str) -> Callable[[Method], Method]:
    """Make a public method answer the keywords that x-transformers and transformers have and it does not.

    Its signature, documentation and type stay, and so does the graph of torch.compile.

    Args:
        where: Class and method, as in "TransformerWrapper.forward".
        after: Further tables of `PLACES` and `WORDS`: the calls that x-transformers passes keywords on to.
    """

    def decorate(method: Method) -> Method:
        known = PARAMETERS[where] = frozenset(inspect.signature(method).parameters)

        @functools.wraps(method)
        def call(self: Any, *args: Any, **keywords: Any) -> Any:
            if not known.issuperset(keywords):
                keywords = answered(where, after, keywords)
            return method(self, *args, **keywords)

        return call  # type: ignore[return-value]

    return decorate


def flags_of_call(where: str, after: tuple[str, ...] = ()) -> dict[str, Flag]:
    """keyword -> how a call answers it. The first table that lists a name decides."""
    found: dict[str, Flag] = {}
    for place in (where, *after):
        for flag in (*PLACES.get(place, {}).values(), *WORDS.get(place, ())):
            if flag.verdict == "refused" or flag.field is None or flag.field in PARAMETERS[where]:
                found.setdefault(flag.name, flag)
    return found


def verdict(flag: Flag, known: Set[str]) -> tuple[Status, str]:
    """How a call with these parameters handles a keyword, and its meaning or the reason."""
    if flag.name in known and flag.verdict == "refused":
        return "supported", "A parameter of the same name; see its description."
    if flag.verdict == "refused" and flag.field in known:
        return "refused", f"Use `{flag.field}=`."
    return flag.verdict, flag.note


def answered(where: str, after: tuple[str, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a call, other libraries' words translated. Raises FlagError with every one that cannot be."""
    known, flags = PARAMETERS[where], flags_of_call(where, after)
    problems: list[str] = []
    found = {name: value for name, value in keywords.items() if name in known}
    for name, value in keywords.items():
        flag = flags.get(name)
        if name in known:
            continue
        if flag is None:
            problems.append(f"{name} is not a parameter; {did_you_mean(name, known - {'self'})}")
            continue
        status, text = verdict(flag, known)
        if value is None or (status == "refused" and not asks(value, flag.default)):
            continue
        translated = text + _elsewhere(flag, text, known) if status == "refused" else _translated(flag, value, keywords)
        if isinstance(translated, str):
            problems.append(f"{_given(name, value)} is refused. {translated}")
            continue
        for target, meant in translated.items():
            if target in found and not same(found[target], meant):
                problems.append(f"{name} and {target} set the same parameter. Pass one of them.")
            found[target] = meant
    if problems:
        raise FlagError(where, problems)
    return found


def _translated(flag: Flag, value: Any, keywords: Mapping[str, Any]) -> dict[str, Any] | str:
    """The parameters that a keyword sets, or the reason why its value cannot be translated."""
    if flag.how is not None:
        return flag.how(value, keywords)
    return {} if flag.field is None else {flag.field: value}


def _elsewhere(flag: Flag, text: str, known: Set[str]) -> str:
    """Which call has the parameter that a reason recommends, where it is another one."""
    named = re.search(r"Use `(\w+)=", text)
    other = named is not None and named[1] not in known and named[1] in PARAMETERS.get(flag.where, ())
    return f" It is a keyword of {flag.where}." if other else ""


def _given(name: str, value: Any) -> str:
    """`pos=` of a tensor or another large value, `lens=3`."""
    text = "..." if isinstance(value, Tensor) else shown(value)
    return f"{name}={text}" if len(text) < 80 else f"{name}=..."
