"""Modules whose calls extend a cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.attention.cache import KVCache
from x_positional.attention.ownership import ParameterWatch


class CachingModule(nn.Module):
    """A module whose calls extend a cache: a call that fails leaves the cache as it was, and parameters that changed after
    the cache was filled are noticed."""

    _watch: tuple[int, ParameterWatch] | None = None
    """How many changes were found so far, and the watch since the last one; None before the first cache."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`nn.Module.__call__`. If it raises, forward hooks included, the cache among its arguments is as before."""
        cache = next((given for given in (*args, *kwargs.values()) if isinstance(given, KVCache)), None)
        if cache is None or torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        before = cache.state
        try:
            return super().__call__(*args, **kwargs)
        except BaseException:
            cache.restore(before)
            raise

    def changes(self) -> int | None:
        """How often the parameters of this module have been found changed. None while compiling.

        Modules inside that count for themselves are left out.
        """
        if torch.compiler.is_compiling():
            return None
        watch = self._watch
        if watch is None or watch[1].changed():
            # one assignment of a value that follows from the old one: threads that notice together agree
            watch = (0 if watch is None else watch[0] + 1, ParameterWatch(self._counted()))
            self._watch = watch
        return watch[0]

    def _counted(self) -> Iterator[nn.Module]:
        """This module and those inside, except for those that count for themselves."""
        todo: list[nn.Module] = [self]
        while todo:
            module = todo.pop()
            yield module
            children = vars(module).get("_modules", {}).values()
            todo += [child for child in children if child is not None and not isinstance(child, CachingModule)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to(...)`, `.half()` and the like, which write through `.data`."""
        before = [(p.dtype, p.device) for p in self.parameters()]
        applied = super()._apply(fn, recurse)
        if self._watch is not None and before != [(p.dtype, p.device) for p in self.parameters()]:
            self._watch = (self._watch[0] + 1, ParameterWatch(self._counted()))
        return applied

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the count alone, since the versions of copied parameters start anew."""
        return {**self.__dict__, "_watch": None if self._watch is None else self.changes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        count = state.get("_watch")
        self._watch = None if count is None else (count, ParameterWatch(self._counted()))
