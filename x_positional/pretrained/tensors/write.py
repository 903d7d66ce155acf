"""Config and tensors into a folder: shards of a few gigabytes, each file put in place when it is whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from x_positional.pretrained.tensors.files import CONFIG, INDEX, WEIGHTS

MAX_SHARD = 5 * 10**9
"""Bytes of a file, as transformers has it."""


def write_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], max_shard: int = MAX_SHARD
) -> None:
    """Weights first, config last: a folder with a config.json is whole. Weights that were there before are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = split(tensors, max_shard)
    many = len(shards) > 1
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))] if many else [WEIGHTS]
    for name, shard in zip(names, shards, strict=True):
        temporary = folder / f".{name}.{os.getpid()}"
        save_file(shard, temporary, metadata={"format": "pt"})
        _place(temporary, folder / name)
    if many:
        total = sum(t.nbytes for t in tensors.values())
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    for old in {*folder.glob("model*.safetensors"), *folder.glob(INDEX)} - {folder / n for n in names}:
        if not (many and old.name == INDEX):
            old.unlink()
    write_json(folder / CONFIG, config)


def split(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, in files of at most `most` bytes (or one tensor)."""
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > most:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    return shards


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """An object into a file, put in place when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _place(temporary, path)


def _place(temporary: Path, path: Path) -> None:
    """Flush to disk, then take the place in one move."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
