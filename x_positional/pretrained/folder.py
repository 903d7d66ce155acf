"""The files of a model's folder: which ones count after an interrupted save, and which ones may be opened.

A save stages its files in a hidden folder, commits them by renaming that folder, and then moves each file to its place
(`x_positional.pretrained.commit`). Between the rename and the last move, a file is either still staged or in its place.
"""

import hashlib
import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from x_positional.errors import PretrainedError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
COMMITTED, RECORD = ".x_positional-save", "record.json"
"""The hidden folder of a committed save, and the file in it that lists the saved files."""
FORMAT = "x_positional save"
MODELING = "modeling_x_positional.py"
"""The module beside the weights that transformers imports, where no published family expresses the model."""
MODEL_FILE = re.compile(
    rf"config\.json|model(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index\.json|{re.escape(MODELING)}"
)
"""Files that a save replaces as a whole: those that it does not write are removed."""
MAX_NESTED = 64
"""Depth of objects and lists in a JSON file."""


@dataclass(frozen=True)
class Pending:
    """A committed save whose files are not all in place."""

    files: Mapping[str, int]
    """Name -> bytes."""
    replaced: str | None
    """Digest of the config.json that the save replaces; None where there was none."""


@dataclass(frozen=True)
class Folder:
    """The files of a model's folder at one moment."""

    path: Path
    files: Mapping[str, Path]
    """Name -> path. A staged file has the name that it will have."""

    def find(self, name: str) -> Path | None:
        """The path of a file; None where there is none. Raises PretrainedError for anything but a file in the folder."""
        path = self.files.get(name)
        return None if path is None else regular_file(path, self.path)

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file, {} where there is no such file."""
        path = self.find(name)
        return {} if path is None else read_json(path)

    def listing(self) -> str:
        """The first names, for messages."""
        return ", ".join(sorted(self.files)[:8]) or "nothing"

    def state(self) -> dict[str, tuple[int, int, int, int]]:
        """Identity of each model file: it changes when another process saves a model to the folder."""
        found = {name: _stat(path) for name, path in self.files.items() if MODEL_FILE.fullmatch(name)}
        return {name: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found.items() if s is not None}


def list_folder(path: Path) -> Folder:
    """The files of a folder, with those of a committed save in place of the ones that it replaces. Raises PretrainedError."""
    try:
        files = {file.name: file for file in path.iterdir()}
    except OSError as error:
        raise PretrainedError(f"{path} cannot be read:", [str(error)]) from error
    pending = read_pending(path) if COMMITTED in files else None
    if pending is None:
        return Folder(path, files)
    staged = path / COMMITTED
    kept = {name: file for name, file in files.items() if not MODEL_FILE.fullmatch(name)}
    saved = {name: staged / name if exists(staged / name) else path / name for name in pending.files}
    return Folder(path, {**kept, **saved})


def contains_model(path: Path) -> bool:
    """Whether a folder contains a model, in place or committed."""
    return exists(path / CONFIG) or exists(path / COMMITTED / RECORD)


def read_pending(folder: Path) -> Pending | None:
    """The committed save of a folder; None where all files are in place.

    Raises:
        PretrainedError: The record is damaged, or another program has written a config.json since.
    """
    staged = folder / COMMITTED
    if not exists(staged / RECORD):
        return None
    record = read_json(regular_file(staged / RECORD, folder))
    files, replaced = record.get("files"), record.get("replaced")
    if record.get("format") != FORMAT or not isinstance(files, dict) or not all(map(_is_name, files)):
        raise PretrainedError(
            f"{staged} cannot be read:", [f"{RECORD} is not the record of a save. Delete the folder."]
        )
    present = [name for name in files if exists(staged / name)]
    if not present:
        return None
    wrong = [n for n in present if regular_file(staged / n, folder).stat().st_size != files[n]]
    if wrong:
        raise PretrainedError(f"{staged} is damaged:", [f"{name} has the wrong size." for name in wrong])
    if CONFIG in present and digest(folder / CONFIG) not in (None, replaced):
        raise PretrainedError(
            f"{folder} contains two models:",
            [
                f"a save was interrupted, and another program has written {CONFIG} since. Delete {staged} to use the files in "
                f"the folder, or delete {folder / CONFIG} to complete the save."
            ],
        )
    return Pending(files, replaced)


def digest(path: Path) -> str | None:
    """Digest of a small file; None where there is none."""
    found = _stat(path)
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def exists(path: Path) -> bool:
    """Whether there is a file or a folder at a path; False for what cannot be a path."""
    return _stat(path) is not None


def _is_name(name: str) -> bool:
    return Path(name).name == name and not name.startswith(".")


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except (OSError, ValueError):  # missing, unreadable, or no name that a file can have
        return None


def regular_file(path: Path, folder: Path | None = None) -> Path:
    """The path itself, if it is a regular file; opening a pipe would wait for its writer, a device need not end.

    Args:
        path: The file, or a symbolic link to it.
        folder: The folder that it must be in, links resolved. Files of a Hub snapshot link to the blobs of their repository.

    Raises:
        PretrainedError: If it is missing, something else, or outside of the folder.
    """
    found = _stat(path)
    if found is None:
        raise PretrainedError(f"{path} cannot be read:", ["no such file, or a link to a missing one."])
    if not stat.S_ISREG(found.st_mode):
        raise PretrainedError(f"{path} cannot be read:", ["it is not a regular file."])
    if folder is not None:
        target, root = path.resolve(), folder.resolve()
        blobs = [above.parent / "blobs" for above in root.parents if above.name == "snapshots"]
        if not any(target.is_relative_to(allowed) for allowed in (root, *blobs)):
            raise PretrainedError(
                f"{path} is refused:", [f"it links to {target}, outside of the folder. Copy the file."]
            )
    return path


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises PretrainedError."""
    try:
        return regular_file(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path} cannot be read:", [str(error)]) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises PretrainedError for anything that is not strict JSON."""
    text = read_text(path)
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except ValueError as error:
        raise PretrainedError(f"{path} cannot be read:", [str(error)]) from error
    except RecursionError as error:
        raise PretrainedError(f"{path} cannot be read:", ["its values are nested too deeply."]) from error
    if not isinstance(data, dict):
        raise PretrainedError(f"{path} cannot be read:", [f"expected a JSON object, found a {type(data).__name__}."])
    if _deeper_than(data, MAX_NESTED):
        raise PretrainedError(f"{path} cannot be read:", [f"its values are nested more than {MAX_NESTED} levels deep."])
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"the key {key!r} is set twice.")
        data[key] = value
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number.")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text} overflows.")
    return value


def _deeper_than(data: Any, limit: int) -> bool:
    """Level by level, so that no depth exhausts the stack."""
    level = [data]
    for _ in range(limit):
        level = [inner for value in level if isinstance(value, dict | list) for inner in _values(value)]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)


def _values(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value
