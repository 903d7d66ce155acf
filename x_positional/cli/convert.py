"""`x-positional convert`: a published model, a GGUF file or a run, to a folder in another format."""

import shlex
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from x_positional.cli.generate import load_net
from x_positional.cli.hints import command
from x_positional.cli.published import checkpoint_of, dtype_of, is_published, loaded, opened
from x_positional.errors import MissingExtra, PretrainedError, UserError
from x_positional.models.saving import Format
from x_positional.pretrained.adapters import save_adapters
from x_positional.pretrained.api import adapted
from x_positional.pretrained.commit import open_folder, replacing
from x_positional.pretrained.folder import MODELING, contains_model
from x_positional.pretrained.source import INIT, Source, open_source
from x_positional.pretrained.tokenizers.text import GENERATION
from x_positional.pretrained.tokenizers.write import write_tokenizer


@dataclass(frozen=True)
class Loaded:
    """A model to convert."""

    model: Any
    write_tokenizer: Callable[[Path], None]
    """Writes the tokenizer to a folder. Raises PretrainedError if there is none, MissingExtra if it needs a package."""


def convert(
    path: Path,
    target: Path,
    form: Format,
    *,
    code: bool | None = None,
    model_type: str | None,
    dtype: str | None,
    ignore: Collection[str] = (),
) -> None:
    """Read a model, write it, and list the files written. Raises UserError, PretrainedError."""
    console = Console(stderr=True)
    if contains_model(target) or target.is_file():
        raise UserError(f"{target} already contains a model; choose another folder or remove it")
    if ignore and not is_published(path):
        raise UserError(f"--ignore needs a published model; {path} is a run")
    source = _published(opened(path, console), console, dtype, ignore) if is_published(path) else _run(path, dtype)
    with console.status(f"writing {target}"), replacing(target) as stage:
        source.model.save_pretrained(stage, format=form, model_type=model_type, code=code)
        if (target / GENERATION).is_file():  # the user's own is kept, unless the source has one too
            shutil.copyfile(target / GENERATION, stage / GENERATION)
        note = try_tokenizer(source.write_tokenizer, stage)
    print(f"{target}:")
    for file in sorted(target.iterdir()):
        print(f"  {file.stat().st_size:>13,}  {file.name}")
    if note:
        print(note)
    for line in next_commands(target, form, generate=not note):
        print(line)


def convert_adapters(path: Path, target: Path, form: Format) -> None:
    """Write the adapters of a run alone, in peft's format. Raises UserError, PretrainedError."""
    if is_published(path):
        raise UserError(f"--adapter needs a run that trained adapters; {path} is a published model")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{target} is not an empty folder; choose another one")
    source = open_source(checkpoint_of(path).path)
    net = adapted(source)
    save_adapters(net, target, source.config[INIT]["source"], published=form == "hf")
    print(f"{target}:")
    for file in sorted(target.iterdir()):
        print(f"  {file.stat().st_size:>13,}  {file.name}")


def _published(source: Source, console: Console, dtype: str | None, ignore: Collection[str]) -> Loaded:
    return Loaded(loaded(source, console, dtype, "cpu", ignore), tokenizer_writer(source))


def _run(path: Path, dtype: str | None) -> Loaded:
    checkpoint = checkpoint_of(path)
    model = load_net(checkpoint, "cpu").to(dtype_of(dtype))

    return Loaded(model, tokenizer_writer(open_source(checkpoint.path)))


def tokenizer_writer(source: Source) -> Callable[[Path], None]:
    """Writes the tokenizer of a source to a folder. Raises PretrainedError if there is none, MissingExtra."""

    def write(target: Path) -> None:
        tokenizer = source.tokenizer()
        write_tokenizer(tokenizer, target, open_folder(source.path) if source.path.is_dir() else None)

    return write


def try_tokenizer(write: Callable[[Path], None], target: Path) -> str:
    """Write the tokenizer next to the model. Returns a note for the user where that is not possible."""
    try:
        write(target)
    except (PretrainedError, MissingExtra) as error:
        return f"no tokenizer was written: {error}"
    return ""


def next_commands(target: Path, form: Format, generate: bool) -> list[str]:
    """The commands to run on a folder that was written."""
    folder, program = shlex.quote(str(target)), command()
    family = form == "hf" and not (target / MODELING).exists()
    lines = [f"{program} verify {folder}"] if family else []
    lines += [f"{program} generate {folder} --prompt 'The '"] if generate else []
    return ["next:", *(f"  {line}" for line in lines)] if lines else []
