"""Write config and tensors to a folder: shards of a few gigabytes, each file moved into place when it is complete."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from x_positional.pretrained.tensors.files import CONFIG, INDEX, WEIGHTS

MAX_SHARD = 5 * 10**9
"""Bytes of a file, as in transformers."""


def write_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], max_shard: int = MAX_SHARD
) -> None:
    """Write weights first and config last, so that a folder with a config.json is complete. Old weights are removed."""
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


def split(tensors: Mapping[str, Tensor], max_shard: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, in shards of at most `max_shard` bytes (or of one tensor)."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object to a file, moved into place when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _place(temporary, path)


def _place(temporary: Path, path: Path) -> None:
    """Flush to disk, then rename atomically."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)
