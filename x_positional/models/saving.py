"""`model.save_pretrained`, and the formats that it can write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import Self

from x_positional.errors import ArgumentError, PretrainedError
from x_positional.models.quantize import Quantizable, replace_matrices
from x_positional.schemes.base import PositionScheme

Format = Literal["hf", "native"]
Writer = Callable[[Any, Path, str | None, bool | None], None]
"""(Model, folder, model_type, code) -> writes the folder."""

_WRITERS: dict[Format, Writer] = {}


def register_writer(form: Format, writer: Writer) -> None:
    """Set the function behind `save_pretrained(format=form)`.

    `x_positional.pretrained` calls this when it is imported. It builds models, so imports go from it to this folder and
    never back, and the writers cannot be imported here. They are always registered: Python runs `x_positional/__init__.py`
    before any module of the package, and that imports `x_positional.pretrained`.
    """
    _WRITERS[form] = writer


class Saveable(Quantizable):
    """A model that can be written to a folder."""

    config: Any
    origin: Any = None
    """Family and config.json of a model that was loaded from a published checkpoint, otherwise None."""

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The model of a config."""
        raise TypeError(f"{cls.__name__} defines no from_config(config)")

    def save_pretrained(
        self,
        folder: str | Path,
        format: Format = "native",
        model_type: str | None = None,
        code: bool | None = None,
    ) -> None:
        """Write config and safetensors to a folder; `x_positional.from_pretrained(folder)` reads both formats.

        The model of the folder is replaced as a whole: after a crash at any instant the folder contains the old or the new
        model. Other files in it are kept.

        Args:
            folder: Created if it does not exist.
            format: "native" supports every model; "hf" is what `AutoModel*.from_pretrained` of transformers reads.
            model_type: The family for "hf"; None for the family that the model was loaded from, or the first that fits.
            code: How "hf" writes it. None: as a published family where one expresses the model exactly, otherwise with a
                small module beside the weights that imports x_positional (`trust_remote_code=True`). False: as a family, or not
                at all. True: with that module.

        Raises:
            ArgumentError: If the format is unknown.
            PretrainedError: If nothing that `code` allows expresses the model, with the settings that the closest family lacks;
                if the parameters are not those that `config` describes; if the folder cannot be written.
        """
        if format not in _WRITERS:
            raise ArgumentError(f"unknown format={format!r}; supported: {', '.join(map(repr, _WRITERS))}.")
        if format == "hf" and self.quantized is not None:
            raise PretrainedError(
                "this model cannot be written for transformers:",
                [
                    f"its weights are {self.quantized} with a scale per row, which transformers does not read. Use "
                    "format='native', or save the model before it is quantized."
                ],
            )
        check_matches_config(self)
        _WRITERS[format](self, Path(folder), model_type, code)


def check_matches_config(model: Saveable) -> None:
    """Raises PretrainedError where reading the config and the parameters back would not give this model: after tables were
    exchanged, schemes were set or layers were wrapped by hand."""
    with torch.device("meta"):
        described = type(model).from_config(model.config)
        if model.quantized is not None:
            replace_matrices(described)
    own, expected = dict(model.named_parameters()), dict(described.named_parameters())
    shared = set(dict(model.named_parameters(remove_duplicate=False))) - own.keys()
    problems = [
        f"{name} is shared with another parameter." if name in shared else f"{name} is missing."
        for name in expected.keys() - own.keys()
    ]
    problems += [f"{name} is not described by the config." for name in own.keys() - expected.keys()]
    for name in own.keys() & expected.keys():
        tensor, shape = own[name], expected[name].shape
        if tensor.shape != shape:
            problems.append(f"{name} has shape {list(tensor.shape)}; the config describes {list(shape)}.")
        elif tensor.dtype == torch.int8 == expected[name].dtype:
            continue
        elif not tensor.is_floating_point():
            problems.append(f"{name} has dtype {tensor.dtype}, as quantized weights do.")
    problems += _other_schemes(model, described)
    if problems:
        raise PretrainedError(
            "this model cannot be written, because it differs from model.config. Merge and unload adapters, remove "
            "parametrizations, and describe exchanged parts in the config, as in "
            "model.config = model.config.model_copy(update={'num_tokens': ...}). Differences:",
            sorted(problems),
        )


def _other_schemes(model: nn.Module, described: nn.Module) -> list[str]:
    """Position schemes that were exchanged: many have no parameters, so that the tensors would not show it."""
    own = {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, PositionScheme)}
    expected = {n: type(m).__name__ for n, m in described.named_modules() if isinstance(m, PositionScheme)}
    return [
        f"{name} is {own.get(name, 'missing')}; the config describes {expected.get(name, 'no scheme')}."
        for name in own.keys() | expected.keys()
        if own.get(name) != expected.get(name)
    ]
