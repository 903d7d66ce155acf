"""`model.save_pretrained`, and the formats that it can write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from x_positional.errors import ArgumentError

Format = Literal["hf", "native"]
Writer = Callable[[Any, Path, str | None], None]
"""(Model, folder, model_type) -> writes the folder."""

_WRITERS: dict[Format, Writer] = {}


def register_writer(form: Format, writer: Writer) -> None:
    """Set the function behind `save_pretrained(format=form)`.

    `x_positional.pretrained` calls this when it is imported. It builds models, so imports go from it to this folder and
    never back, and the writers cannot be imported here. They are always registered: Python runs `x_positional/__init__.py`
    before any module of the package, and that imports `x_positional.pretrained`.
    """
    _WRITERS[form] = writer


class Saveable(nn.Module):
    """A model that can be written to a folder."""

    config: Any
    origin: Any = None
    """Family and config.json of a model that was loaded from a published checkpoint, otherwise None."""

    def save_pretrained(self, folder: str | Path, format: Format = "native", model_type: str | None = None) -> None:
        """Write config and safetensors to a folder; `x_positional.from_pretrained(folder)` reads both formats.

        The model of the folder is replaced as a whole: after a crash at any instant the folder contains the old or the new
        model. Other files in it are kept.

        Args:
            folder: Created if it does not exist.
            format: "native" supports every model; "hf" is what transformers reads, for models that a published family
                can express.
            model_type: The family for "hf"; None for the family that the model was loaded from, or the first that fits.

        Raises:
            ArgumentError: If the format is unknown.
            PretrainedError: If no family can express the model, with the settings that the closest one lacks; if the folder
                cannot be written.
        """
        if format not in _WRITERS:
            raise ArgumentError(f"unknown format={format!r}; supported: {', '.join(map(repr, _WRITERS))}.")
        _WRITERS[format](self, Path(folder), model_type)
