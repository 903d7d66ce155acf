"""x_positional's own format: any of its models, with its config and its parameters as they are."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from x_positional.config.models import FileConfig, ModelConfig, plain
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.config.vision import VisionConfig
from x_positional.errors import PretrainedError
from x_positional.models.language import TokenEncoder, TransformerWrapper
from x_positional.models.quantize import Quantization, QuantizeLoaded, check_quantization, replace_matrices
from x_positional.models.saving import Saveable
from x_positional.models.seq2seq import XTransformer
from x_positional.models.sharding import allocate, put
from x_positional.models.vision import ViTransformerWrapper
from x_positional.modules.quantized import IntegerWeights
from x_positional.pretrained.folder import CONFIG
from x_positional.pretrained.limits import Limits, at_most, failures
from x_positional.pretrained.tensors.files import Tensors
from x_positional.pretrained.tensors.load import FLOATS, common_dtype, is_mesh, read_own, replace_parameter
from x_positional.pretrained.tensors.write import write_folder

if TYPE_CHECKING:  # torch may be built without distributed, and importing it takes time
    from torch.distributed.device_mesh import DeviceMesh

NATIVE = "x_positional"
"""The `model_type` of the format."""
PREFIX = "model."
"""What the names of tensors start with in a folder for transformers, whose classes hold the model as `model`."""
CLASSES: dict[str, tuple[type[nn.Module], type[FileConfig]]] = {
    "TransformerWrapper": (TransformerWrapper, ModelConfig),
    "TokenEncoder": (TokenEncoder, ModelConfig),
    "XTransformer": (XTransformer, Seq2SeqConfig),
    "ViTransformerWrapper": (ViTransformerWrapper, VisionConfig),
}


def save_native(model: Saveable, folder: Path, model_type: str | None = None, code: bool | None = None) -> None:
    """Write config.json and safetensors. Raises ConfigError for a scheme that was passed as an instance."""
    given = {"model_type": model_type, "code": code}
    if problems := [f"{name}={value!r} needs format='hf'." for name, value in given.items() if value is not None]:
        raise PretrainedError("this model cannot be written:", [f"{p} Remove it or change format." for p in problems])
    tensors = {n: p.detach().contiguous().cpu() for n, p in model.named_parameters()}
    write_folder(folder, native_config(model), tensors)


def native_config(model: Saveable) -> dict[str, Any]:
    """The config.json of a model. Raises PretrainedError for other classes, ConfigError for a scheme passed as an instance."""
    name = type(model).__name__
    if name not in CLASSES:
        raise PretrainedError(f"a {name} cannot be written:", [f"supported classes: {', '.join(CLASSES)}."])
    quantized = {} if model.quantized is None else {"quantize": model.quantized}
    return {"model_type": NATIVE, "class": name, "model": plain(model.config), **quantized}


def read_native_config(hf: Mapping[str, Any], source: str) -> FileConfig:
    """The config of the model of a config.json in this format. Raises PretrainedError."""
    _, schema = _classes_of(hf, source)
    with failures(f"unsupported {CONFIG} in {source}:"):
        return schema.model_validate(hf.get("model"))


def _classes_of(hf: Mapping[str, Any], source: str) -> tuple[type[nn.Module], type[FileConfig]]:
    """The class of a config.json, and that of its config. Raises PretrainedError."""
    name = hf.get("class")
    if not isinstance(name, str) or name not in CLASSES:
        raise PretrainedError(
            f"{source} cannot be read:", [f"unsupported class={name!r}; supported: {', '.join(CLASSES)}."]
        )
    return CLASSES[name]


def load_native(
    hf: Mapping[str, Any],
    tensors: Tensors,
    dtype: torch.dtype | None,
    device: "torch.device | str | DeviceMesh | None",
    quantize: Quantization | None = None,
) -> nn.Module:
    """The model of a config.json in this format. Raises PretrainedError with every tensor that does not fit."""
    classes = _classes_of(hf, tensors.source)
    tensors = _Renamed(tensors)
    with failures(f"unsupported {CONFIG} in {tensors.source}:"):
        model = _build(*classes, hf.get("model"), tensors)
        if hf.get("quantize") is not None:
            check_quantization(hf["quantize"])
            replace_matrices(model)
    parameters, stored = dict(model.named_parameters()), tensors.names()
    problems = [f"{name} is missing." for name in parameters if name not in stored]
    problems += [f"unexpected tensor {name} in the checkpoint." for name in sorted(stored - set(parameters))]
    problems += [
        f"{name} has shape {tensors.shape(name)}; config.json needs {list(parameters[name].shape)}."
        for name in parameters.keys() & stored
        if tensors.shape(name) != list(parameters[name].shape)
    ]
    if problems:
        raise PretrainedError(f"{tensors.source} does not fit its config.json:", problems)
    if is_mesh(device):
        return _fill_shards(model, tensors, dtype, device, quantized=hf.get("quantize") is not None)  # type: ignore[arg-type]
    loaded = QuantizeLoaded(model, None if hf.get("quantize") == quantize else quantize)
    scales = {id(p) for m in model.modules() if isinstance(m, IntegerWeights) for p in m.scales()}
    for name, parameter in parameters.items():
        # parameters without gradients keep the stored dtype, but for scales, which have that of the matrices they stand for
        target = dtype if parameter.requires_grad or id(parameter) in scales else None
        raw = tensors.read(name)
        if raw.dtype not in ((torch.int8,) if parameter.dtype == torch.int8 else FLOATS):
            raise PretrainedError(
                f"{tensors.source} cannot be read:", [f"{name} has the unsupported dtype {raw.dtype}."]
            )
        tensor = raw.to(device=device or "cpu", dtype=target, copy=True)  # type: ignore[arg-type]
        replace_parameter(model, parameter, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
        loaded(name)
    return model.eval()


class _Renamed:
    """Tensors without PREFIX in their names."""

    def __init__(self, tensors: Tensors):
        self.source, self._tensors = tensors.source, tensors
        self._stored = {name.removeprefix(PREFIX): name for name in tensors.names()}

    def names(self) -> set[str]:
        return set(self._stored)

    def shape(self, name: str) -> list[int]:
        return self._tensors.shape(self._stored[name])

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors.dtype(self._stored[name])

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self._tensors.read(self._stored[name], rows)


def _fill_shards(
    model: nn.Module, tensors: Tensors, dtype: torch.dtype | None, mesh: "DeviceMesh", *, quantized: bool
) -> nn.Module:
    """Shard a model among the processes of a mesh, each of which reads what it holds."""
    if quantized:
        raise PretrainedError(
            f"{tensors.source} cannot be read:", ["it is quantized; device_mesh divides float parameters only."]
        )
    allocate(model, mesh, dtype or common_dtype(tensors))
    for name, parameter in model.named_parameters():
        if not read_own(parameter, tensors, name):
            put(parameter, tensors.read(name))
    return model.eval()


def _build(cls: type[nn.Module], schema: type[FileConfig], config: Any, tensors: Tensors) -> nn.Module:
    """The model of a config on the meta device, after comparing its sizes with the tensors."""
    limits = Limits.of(tensors)
    if problems := limits.tree_problems(config):
        raise PretrainedError(f"{CONFIG} of {tensors.source} does not fit its tensors:", problems)
    build: Callable[[Any], nn.Module] = cls.from_config  # type: ignore[attr-defined]
    with torch.device("meta"), at_most(limits.tensors):
        return build(schema.model_validate(config))
