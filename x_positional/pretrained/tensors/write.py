"""Write config and tensors to a folder, in shards of a few gigabytes, replacing the old model as a whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from x_positional.errors import PretrainedError
from x_positional.pretrained.commit import flush_file, replacing
from x_positional.pretrained.folder import CONFIG, INDEX, WEIGHTS

MAX_SHARD = 5 * 10**9
"""Bytes of a file, as in transformers."""


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    max_shard: int = MAX_SHARD,
    *,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a model. After a crash at any instant the folder contains the old or the new model; other files are kept.

    Args:
        folder: Created if it does not exist.
        config: Contents of config.json.
        tensors: By name.
        max_shard: Bytes of a file.
        texts: Further files: name -> text.
    """
    shards = split(tensors, max_shard)
    many = len(shards) > 1
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))] if many else [WEIGHTS]
    with replacing(folder) as stage:
        for name, shard in zip(names, shards, strict=True):
            _save(shard, stage / name, folder)
        if many:
            total = sum(t.nbytes for t in tensors.values())
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            write_json(stage / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        for name, text in texts.items():
            (stage / name).write_text(text, encoding="utf-8")
        write_json(stage / CONFIG, config)


def _save(shard: Mapping[str, Tensor], path: Path, folder: Path) -> None:
    try:
        save_tensors(shard, path)
    except (SafetensorError, OSError) as error:  # a full disk, or no permission
        raise PretrainedError(f"{folder} cannot be written:", [f"{error}. The folder is unchanged."]) from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path, **metadata: str) -> None:
    """Write a safetensors file that may be read by whoever may read other new files: safetensors alone leaves it to its owner.

    Raises SafetensorError and OSError where it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt", **metadata})
    path.chmod(mode)


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
    flush_file(temporary)
    temporary.replace(path)
