"""`model.save_pretrained`: what can write a model says so here, by the name of its format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

Format = Literal["hf", "native"]
Writer = Callable[[Any, Path, str | None], None]
WRITERS: dict[str, Writer] = {}


class Saveable(nn.Module):
    """A model that can be written to a folder. origin: where it came from, None for one of your own."""

    config: Any
    origin: Any = None
    writers: ClassVar[dict[str, Writer]] = WRITERS

    def save_pretrained(self, folder: str | Path, format: Format = "native", model_type: str | None = None) -> None:
        """Write config and safetensors into `folder`, which is made if it is not there.

        format: "native" holds every model of ours; "hf" is what `transformers` reads, for architectures that a family of
        published models has. model_type: the family; None is the one that the model came from, or the first that fits.
        `x_positional.from_pretrained(folder)` reads both. Files are put in place when they are whole.

        Raises PretrainedError, with what no family has, where "hf" cannot say the model.
        """
        if format not in self.writers:
            raise ValueError(f"format={format!r} is none of {', '.join(map(repr, self.writers))}.")
        self.writers[format](self, Path(folder), model_type)
