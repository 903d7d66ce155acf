"""LoRA adapters, through the library peft: added to a model, merged into it, and written in peft's format.

Adapters are written under x_positional's names, for this package's models, or under the names of the model's family, for those of
transformers.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from x_positional.errors import MissingExtra, PretrainedError, UserError, did_you_mean, import_extra
from x_positional.modules.block import Block
from x_positional.pretrained.commit import replacing
from x_positional.pretrained.export import Fit, fit_of
from x_positional.pretrained.model_kinds import layers_of
from x_positional.pretrained.tensors.load import sizes_at
from x_positional.pretrained.tensors.write import save_tensors

OLDEST = (0, 15)
"""The first supported version of peft."""
FROZEN = "frozen_without_adapters"
"""Attribute of a model with adapters: the parameters that are not trained without them."""
NAME, WEIGHTS, PREFIX = "default", "adapter_model.safetensors", "base_model.model."
"""peft's name of an adapter, its file of tensors, and what their names begin with."""


def add_adapters(
    net: nn.Module, *, r: int, lora_alpha: float, lora_dropout: float = 0.0, target_modules: Sequence[str] | None = None
) -> None:
    """Add trainable adapters to linear layers of a model, in place, and freeze everything else. The outputs do not change yet.

    Args:
        net: A model without adapters.
        r: Rank.
        lora_alpha: The update is scaled by `lora_alpha / r`.
        lora_dropout: Dropout of what the adapters read.
        target_modules: Names of linear layers, or how these names end. None is every linear layer of every block.

    Raises:
        MissingExtra: peft is not installed, or too old.
        UserError: No linear layer has one of these names.
    """
    peft = _peft()
    targets = _targets(net, target_modules)
    alpha = int(lora_alpha) if float(lora_alpha).is_integer() else lora_alpha
    config = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=lora_dropout, target_modules=targets)
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    peft.inject_adapter_in_model(config, net, NAME)
    setattr(net, FROZEN, frozen)


def merge_adapters(net: Any) -> None:
    """Add each adapter to the weight of its layer, in place: the same model without adapters, all of it trainable again."""
    _peft()
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(net.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, module.get_base_layer())
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in getattr(net, FROZEN))
    del net.peft_config
    delattr(net, FROZEN)


def adapter_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the adapters, by their names in the model."""
    return {name: parameter for name, parameter in net.named_parameters() if f".{NAME}." in name and ".lora_" in name}


def load_adapters(net: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into the adapters of a model. Raises PretrainedError with every name and shape that does not fit."""
    own = adapter_parameters(net)
    problems = [f"{name} is missing." for name in own.keys() - tensors.keys()]
    problems += [f"unexpected tensor {name}." for name in tensors.keys() - own.keys()]
    problems += [
        f"{name} has shape {list(tensors[name].shape)}; the model needs {list(own[name].shape)}."
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if problems:
        raise PretrainedError(f"the adapters in {source} do not fit the model:", sorted(problems))
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name])


def save_adapters(net: Any, folder: Path, base: str, *, published: bool = False) -> None:
    """Write the adapters of a model in peft's format: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        net: A model with adapters.
        folder: Its adapter is replaced as a whole.
        base: The model that the adapters belong to, for `base_model_name_or_path`.
        published: Use the names of the model's family, so that peft loads the adapters into the model of transformers.

    Raises:
        PretrainedError: `published`, and the family stores a layer in another form than a linear layer with the same inputs.
    """
    _peft()
    config = net.peft_config[NAME]
    tensors = (
        _published(net) if published else {n.replace(f".{NAME}.", "."): p for n, p in adapter_parameters(net).items()}
    )
    with replacing(folder) as stage:
        written = type(config)(**{**config.to_dict(), "base_model_name_or_path": base, "inference_mode": True})
        if published:
            written.target_modules = _short(net, fit_of(net), _modules(tensors))
            written.task_type = "CAUSAL_LM"
        written.save_pretrained(str(stage))
        stored = {PREFIX + name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_tensors(stored, stage / WEIGHTS)


def _peft() -> Any:
    """The library. Raises MissingExtra."""
    peft = import_extra("peft", "LoRA needs", "finetune")
    found = tuple(int(part) for part in peft.__version__.split(".")[:2] if part.isdecimal())
    if found < OLDEST:
        raise MissingExtra(
            f"LoRA needs peft {'.'.join(map(str, OLDEST))} or newer; installed is {peft.__version__}: "
            "pip install --upgrade 'x-positional[finetune]'"
        )
    return peft


def _targets(net: nn.Module, endings: Sequence[str] | None) -> list[str]:
    """Names of the linear layers that get an adapter. Raises UserError for an ending that no layer has."""
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    blocks = tuple(f"{name}." for name, module in net.named_modules() if isinstance(module, Block))
    if endings is None:
        return [name for name in linear if name.startswith(blocks)]
    for ending in endings:
        if not any(_ends(name, ending) for name in linear):
            leaves = {name.rpartition(".")[2] for name in linear}
            raise UserError(
                f"lora.target_modules: no linear layer has the name {ending!r}; {did_you_mean(ending, leaves)}"
            )
    return [name for name in linear if any(_ends(name, ending) for ending in endings)]


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


# Names of transformers


def _published(net: Any) -> dict[str, Tensor]:
    """The adapters under the names of the family. Raises PretrainedError with each layer that has none."""
    fit, out, problems = fit_of(net), {}, []
    for name, module in net.named_modules():
        if NAME in getattr(module, "lora_A", ()):
            try:
                out |= _stored(fit, name, module.lora_A[NAME].weight, module.lora_B[NAME].weight)
            except PretrainedError as error:
                problems += error.problems
    if problems:
        family = fit.family.model_type
        raise PretrainedError(f"the adapters cannot be written for transformers' {family} models:", problems)
    return out


def _stored(fit: Fit, name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """One adapter, as those of the published layers. down [r in], up [out r].

    Where the family's layout splits and reorders the rows of the weight, it does the same to the rows of `up`, and each
    published layer gets a copy of `down`: (up @ down)[rows] = up[rows] @ down.
    """
    location = fit.family.locate(f"{name}.weight")
    reason = f"{name} has no published layer of its own"
    if location is None or fit.config is None:
        raise PretrainedError("", [f"{reason}."])
    sizes = sizes_at(layers_of(fit.config, name), location)
    names = location.names(sizes)
    probe = torch.randn(down.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(up.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    try:
        weights, parts = location.layout.store(rows @ probe, sizes), location.layout.store(rows, sizes)
        same = all(
            w.shape == (p @ probe).shape and torch.allclose(w, p @ probe) for w, p in zip(weights, parts, strict=True)
        )
    except (RuntimeError, ValueError, IndexError):
        same = False
    if not same or not all(stored.endswith(".weight") for stored in names):
        raise PretrainedError("", [f"{name} is stored as {', '.join(names)} in another form (transposed or stacked)."])
    modules = [stored.removesuffix(".weight") for stored in names]
    out = {f"{module}.lora_A.weight": down for module in modules}
    parts = location.layout.store(up.detach(), sizes)
    return out | {f"{module}.lora_B.weight": part for module, part in zip(modules, parts, strict=True)}


def _modules(tensors: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".lora_")[0] for name in tensors))


def _short(net: nn.Module, fit: Fit, modules: list[str]) -> list[str]:
    """The last parts of the names, where no other layer ends in one of them; otherwise the whole names."""
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in modules))
    others = _published_modules(net, fit) - set(modules)
    return modules if any(name.rpartition(".")[2] in leaves for name in others) else leaves


def _published_modules(net: nn.Module, fit: Fit) -> set[str]:
    """Every module of the family's model that holds a parameter."""
    found: set[str] = set()
    adapters = adapter_parameters(net)
    for name, _ in net.named_parameters():
        location = None if name in adapters else fit.family.locate(name.replace(".base_layer.", "."))
        if location is not None and fit.config is not None:
            stored = location.names(sizes_at(layers_of(fit.config, name), location))
            found |= {tensor.rpartition(".")[0] for tensor in stored}
    return found
