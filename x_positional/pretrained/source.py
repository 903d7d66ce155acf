"""A published model where it lies: a folder or a GGUF file, opened once for its config, its tensors and its words."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from x_positional.errors import PretrainedError
from x_positional.pretrained.gguf.config import architecture_of, config_of
from x_positional.pretrained.gguf.file import GgufFile, is_gguf
from x_positional.pretrained.gguf.tensors import GgufTensors
from x_positional.pretrained.gguf.tokens import gguf_tokenizer
from x_positional.pretrained.hub import located
from x_positional.pretrained.tensors.files import CONFIG, PICKLES, SAFE, Tensors, open_tensors, read_json
from x_positional.pretrained.tokenizers.text import TextTokenizer, folder_tokenizer


@dataclass(frozen=True)
class Source:
    """What a model is built from. path: the folder or file. said: `config.json`, read once as `config`."""

    path: Path
    said: Callable[[], dict[str, Any]]
    tensors: Callable[[], Tensors]
    tokenizer: Callable[[], TextTokenizer]

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.said()


def _folder(path: Path) -> Source:
    """A folder with config.json and safetensors."""

    def tokenizer() -> TextTokenizer:
        return folder_tokenizer(path, read_json(path / CONFIG) if (path / CONFIG).is_file() else {})

    def config() -> dict[str, Any]:
        if (path / CONFIG).is_file():
            return read_json(path / CONFIG)
        found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise PretrainedError(
            f"{path} holds no model:", [f"there is neither {CONFIG} nor a GGUF file; it has {found}."]
        )

    return Source(path, config, lambda: open_tensors(path), tokenizer)


def _gguf(path: Path) -> Source:
    """A GGUF file, which holds everything."""
    file = GgufFile(path)

    def tensors() -> Tensors:
        heads = source.config["num_attention_heads"]
        return GgufTensors(file, architecture_of(file), heads, source.config.get("num_key_value_heads", heads))

    source = Source(path, lambda: config_of(file), tensors, lambda: gguf_tokenizer(file))
    return source


def open_source(source: str | Path) -> Source:
    """A folder, a GGUF file, a folder that holds one, or a name on the Hugging Face Hub. Raises PretrainedError."""
    path = located(source)
    if path.is_file():
        if is_gguf(path):
            return _gguf(path)
        raise PretrainedError(f"{path} cannot be read:", [_why_not(path)])
    ggufs = sorted(path.glob("*.gguf"))
    if not ggufs or (path / CONFIG).is_file():
        return _folder(path)
    if len(ggufs) == 1:
        return _gguf(ggufs[0])
    raise PretrainedError(
        f"{path} holds several models:", [f"name one of the files: {', '.join(file.name for file in ggufs)}."]
    )


def _why_not(path: Path) -> str:
    if path.suffix in PICKLES:
        return SAFE
    if path.suffix == ".safetensors":
        return f"safetensors say nothing of the model around them. Give the folder, with {CONFIG} in it: {path.parent}"
    return f"it is neither GGUF nor a folder with {CONFIG} and safetensors."


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """The tokenizer of a published model, from where `from_pretrained` reads the model: `encode`, `decode`, `decoder()`
    for ids that arrive one by one, and `chat` where it has a template.

    Raises PretrainedError where there is none, where it cannot be rebuilt, and where a package is missing.
    """
    return open_source(source).tokenizer()
