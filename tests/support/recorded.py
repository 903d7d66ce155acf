"""A stand-in for CUDA graphs that runs on a CPU, with what makes them hard: nothing runs while work is captured, and each replay
runs the same operators on the same tensors, whatever Python would do now."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from x_positional.generation.step.captured import Result

UNSAFE = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero", "_assert_async", "equal")
"""Operators that wait for the device or whose sizes depend on values, which a CUDA graph cannot hold."""


class UnsafeOperator(RuntimeError):
    """A CUDA graph could not hold this operator."""


class RecordedOperators(TorchDispatchMode):
    """Notes each operator with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], list[Tensor | None]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        """Tensors that were written to, and their values before."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._opname in UNSAFE:
            raise UnsafeOperator(f"{func} was captured")
        for given, declared in zip(args, func._schema.arguments, strict=False):
            if isinstance(given, Tensor) and declared.alias_info is not None and declared.alias_info.is_write:
                self.before.append((given, given.clone()))
        out = func(*args, **kwargs)
        given = {storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [None if storage(t) in given else t for t in results(out)]
        self.calls.append((func, args, kwargs, made))
        return out


class Recorder:
    """Captures by running the operators and taking back what they wrote.

    Args:
        fails: raised by `capture`, as an operator would that CUDA cannot capture.
    """

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails, self.tried, self.replays = fails, False, 0

    def capture(self, work: Callable[[], Result]) -> Result:
        self.tried = True
        with RecordedOperators() as recorded:
            out = work()
        for tensor, before in reversed(recorded.before):
            tensor.copy_(before)
        for *_, made in recorded.calls:
            for tensor in made:
                if tensor is not None:  # nothing ran, so there is nothing in it yet
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
        if self.fails is not None:
            raise self.fails
        self._calls = recorded.calls
        return out

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, made in self._calls:
            for tensor, new in zip(made, results(func(*args, **kwargs)), strict=True):
                if tensor is not None:
                    tensor.copy_(new)


def results(out: Any) -> list[Tensor]:
    return [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
