"""Modules whose calls extend a cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.attention.cache import KVCache
from x_positional.attention.ownership import ChangeCount, Stamp


class CachingModule(nn.Module):
    """A module whose calls extend a cache: a call that fails leaves the cache as it was, and parameters that changed after
    the cache was filled are noticed."""

    def __init__(self) -> None:
        super().__init__()
        self._changes = ChangeCount(self._counted)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`nn.Module.__call__`. If it raises, forward hooks included, the cache among its arguments is as before."""
        cache = next((given for given in (*args, *kwargs.values()) if isinstance(given, KVCache)), None)
        if cache is None or torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        before = cache.state
        try:
            out = super().__call__(*args, **kwargs)
        except BaseException:
            cache.restore(before)
            raise
        if not before.filled or before.weights_move:
            cache.note_weights(self.stamp())
        return out

    def stamp(self) -> Stamp:
        """How often the parameters that keys depend on have been found changed."""
        return Stamp(stack=self.changes())

    def changes(self) -> int | None:
        """How often the parameters of this module have been found changed. None while compiling.

        Modules inside that count for themselves are left out.
        """
        return None if torch.compiler.is_compiling() else self._changes.count(self._counted)

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
        if before != [(p.dtype, p.device) for p in self.parameters()]:
            self._changes.note(self._counted)
        return applied

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the count alone, since the versions of copied parameters start anew."""
        return {**self.__dict__, "_changes": self._changes.known(self._counted)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._changes = ChangeCount(self._counted, state["_changes"])
