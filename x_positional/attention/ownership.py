"""Whose keys a cache holds: the identity of a model, and whether its parameters have changed since."""

import operator
import uuid
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_version = operator.attrgetter("_version")
Modules: TypeAlias = Callable[[], Iterable[nn.Module]]
"""Lists the modules to watch."""


class Identity:
    """Identifies one model to its caches.

    A copy of the model gets a new one. A model and its cache that are copied or pickled together share it, and a copy of a
    cache alone still belongs to the model.
    """

    def __init__(self, origin: str | None = None):
        self.name = uuid.uuid4().hex
        self.origin = origin  # what this is a copy of, until a model claims the copy

    def claim(self) -> None:
        """Make this the identity of a model of its own."""
        self.origin = None

    def belongs_to(self, model: "Identity") -> bool:
        """Whether a cache with this identity was made for the model with that one."""
        return self is model or self.origin == model.name

    def __reduce__(self) -> tuple[type["Identity"], tuple[str]]:
        return Identity, (self.origin or self.name,)


class Stamp(NamedTuple):
    """How often the parameters that keys depend on had been found changed; None where that is unknown."""

    stack: int | None = None
    """Of the attention layers."""
    around: int | None = None
    """Of the model around them: embeddings and projections."""

    def agrees(self, now: "Stamp") -> bool:
        """Whether nothing known changed between the two."""
        return all(a is None or b is None or a == b for a, b in zip(self, now, strict=True))

    def updated(self, now: "Stamp") -> "Stamp":
        """The later one, where it is known."""
        return Stamp(*(a if b is None else b for a, b in zip(self, now, strict=True)))


UNKNOWN = Stamp()


class ParameterWatch:
    """Notices that parameters were changed in place or replaced, and that modules were replaced.

    Writes through `.data`, and anything else that torch's version counters do not count, go unnoticed; so do changes of
    inference tensors, which have no counter.

    Args:
        modules: the modules to watch, each without its children.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        entries = [vars(module).get(held) for module in modules for held in ("_parameters", "_modules")]
        self._places: list[dict[str, Any]] = [entry for entry in entries if entry]
        self._held = [dict(place) for place in self._places]
        found = {id(p): p for held in self._held for p in held.values() if isinstance(p, Tensor)}
        self._tensors = [p for p in found.values() if not p.is_inference()]
        self._ids = found.keys()
        self._sum = self._versions()
        self._fused_steps = 0
        _follow_fused_steps(self)

    def _versions(self) -> int:
        return sum(map(_version, self._tensors)) if self._tensors else 0

    def changed(self) -> bool:
        """Whether anything changed since this watch began. Costs some 0.1 microseconds per parameter."""
        if self._fused_steps or self._versions() != self._sum:
            return True
        try:
            return self._places != self._held  # equal entries are the same object, which dicts compare first
        except (RuntimeError, TypeError, ValueError):  # another tensor, whose comparison is not a bool
            return True

    def note_step(self, optimizer: Optimizer) -> None:
        """An optimizer took a step that version counters do not count."""
        stepped = (p for group in optimizer.param_groups if group.get("fused") for p in group["params"])
        self._fused_steps += any(id(p) in self._ids for p in stepped)


class ChangeCount:
    """How often the parameters of a module have been found changed. Nothing is watched before the first cache.

    The modules to watch, each without its children, are given to each call: the count of a module that held the module would be a
    cycle, which keeps its parameters in memory until the garbage collector runs.

    Args:
        count: where a copy goes on; None if nobody has asked yet.
        modules: called where `count` is given.
    """

    def __init__(self, modules: Modules, count: int | None = None):
        self._now = None if count is None else (count, ParameterWatch(modules()))

    def count(self, modules: Modules) -> int:
        """The changes so far."""
        now = self._now
        if now is None or now[1].changed():
            # one assignment of a value that follows from the old one: threads that find the same change agree
            now = (0 if now is None else now[0] + 1, ParameterWatch(modules()))
            self._now = now
        return now[0]

    def known(self, modules: Modules) -> int | None:
        """The changes so far; None if nobody has asked yet."""
        return None if self._now is None else self.count(modules)

    def note(self, modules: Modules) -> None:
        """Count a change that parameters do not show."""
        if self._now is not None:
            self._now = (self._now[0] + 1, ParameterWatch(modules()))


_watches: "weakref.WeakSet[ParameterWatch]" = weakref.WeakSet()


def _follow_fused_steps(watch: ParameterWatch) -> None:
    """Fused optimizers change parameters without counting a version, so their steps are reported by torch's hook."""
    if not _hooked:
        _hooked.append(register_optimizer_step_post_hook(_report_step))
    _watches.add(watch)


_hooked: list[Any] = []
"""The handle of the hook, registered with the first watch."""


def _report_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling() or not any(group.get("fused") for group in optimizer.param_groups):
        return
    for watch in list(_watches):
        watch.note_step(optimizer)
