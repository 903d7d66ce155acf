"""When the matrix of a linear layer or an embedding table may be read, rather than the module called.

Any `nn.Linear` or `nn.Embedding` of a model may be replaced by a module that wraps it: LoRA and other adapters, quantized layers,
parametrizations, pruning. Such a module may have no weight, or one that is only part of its map. So layers are called. The few
places where reading the matrix is less work ask `plain_weight` first, and call the module where it gives None.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks


def plain_weight(module: nn.Module) -> Tensor | None:
    """The weight of an unmodified `nn.Linear` [out in] or `nn.Embedding` [rows dim]; None for any other module.

    A linear layer with hooks counts as modified. Hooks on an embedding apply to its lookups only.
    """
    if "forward" in vars(module):
        return None  # replaced on the instance, as offloading does
    if type(module) is nn.Linear:
        modified = bool(module._forward_hooks or module._forward_pre_hooks)
    elif type(module) is nn.Embedding:
        modified = module.max_norm is not None
    else:
        return None
    # pruning and weight_norm keep a plain tensor here, and quantization a subclass of Parameter
    return None if modified or type(module.weight) is not nn.Parameter else module.weight


def linear(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`. Without gradients an `nn.Linear` that has no hooks is not called, but computed: a call takes half as long again
    as the product of a single token."""
    if type(module) is not nn.Linear or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return module(x)
    state = vars(module)
    hooks = state["_forward_hooks"] or state["_forward_pre_hooks"] or _global_forward_hooks or _global_forward_pre_hooks
    if hooks or "forward" in state:
        return module(x)
    held = state["_parameters"]
    return F.linear(x, held["weight"], held["bias"])
