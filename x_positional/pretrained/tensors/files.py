"""The tensors of a folder, read one at a time from one or several safetensors files; pickles are refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from x_positional.errors import PretrainedError
from x_positional.pretrained.commit import open_folder
from x_positional.pretrained.folder import INDEX, WEIGHTS, Folder, regular_file

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SAFE = (
    "A pickle can run arbitrary code when it is loaded, so it is never opened. If you trust it, load it with transformers and "
    "write it with save_pretrained(folder), which gives model.safetensors."
)

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Names of dtypes in safetensors."""


class Tensors(Protocol):
    """Named tensors of a checkpoint."""

    source: str
    """Where they come from, for messages."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> list[int]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str, rows: slice | None = None) -> Tensor: ...


class SafeTensors:
    """Tensors of safetensors files, by name. Files are memory-mapped: a tensor is read when it is requested."""

    def __init__(self, files: Mapping[str, Path], source: str):
        self.source, self._files = source, dict(files)
        self._open = {path: _opened(path) for path in sorted(set(files.values()))}

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> list[int]:
        return list(self._handle(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a float tensor; int8 for others."""
        return FLOATS.get(self._handle(name).get_slice(name).get_dtype(), torch.int8)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some of its rows, which are read alone."""
        try:
            handle = self._handle(name)
            return handle.get_tensor(name) if rows is None else handle.get_slice(name)[rows]
        except (SafetensorError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise PretrainedError(f"{self._files[name]} cannot be read:", [f"{name}: {error}"]) from error

    def _handle(self, name: str) -> Any:
        return self._open[self._files[name]]


def open_tensors(folder: Path | Folder) -> SafeTensors:
    """The tensors of a folder. Raises PretrainedError where a file is missing, damaged or a pickle."""
    folder = folder if isinstance(folder, Folder) else open_folder(folder)
    if folder.find(INDEX) is not None:
        return _sharded(folder)
    single = folder.find(WEIGHTS)
    if single is None:
        others = sorted(name for name in folder.files if name.endswith(".safetensors"))
        single = folder.find(others[0]) if len(others) == 1 else None
        if single is None:
            raise PretrainedError(f"{folder.path} has no readable weights:", [_why_none(folder, others)])
    return SafeTensors(dict.fromkeys(_opened(single).keys(), single), str(folder.path))


def _sharded(folder: Folder) -> SafeTensors:
    index, weight_map = folder.path / INDEX, folder.json(INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise PretrainedError(f"{index} cannot be read:", ["it has no weight_map, which maps tensors to files."])
    named = {shard if isinstance(shard, str) else repr(shard): shard for shard in weight_map.values()}
    outside = [name for name, shard in sorted(named.items()) if not _is_local(shard)]
    if outside:
        raise PretrainedError(f"{index} is refused:", [f"{name!r} is not a file in this folder." for name in outside])
    shards = {shard: folder.find(shard) for shard in sorted(named)}
    missing = [
        f"{shard} is missing; {INDEX} lists {sum(s == shard for s in weight_map.values())} tensors in it. "
        "Download it again."
        for shard, path in shards.items()
        if path is None
    ]
    if missing:
        raise PretrainedError(f"{folder.path} is incomplete:", missing)
    present = {shard: path for shard, path in shards.items() if path is not None}
    stored = {shard: set(_opened(path).keys()) for shard, path in present.items()}
    lost = [f"{name} is missing from {s}." for name, s in weight_map.items() if name not in stored[s]]
    if lost:
        raise PretrainedError(f"{folder.path} is incomplete:", lost)
    return SafeTensors({name: present[shard] for name, shard in weight_map.items()}, str(folder.path))


def _is_local(shard: Any) -> bool:
    return isinstance(shard, str) and Path(shard).name == shard and "\0" not in shard


def _opened(path: Path) -> Any:
    try:
        return safe_open(regular_file(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        size = f"The file has {path.stat().st_size:,} bytes; " if path.is_file() else ""
        raise PretrainedError(
            f"{path} cannot be read as safetensors:",
            [f"{error}. {size}if the download was interrupted, download it again."],
        ) from error


def _why_none(folder: Folder, safetensors: list[str]) -> str:
    if safetensors:
        return f"{', '.join(safetensors)} need {INDEX}, which maps tensors to files and is missing. Download it too."
    pickles = sorted(name for name in folder.files if name.endswith(PICKLES))
    if pickles:
        return f"the weights are pickled: {', '.join(pickles)}. {SAFE}"
    return f"it contains neither {WEIGHTS} nor {INDEX}; it contains {folder.listing()}."
