"""Published models on the command line: opening and loading them, with a progress bar."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from x_positional.errors import DamagedCheckpoint, UserError
from x_positional.models.quantize import Quantization
from x_positional.pretrained.api import load_source
from x_positional.pretrained.folder import CONFIG, contains_model
from x_positional.pretrained.source import Source, checkpoint_of_run, open_source
from x_positional.pretrained.tensors.files import Tensors
from x_positional.pretrained.tokenizers.text import SETTINGS
from x_positional.training.checkpoints.checkpoint import Checkpoint, open_checkpoint
from x_positional.training.config import RunConfig

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def is_published(path: Path) -> bool:
    """Whether a path is a published model (GGUF, a folder with config.json, a name on the Hub) rather than a run."""
    if path.is_dir():
        return contains_model(path) or any(path.glob("*.gguf"))
    return path.is_file() or _is_hub_name(path)


def descends_from_published(path: Path) -> bool:
    """Whether a path is a run whose tokenizer is that of a published model: a fine-tuned one."""
    checkpoint = checkpoint_of_run(path) if path.is_dir() else None
    return checkpoint is not None and (checkpoint / SETTINGS).is_file()


def _is_hub_name(path: Path) -> bool:
    """Whether a path that does not exist can be `org/model`: a folder `org` here, or the default one of runs, is a path."""
    folder = path.parent
    local = (Path(), Path(".."), Path("~"), Path(RunConfig().dir).parent)
    return len(path.parts) == 2 and not path.is_absolute() and folder not in local and not folder.exists()


def checkpoint_of(path: Path) -> Checkpoint:
    """The checkpoint of a run. Raises UserError, which also describes what a published model is."""
    try:
        return open_checkpoint(path)
    except UserError as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise UserError(f"{error} (a published model is a folder with {CONFIG}, or a GGUF file)") from error


def opened(path: Path, console: Console) -> Source:
    """Open a published model and read its config. Raises PretrainedError, and UserError for a path that does not exist."""
    if not path.exists() and not _is_hub_name(path):
        raise UserError(
            f"{path}: no such file or folder; pass a folder with {CONFIG}, a GGUF file, or a model name on the Hub"
        )
    with console.status(f"reading {path.name}"):
        source = open_source(path if path.exists() else str(path))
        _ = source.config
    return source


def dtype_of(name: str | None) -> torch.dtype | None:
    """A dtype by name. Raises UserError."""
    if name is not None and name not in DTYPES:
        raise UserError(f"unknown --dtype {name}; supported: {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]


def loaded(
    source: Source,
    console: Console,
    dtype: str | None,
    device: str,
    ignore: Collection[str] = (),
    quantization: Quantization | None = None,
) -> Any:
    """Load the model of a source, with a progress bar. Raises PretrainedError, and UserError for dtype and device."""
    torch_dtype = dtype_of(dtype)
    with _bar(console, f"loading {source.path.name}") as (progress, task):
        watched = replace(source, tensors=lambda: WatchedTensors(source.tensors(), progress, task))
        try:
            return load_source(watched, torch_dtype, device, ignore=ignore, quantize=quantization)
        except (RuntimeError, AssertionError) as error:  # torch raises either for a device it does not have
            raise UserError(f"--device {device} cannot be used: {error}") from error


class WatchedTensors:
    """Tensors that advance a progress bar as they are read."""

    def __init__(self, tensors: Tensors, progress: Progress, task: Any):
        self.source, self._tensors, self._progress, self._task = tensors.source, tensors, progress, task
        progress.update(task, total=len(tensors.names()))

    def names(self) -> set[str]:
        return self._tensors.names()

    def shape(self, name: str) -> list[int]:
        return self._tensors.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors.dtype(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        self._progress.advance(self._task)
        return self._tensors.read(name, rows)


@contextmanager
def _bar(console: Console, label: str) -> Iterator[tuple[Progress, Any]]:
    columns = TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("tensors")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task(label, total=None)
