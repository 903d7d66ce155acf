"""Our own format: any model of ours, its config beside its parameters."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from x_positional.config.models import FileConfig, ModelConfig, plain
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.config.vision import VisionConfig
from x_positional.errors import PretrainedError
from x_positional.models.language import TokenEncoder, TransformerWrapper
from x_positional.models.saving import Saveable
from x_positional.models.seq2seq import XTransformer
from x_positional.models.vision import ViTransformerWrapper
from x_positional.pretrained.tensors.files import Tensors
from x_positional.pretrained.tensors.load import replace_parameter
from x_positional.pretrained.tensors.write import write_folder

NATIVE = "x_positional"
CLASSES: dict[str, tuple[type[nn.Module], type[FileConfig]]] = {
    "TransformerWrapper": (TransformerWrapper, ModelConfig),
    "TokenEncoder": (TokenEncoder, ModelConfig),
    "XTransformer": (XTransformer, Seq2SeqConfig),
    "ViTransformerWrapper": (ViTransformerWrapper, VisionConfig),
}


def save_native(model: Saveable, folder: Path, model_type: str | None = None) -> None:
    """Write config.json and safetensors of any model of ours. Raises ConfigError for a scheme given as an instance."""
    if model_type is not None:
        raise PretrainedError(
            "this cannot be written:", [f"model_type={model_type!r} is for format='hf'; leave it out."]
        )
    name = type(model).__name__
    if name not in CLASSES:
        raise PretrainedError(f"{name} cannot be written:", [f"there are: {', '.join(CLASSES)}."])
    config = {"model_type": NATIVE, "class": name, "model": plain(model.config)}
    write_folder(folder, config, {n: p.detach().contiguous().cpu() for n, p in model.named_parameters()})


def load_native(
    hf: Mapping[str, Any], tensors: Tensors, dtype: torch.dtype | None, device: torch.device | str | None
) -> nn.Module:
    """The model of such a folder. Raises PretrainedError with every tensor that does not fit."""
    kind = hf.get("class")
    if kind not in CLASSES:
        raise PretrainedError(f"{tensors.source} cannot be read:", [f"class={kind!r} is none of {', '.join(CLASSES)}."])
    cls, config = CLASSES[kind]
    build: Callable[[Any], nn.Module] = cls.from_config  # type: ignore[attr-defined]
    with torch.device("meta"):
        model = build(config.model_validate(hf["model"]))
    own, held = dict(model.named_parameters()), tensors.names()
    problems = [f"{name} is missing." for name in own if name not in held]
    problems += [f"{name} has no place in the model." for name in sorted(held - set(own))]
    problems += [
        f"{name} has shape {tensors.shape(name)}, the model needs {list(own[name].shape)}."
        for name in own.keys() & held
        if tensors.shape(name) != list(own[name].shape)
    ]
    if problems:
        raise PretrainedError(f"{tensors.source} does not fit its config.json:", problems)
    for name, parameter in own.items():
        wanted = dtype if parameter.requires_grad else None  # what no gradient moves stays as wide as it is
        tensor = tensors.read(name).to(device=device or "cpu", dtype=wanted, copy=True)
        replace_parameter(model, parameter, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
    return model.eval()
