"""Tensors of a published model into a model of ours, one at a time, each read once and held once."""

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from x_positional.config.layers import LayersConfig
from x_positional.errors import PretrainedError
from x_positional.pretrained.family import Family, Place
from x_positional.pretrained.tensors.files import Tensors
from x_positional.pretrained.tensors.layouts import Sizes


class Names:
    """The tensors of a file under the names of its family: files of a body alone lack the prefix, and others add it."""

    def __init__(self, tensors: Tensors, family: Family):
        self.tensors, self.base, self.used = tensors, family.base, set[str]()
        self.held = _renamed(tensors.names(), family.older)
        self.aliases: dict[str, str] = {}
        self.ignored = [re.compile(pattern) for pattern in family.ignored]
        self._settle_copies(family.copies)

    def _settle_copies(self, copies: Mapping[str, str]) -> None:
        """One of two copies is enough, and either will do. Two that differ are two tensors."""
        for copy, original in copies.items():
            there, first = self.find(copy), self.find(original)
            if there is not None and first is not None:
                self.used |= {there} if self.same(there, first) else set()
            elif there is not None:
                self.alias(original, there)
            elif first is not None:
                self.alias(copy, first)

    def find(self, name: str) -> str | None:
        """The name in the file, None where it is not there."""
        name = self.aliases.get(name, name)
        short = name.removeprefix(self.base)
        return next((n for n in (name, short, self.base + name) if n in self.held), None)

    def alias(self, name: str, there: str) -> None:
        """Read `name` from another tensor of the file."""
        self.aliases[name] = there

    def unused(self) -> list[str]:
        """Tensors that nothing asked for and that hold something."""
        return sorted(n for n in self.held.keys() - self.used if not any(p.search(n) for p in self.ignored))

    def read(self, name: str) -> Tensor:
        """A tensor by the name that `find` gave."""
        return self.tensors.read(self.held[name])

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors of the file are equal, bit by bit."""
        a, b = self.read(one), self.read(other)
        return a.shape == b.shape and torch.equal(a, b)


def _renamed(names: set[str], older: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Today's names -> those in the file."""
    held: dict[str, str] = {}
    for name in sorted(names):
        now = name
        for pattern, replacement in older:
            now = re.sub(pattern, replacement, now)
        held[now if now not in names else name] = name
    return held


def sizes_of(layers: LayersConfig, place: Place) -> Sizes:
    """What a layout may need to know at a place."""
    kinds = layers.layer_kinds()
    return Sizes(layers, None if place.layer is None else kinds[int(place.layer) % len(kinds)])


def fill(
    model: nn.Module,
    family: Family,
    layers: Callable[[str], LayersConfig],
    names: Names,
    *,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> None:
    """Put tensors into a model whose parameters are on the meta device. layers: the stack that a parameter belongs to.

    Raises PretrainedError with every tensor that is missing, that does not fit, and that nothing asks for.
    """
    problems: list[str] = []
    for name, parameter in list(model.named_parameters()):
        loaded = _loaded(name, parameter, family, layers(name), names, problems)
        if loaded is not None and not problems:
            wanted = dtype if parameter.requires_grad else None  # what no gradient moves stays as wide as it is
            ready = loaded.to(device=device or "cpu", dtype=wanted or loaded.dtype, copy=True).contiguous()
            replace_parameter(model, parameter, nn.Parameter(ready, requires_grad=parameter.requires_grad))
    problems += [f"{name} of the file has no place in the model." for name in names.unused()]
    if problems:
        raise PretrainedError(f"{names.tensors.source} does not fit {family.model_type}:", problems)


def _loaded(
    name: str, parameter: Tensor, family: Family, layers: LayersConfig, names: Names, problems: list[str]
) -> Tensor | None:
    place = family.layout_of(name)
    if place is None:
        problems.append(f"{name}: {family.model_type} says nothing of where it lies.")
        return None
    sizes = sizes_of(layers, place)
    wanted = place.names(sizes)
    found = [names.find(theirs) for theirs in wanted]
    missing = [theirs for theirs, there in zip(wanted, found, strict=True) if there is None]
    names.used |= {there for there in found if there is not None}
    if missing:
        problems += [f"{theirs} is missing (for {name})." for theirs in missing]
        return None
    parts = [names.read(there) for there in found if there is not None]
    try:
        loaded = place.layout.load(parts, sizes)
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{n} {list(p.shape)}" for n, p in zip(wanted, parts, strict=True))
        problems.append(f"{shapes} do not fit together (for {name} {list(parameter.shape)}): {error}")
        return None
    if loaded.shape != parameter.shape:
        shapes = ", ".join(f"{n} {list(p.shape)}" for n, p in zip(wanted, parts, strict=True))
        problems.append(
            f"{shapes}: config.json asks for {list(parameter.shape)} (for {name}), and this is {list(loaded.shape)}."
        )
        return None
    return loaded


def replace_parameter(model: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Wherever a parameter stands, tied ones stand twice."""
    for module, leaf in list(_places(model, old)):
        setattr(module, leaf, new)


def _places(model: nn.Module, parameter: nn.Parameter) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for leaf, value in module.named_parameters(recurse=False, remove_duplicate=False):
            if value is parameter:
                yield module, leaf
