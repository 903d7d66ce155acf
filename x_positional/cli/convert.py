"""`x-positional convert`: a published model, a GGUF file or a run of ours, to a folder of another form."""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from x_positional.cli.generate import load_net
from x_positional.cli.hints import command
from x_positional.cli.published import checkpoint_of, dtype_of, is_published, loaded, opened
from x_positional.errors import PretrainedError, UserError
from x_positional.models.saving import Format
from x_positional.pretrained.source import Source
from x_positional.pretrained.tensors.files import CONFIG
from x_positional.pretrained.tensors.write import write_json
from x_positional.pretrained.tokenizers.byte_level import byte_tokenizer
from x_positional.pretrained.tokenizers.text import GENERATION, TextTokenizer
from x_positional.training.checkpoints.checkpoint import TOKENIZER

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
"""What a folder holds of words, copied as it is."""


@dataclass(frozen=True)
class Found:
    """model: loaded. words: writes the tokenizer into a folder; raises PretrainedError where there is none."""

    model: Any
    words: Callable[[Path], None]


def convert(path: Path, target: Path, form: Format, *, model_type: str | None, dtype: str | None) -> None:
    """Read, write, and print what is there now. Raises UserError, PretrainedError."""
    console = Console(stderr=True)
    if (target / CONFIG).exists() or target.is_file():
        raise UserError(f"{target} holds a model already; name another folder, or take that one away")
    found = _published(opened(path, console), console, dtype) if is_published(path) else _run(path, dtype)
    with console.status(f"writing {target}"):
        found.model.save_pretrained(target, format=form, model_type=model_type)
        note = _write_words(found, target)
    print(f"{target}:")
    for file in sorted(target.iterdir()):
        print(f"  {file.stat().st_size:>13,}  {file.name}")
    if note:
        print(note)
    for line in _next(target, form, words=not note):
        print(line)


def _published(source: Source, console: Console, dtype: str | None) -> Found:
    def words(target: Path) -> None:
        tokenizer = source.tokenizer()
        if source.path.is_dir():
            for name in COPIED:
                if (source.path / name).is_file():
                    shutil.copyfile(source.path / name, target / name)
        else:
            tokenizer.save(target)
        _write_ends(tokenizer, target)

    return Found(loaded(source, console, dtype, "cpu"), words)


def _run(path: Path, dtype: str | None) -> Found:
    checkpoint = checkpoint_of(path)
    model = load_net(checkpoint, "cpu").to(dtype_of(dtype))
    kind = checkpoint.trainer["tokenizer"]

    def words(target: Path) -> None:
        if kind is None:
            raise PretrainedError(f"{path} has no tokenizer:", ["it was trained on bare ids."])
        if kind == TOKENIZER:
            shutil.copyfile(checkpoint.path / TOKENIZER, target / TOKENIZER)
        else:
            tokenizer = byte_tokenizer()
            tokenizer.save(target)
            _write_ends(tokenizer, target)

    return Found(model, words)


def _write_words(found: Found, target: Path) -> str:
    """The tokenizer beside the model; what to say where there is none."""
    try:
        found.words(target)
    except PretrainedError as error:
        return f"no tokenizer was written: {error}"
    return ""


def _write_ends(tokenizer: TextTokenizer, target: Path) -> None:
    """Where texts end, in a file of its own where none says it."""
    if tokenizer.ends and not (target / GENERATION).exists():
        write_json(target / GENERATION, {"eos_token_id": list(tokenizer.ends)})


def _next(target: Path, form: Format, words: bool) -> list[str]:
    folder, program = shlex.quote(str(target)), command()
    lines = [f"{program} verify {folder}"] if form == "hf" else []
    lines += [f"{program} generate {folder} --prompt 'The '"] if words else []
    return ["next:", *(f"  {line}" for line in lines)] if lines else []
