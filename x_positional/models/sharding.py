"""Models whose parameters are divided among processes by torch's fully_shard (FSDP2), and their values, without a whole copy of the
model in any process."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from x_positional.errors import ArgumentError
from x_positional.modules.block import Block
from x_positional.modules.stack import AttentionLayers

if TYPE_CHECKING:  # torch may be built without distributed, and importing it takes time
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: nn.Module, device_mesh: "DeviceMesh", root: nn.Module | None = None) -> None:
    """Divide the parameters of a model among the processes of a mesh, in place: each block by itself, and the rest together.

    Args:
        model: With the same values in every process, or on the meta device.
        device_mesh: As of `torch.distributed.device_mesh.init_device_mesh`.
        root: The module whose call gathers what is outside of blocks; None is the model.
    """
    from torch.distributed.fsdp import fully_shard

    for unit in _units(model):
        fully_shard(unit, mesh=device_mesh)
    fully_shard(model if root is None else root, mesh=device_mesh)


def allocate(model: nn.Module, device_mesh: "DeviceMesh", dtype: torch.dtype) -> None:
    """Shard a model on the meta device, and allocate its shards without values: parameters that are trained in this dtype."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    shard(model, device_mesh)
    model.to_empty(device=device_mesh.device_type)


def materialize(model: nn.Module, build: Callable[[], nn.Module], device: torch.device | str | None = None) -> None:
    """Give a model on the meta device the values that its construction draws: bit-equal to `build()` with the same seed.

    ```python
    with torch.device("meta"):
        model = build()
    shard(model, device_mesh)  # or nothing, or another plan of fully_shard or parallelize_module
    torch.manual_seed(0)
    materialize(model, build)
    ```

    The model is built once more on the CPU, and each part of a block is moved into `model` as soon as it is built. So a process
    holds its shards, one block, and what is outside of blocks (embeddings and head).

    Args:
        model: On the meta device; its parameters may be sharded (DTensors).
        build: Builds the same model. It draws from torch's global generator, which must be in the same state in all processes.
        device: Where the parameters are allocated; None is the CPU.

    Raises:
        ArgumentError: `build` gives another model.
    """
    model.to_empty(device=device or "cpu")
    units, built = _units(model), list[nn.Module]()

    def take(block: nn.Module, name: str, part: nn.Module | None) -> None:
        """Called where a finished part becomes that of its block, which may not be the last one: parts are not numbered."""
        if not isinstance(block, Block) or part is None:
            return
        if not any(block is one for one in built):
            built.append(block)
        if len(built) <= len(units):
            _put_all(units[len(built) - 1].get_submodule(name), part)
            part.to("meta")

    handle = register_module_module_registration_hook(take)
    try:
        twin = build()
    finally:
        handle.remove()
    if len(built) != len(units) or any(one is not other for one, other in zip(built, _units(twin), strict=False)):
        raise ArgumentError("build() gives another model: its blocks are not those of the model, in the same order")
    _put_all(model, twin)


def put(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole value into a parameter, of which a process may hold a shard."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        if isinstance(parameter, DTensor):
            own = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.to_local().copy_(own.to_local())
        else:
            parameter.copy_(value)


def own_rows(parameter: Tensor) -> slice | None:
    """The rows of a parameter that this process holds, as torch.chunk divides them; None where it is divided in another way."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(parameter, DTensor) or parameter.placements != (Shard(0),):
        return None
    rows, mesh = parameter.shape[0], parameter.device_mesh
    most = -(-rows // mesh.size())
    start = min(rows, most * mesh.get_local_rank())
    return slice(start, min(rows, start + most))


def put_rows(parameter: Any, rows: Tensor) -> None:
    """Copy the rows of `own_rows` into a parameter."""
    with torch.no_grad():
        parameter.to_local().copy_(rows)


def _units(model: nn.Module) -> list[nn.Module]:
    return [unit for stack in model.modules() if isinstance(stack, AttentionLayers) for unit in stack.shard_units]


def _put_all(module: nn.Module, values: nn.Module) -> None:
    """Copy all parameters but those on the meta device, which were copied before."""
    given, own = dict(values.named_parameters()), dict(module.named_parameters())
    if given.keys() != own.keys() or any(given[name].shape != own[name].shape for name in own):
        raise ArgumentError("build() gives another model: its parameters have other names or shapes")
    for name, value in given.items():
        if not value.is_meta:
            put(own[name], value.detach())
