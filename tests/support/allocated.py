"""Bytes that tensors on the CPU hold, counted instead of timed."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Allocated(TorchDispatchMode):
    """While active, `live` is the size of the storages that operators have made and that still exist; `peak` its largest value."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # a DTensor: its own operators come here one by one
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu":
                self.count(tensor)
        return out

    def count(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size

    def counting(self, read: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`read`, whose tensors are made outside of operators."""

        def call(*args: Any, **kwargs: Any) -> Tensor:
            tensor = read(*args, **kwargs)
            self.count(tensor)
            return tensor

        return call
