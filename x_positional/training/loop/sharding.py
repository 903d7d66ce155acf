"""A model whose parameters, gradients and optimizer state are divided among the processes: torch's fully_shard (FSDP2).

accelerate's own FSDP2 runs on accelerators only and finds blocks by the names of their classes, so fully_shard is called here;
devices, process groups and collectives are accelerate's.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from x_positional.models.sharding import shard

Result = TypeVar("Result")


class ShardedRoot(nn.Module):
    """Holds what is outside of blocks: embeddings, head, final norm and position schemes. Layers share them, and some are read
    without a call of their module, so they are gathered together, from the forward pass to the end of backward.

    The model inside keeps its class, its names and its lack of hooks.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, action: Callable[[], Result]) -> Result:
        """Call `action`, which calls the model or any part of it."""
        return action()

    def whole(self, tensor: Tensor) -> Tensor:
        """A sharded tensor gathered, by a collective; others as they are."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def release(self) -> None:
        """Release what a forward pass without a backward pass has gathered."""
        if isinstance(self, FSDPModule):  # fully_shard changes the class
            self.reshard()


def sharded(model: nn.Module, device: torch.device, processes: int) -> ShardedRoot:
    """Divide the parameters of a model among processes, in place: the `shard_units` of its stacks one by one, and the rest.

    Args:
        model: With the same parameters in every process, on the host or on the device.
        device: Where the parts are kept.
        processes: How many processes share them.
    """
    mesh = init_device_mesh(device.type, (processes,))
    root = ShardedRoot(model)
    shard(model, mesh, root)
    return root
