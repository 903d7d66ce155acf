"""Ways to put another module where a model has an `nn.Linear` or `nn.Embedding`, each with the same map in one plain matrix."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

Layer: TypeAlias = nn.Linear | nn.Embedding


class Opaque(nn.Module):
    """Adds a low-rank delta to a layer, and has no weight, bias or size to read."""

    def __init__(self, layer: Layer):
        super().__init__()
        rows, columns = layer.weight.shape
        self.inner, self.down, self.up = layer, nn.Parameter(random(2, columns)), nn.Parameter(random(rows, 2))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, nn.Embedding):
            return self.inner(x) + self.up[x] @ self.down
        return self.inner(x) + x @ self.down.mT @ self.up.mT

    def merged(self) -> Layer:
        with torch.no_grad():
            self.inner.weight += self.up @ self.down
        return self.inner


class Transposed(nn.Module):
    """Keeps an integer matrix [in out] and a scale, as quantized layers do. `weight` has another shape than the map's."""

    def __init__(self, layer: Layer):
        super().__init__()
        scale = layer.weight.abs().amax() / 127
        self.weight = nn.Parameter((layer.weight / scale).round().to(torch.int8).mT.contiguous(), requires_grad=False)
        self.scale, self.shift = nn.Parameter(scale.detach()), layer.bias if isinstance(layer, nn.Linear) else None
        self.table = isinstance(layer, nn.Embedding)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.to(self.scale.dtype) * self.scale
        if self.table:
            return matrix.mT[x]
        return x @ matrix if self.shift is None else x @ matrix + self.shift

    def merged(self) -> Layer:
        matrix = (self.weight.to(self.scale.dtype) * self.scale).mT.detach()
        if self.table:
            return nn.Embedding.from_pretrained(matrix)
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=self.shift is not None, dtype=matrix.dtype)
        layer.weight = nn.Parameter(matrix)
        if self.shift is not None:
            layer.bias = self.shift
        return layer


class Scaled(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.5 + 0.1


def parametrized(layer: Layer) -> None:
    parametrize.register_parametrization(layer, "weight", Scaled())


def normed(layer: Layer) -> None:
    """Weight norm, moved off its start."""
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.get_parameter("parametrizations.weight.original0").mul_(1.5)


def pruned(layer: Layer) -> None:
    """Pruning recomputes `weight`, an ordinary attribute, before each call. Here it holds garbage until then."""
    prune.random_unstructured(layer, "weight", 0.3)
    layer.weight = layer.weight * float("nan")


def hooked(layer: Layer) -> None:
    """A hook that changes what a linear layer returns."""
    if isinstance(layer, nn.Linear):
        layer.register_forward_hook(lambda module, args, output: output.flip(-1))


def patched(layer: Layer) -> None:
    """`forward` replaced on the instance, as offloading does."""
    plain = layer.forward
    layer.forward = lambda input: plain(input).flip(-1)


IN_PLACE: dict[str, Callable[[Any], None]] = {f.__name__: f for f in (parametrized, normed, pruned, hooked, patched)}


def unmodified(layer: Layer) -> Layer:
    """A plain layer with the map of one that IN_PLACE changed."""
    if isinstance(layer, nn.Embedding):
        return nn.Embedding.from_pretrained(layer(torch.arange(layer.num_embeddings)).detach(), freeze=False)
    matrix = torch.eye(layer.in_features, dtype=layer.weight.dtype)
    out = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=matrix.dtype)
    with torch.no_grad():
        shift = layer(torch.zeros_like(matrix[:1]))
        out.weight.copy_((layer(matrix) - shift).mT)
        if layer.bias is not None:
            out.bias.copy_(shift[0])
    return out


def targets(model: nn.Module) -> list[str]:
    """Names of all linear layers and embeddings."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]


def replace_all(model: nn.Module, make: Callable[[Any], nn.Module]) -> None:
    """Put make(layer) in place of every linear layer and embedding."""
    for name in targets(model):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, make(model.get_submodule(name)))


def random(*shape: int) -> Tensor:
    """Numbers of size 0.3 in float64, the same for each shape."""
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
