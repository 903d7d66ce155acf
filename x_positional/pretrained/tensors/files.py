"""The tensors of a folder, read one at a time from one or several safetensors files; pickles are refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from x_positional.errors import PretrainedError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SAFE = (
    "A pickle can run arbitrary code when it is loaded, so it is never opened. If you trust it, load it with transformers and "
    "write it with save_pretrained(folder), which gives model.safetensors."
)


class Tensors(Protocol):
    """Named tensors of a checkpoint."""

    source: str
    """Where they come from, for messages."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> list[int]: ...

    def read(self, name: str) -> Tensor: ...


class SafeTensors:
    """Tensors of safetensors files, by name. Files are memory-mapped: a tensor is read when it is requested."""

    def __init__(self, files: Mapping[str, Path], source: str):
        self.source, self._files = source, dict(files)
        self._open = {path: _opened(path) for path in sorted(set(files.values()))}

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> list[int]:
        return list(self._handle(name).get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        try:
            return self._handle(name).get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise PretrainedError(f"{self._files[name]} cannot be read:", [f"{name}: {error}"]) from error

    def _handle(self, name: str) -> Any:
        return self._open[self._files[name]]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises PretrainedError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path} cannot be read:", [str(error)]) from error
    if not isinstance(data, dict):
        raise PretrainedError(f"{path} cannot be read:", [f"expected a JSON object, found a {type(data).__name__}."])
    return data


def open_tensors(folder: Path) -> SafeTensors:
    """The tensors of a folder. Raises PretrainedError where a file is missing, damaged or a pickle."""
    if (folder / INDEX).is_file():
        return _sharded(folder)
    single = folder / WEIGHTS
    if not single.is_file():
        others = sorted(folder.glob("*.safetensors"))
        if len(others) != 1:
            raise PretrainedError(f"{folder} has no readable weights:", [_why_none(folder, others)])
        single = others[0]
    return SafeTensors(dict.fromkeys(_opened(single).keys(), single), str(folder))


def _sharded(folder: Path) -> SafeTensors:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise PretrainedError(
            f"{folder / INDEX} cannot be read:", ["it has no weight_map, which maps tensors to files."]
        )
    shards = {shard: folder / shard for shard in sorted(set(weight_map.values()))}
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise PretrainedError(
            f"{folder / INDEX} is refused:", [f"{s!r} is not a file in this folder." for s in outside]
        )
    missing = [shard for shard, path in shards.items() if not path.is_file()]
    if missing:
        raise PretrainedError(
            f"{folder} is incomplete:",
            [
                f"{shard} is missing; {INDEX} lists {sum(s == shard for s in weight_map.values())} tensors in it. "
                "Download it again."
                for shard in missing
            ],
        )
    stored = {shard: set(_opened(path).keys()) for shard, path in shards.items()}
    lost = [f"{name} is missing from {s}." for name, s in weight_map.items() if name not in stored[s]]
    if lost:
        raise PretrainedError(f"{folder} is incomplete:", lost)
    return SafeTensors({name: shards[shard] for name, shard in weight_map.items()}, str(folder))


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise PretrainedError(
            f"{path} cannot be read as safetensors:",
            [
                f"{error}. The file has {path.stat().st_size:,} bytes; if the download was interrupted, download it again."
            ],
        ) from error


def _why_none(folder: Path, safetensors: list[Path]) -> str:
    if safetensors:
        names = ", ".join(path.name for path in safetensors)
        return f"{names} need {INDEX}, which maps tensors to files and is missing. Download it too."
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return f"the weights are pickled: {', '.join(pickles)}. {SAFE}"
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    return f"it contains neither {WEIGHTS} nor {INDEX}; it contains {found}."
