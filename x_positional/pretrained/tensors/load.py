"""Load the tensors of a published model into an x_positional model, one at a time, without a second copy."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from x_positional.config.layers import LayersConfig
from x_positional.errors import PretrainedError
from x_positional.models.sharding import allocate, own_rows, put, put_rows
from x_positional.pretrained.family import Family, Location
from x_positional.pretrained.tensors.files import Tensors
from x_positional.pretrained.tensors.layouts import ByNormPlace, Same, Sizes

if TYPE_CHECKING:  # torch may be built without distributed, and importing it takes time
    from torch.distributed.device_mesh import DeviceMesh

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of parameters; others, as float8_e4m3fn or int8, hold quantised weights."""


class TensorNames:
    """The tensors of a checkpoint under the names of its family.

    Resolves legacy names, copies, and the prefix that checkpoints without a head omit, and tracks which tensors are used.
    """

    def __init__(self, tensors: Tensors, family: Family):
        self.tensors, self.prefix, self.used = tensors, family.prefix, set[str]()
        self.stored = _current_names(tensors.names(), family.legacy_names)
        self.aliases: dict[str, str] = {}
        self.advice: dict[str, str] = {}  # tensor -> what to do where it is missing
        self.ignored = [re.compile(pattern) for pattern in family.ignored_tensors]
        self._resolve_copies(family.copies)

    def _resolve_copies(self, copies: Mapping[str, str]) -> None:
        """One of two copies is enough, and either will do. Two that differ are two separate tensors."""
        for copy, original in copies.items():
            second, first = self.find(copy), self.find(original)
            if second is not None and first is not None:
                self.used |= {second} if self.equal(second, first) else set()
            elif second is not None:
                self.alias(original, second)
            elif first is not None:
                self.alias(copy, first)

    def find(self, name: str) -> str | None:
        """The name in the checkpoint; None if the tensor does not exist."""
        name = self.aliases.get(name, name)
        short = name.removeprefix(self.prefix)
        return next((n for n in (name, short, self.prefix + name) if n in self.stored), None)

    def alias(self, name: str, found: str) -> None:
        """Read `name` from another tensor of the checkpoint."""
        self.aliases[name] = found

    def unused(self) -> list[str]:
        """Tensors that no parameter uses and that are not ignored. Tensors without elements hold nothing."""
        left = {n for n in self.stored.keys() - self.used if 0 not in self.tensors.shape(self.stored[n])}
        return sorted(n for n in left if not any(p.search(n) for p in self.ignored))

    def read(self, found: str) -> Tensor:
        """A tensor by the name that `find` returned."""
        return self.tensors.read(self.stored[found])

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors of the checkpoint are bit-equal."""
        a, b = self.read(one), self.read(other)
        return a.shape == b.shape and torch.equal(a, b)


def _current_names(names: set[str], legacy: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Current names -> names in the checkpoint."""
    stored: dict[str, str] = {}
    for name in sorted(names):
        current = name
        for pattern, replacement in legacy:
            current = re.sub(pattern, replacement, current)
        stored[current if current not in names else name] = name
    return stored


def sizes_at(layers: LayersConfig, location: Location) -> Sizes:
    """The sizes that a layout may need at a location."""
    kinds = layers.layer_kinds()
    return Sizes(layers, None if location.layer is None else kinds[int(location.layer) % len(kinds)])


def fill(
    model: nn.Module,
    family: Family,
    layers: Callable[[str], LayersConfig],
    names: TensorNames,
    *,
    dtype: torch.dtype | None,
    device: "torch.device | str | DeviceMesh | None",
    loaded: Callable[[str], object] | None = None,
) -> None:
    """Load tensors into a model whose parameters are on the meta device.

    Args:
        model: Its parameters are replaced.
        family: Maps parameters to tensors.
        layers: Parameter name -> the stack that it belongs to.
        names: The tensors of the checkpoint.
        dtype: None keeps the stored dtype. Parameters without gradients always keep it.
        device: None is the CPU. A mesh shards the model among its processes, each of which reads what it holds.
        loaded: Called with the name of each parameter that has got its value.

    Raises:
        PretrainedError: With every tensor that is missing, of the wrong shape, or unexpected.
    """
    problems: list[str] = []
    sharded = is_mesh(device)
    if sharded:
        allocate(model, device, dtype or common_dtype(names.tensors))  # type: ignore[arg-type]
    for name, parameter in list(model.named_parameters()):
        if sharded and not problems and _load_rows(name, parameter, family, layers(name), names):
            continue
        value = _load(name, parameter, family, layers(name), names, problems)
        if value is not None and not problems and sharded:
            put(parameter, value)
        elif value is not None and not problems:
            target = dtype if parameter.requires_grad else None
            ready = value.to(device=device or "cpu", dtype=target or value.dtype, copy=True).contiguous()  # type: ignore[arg-type]
            replace_parameter(model, parameter, nn.Parameter(ready, requires_grad=parameter.requires_grad))
            if loaded is not None:
                loaded(name)
    problems += [f"unexpected tensor {name} in the checkpoint." for name in names.unused()]
    if problems:
        raise PretrainedError(f"{names.tensors.source} does not fit {family.model_type}:", problems)


def is_mesh(device: object) -> bool:
    """Whether a device is the mesh of several."""
    return not isinstance(device, torch.device | str | None)


def common_dtype(tensors: Tensors) -> torch.dtype:
    """The dtype of most tensors."""
    counts = Counter(tensors.dtype(name) for name in sorted(tensors.names()))
    return max((dtype for dtype in counts if dtype in FLOATS), key=lambda dtype: counts[dtype], default=torch.float32)


def read_own(parameter: nn.Parameter, tensors: Tensors, stored: str) -> bool:
    """Fill the rows of a sharded parameter that this process holds from a tensor that stores it as it is; False where the
    parameter is not divided by rows, or does not fit the tensor."""
    rows = own_rows(parameter)
    if rows is None or tensors.shape(stored) != list(parameter.shape) or tensors.dtype(stored) not in FLOATS:
        return False
    if rows.stop > rows.start:
        put_rows(parameter, tensors.read(stored, rows))
    return True


def _load_rows(name: str, parameter: nn.Parameter, family: Family, layers: LayersConfig, names: TensorNames) -> bool:
    """`read_own` of a parameter that one tensor stores unchanged; False for others."""
    location = family.locate(name)
    if location is None or not isinstance(location.layout, Same | ByNormPlace):
        return False
    found = [names.find(theirs) for theirs in location.names(sizes_at(layers, location))]
    if len(found) != 1 or found[0] is None or not read_own(parameter, names.tensors, names.stored[found[0]]):
        return False
    names.used.add(found[0])
    return True


def _load(
    name: str, parameter: Tensor, family: Family, layers: LayersConfig, names: TensorNames, problems: list[str]
) -> Tensor | None:
    """The value of a parameter; None after adding to `problems`."""
    location = family.locate(name)
    if location is None:
        problems.append(f"no checkpoint mapping for parameter {name} in family {family.model_type!r}.")
        return None
    sizes = sizes_at(layers, location)
    expected = location.names(sizes)
    found = [names.find(theirs) for theirs in expected]
    missing = [theirs for theirs, stored in zip(expected, found, strict=True) if stored is None]
    names.used |= {stored for stored in found if stored is not None}
    if missing:
        problems += [f"{theirs} is missing (for {name}). {names.advice.get(theirs, '')}".rstrip() for theirs in missing]
        return None
    parts = [names.read(stored) for stored in found if stored is not None]
    quantised = [f"{n} {_dtype(p)}" for n, p in zip(expected, parts, strict=True) if p.dtype not in FLOATS]
    if quantised:
        problems.append(
            f"{', '.join(quantised)}: quantised tensors are unsupported (for {name}), with or without scales. Load an "
            "unquantised checkpoint, or let transformers dequantise it and save it again."
        )
        return None
    shapes = ", ".join(f"{n} {list(p.shape)}" for n, p in zip(expected, parts, strict=True))
    try:
        loaded = location.layout.load(parts, sizes)
    except (RuntimeError, IndexError) as error:
        problems.append(f"cannot combine {shapes} into {name} {list(parameter.shape)}: {error}")
        return None
    if loaded.shape != parameter.shape:
        problems.append(f"{shapes} gives {name} {list(loaded.shape)}; config.json needs {list(parameter.shape)}.")
        return None
    return loaded


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def replace_parameter(model: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Replace a parameter in every module that holds it (a tied one has several)."""
    for module, leaf in list(_holders(model, old)):
        setattr(module, leaf, new)


def _holders(model: nn.Module, parameter: nn.Parameter) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for leaf, value in module.named_parameters(recurse=False, remove_duplicate=False):
            if value is parameter:
                yield module, leaf
