"""Whether a checkpoint is what was written: `trainer.json` holds the digests of the other files, and its own."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = "x_positional checkpoint"
VERSION = 3
"""Version 1 had no digest of `trainer.json` itself. Version 3 has tensors divided among files, and is written for those alone."""
MODEL, OPTIMIZER, CONFIG, TRAINER, TOKENIZER = (
    "model.safetensors",
    "optimizer.safetensors",
    "config.yaml",
    "trainer.json",
    "tokenizer.json",
)
ORIGIN = "origin.json"
"""The config.json of the published model that a run started from."""
MODEL_SHARDS, OPTIMIZER_SHARDS = "model", "optimizer"
"""Folders of a checkpoint whose tensors are divided among files."""
NAME = re.compile(r"step-(\d{8,18})")
"""Of the folder of a checkpoint."""

ENTRIES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "files": (dict,),
    "order": (dict,),
    "best": (dict, type(None)),
    "tokenizer": (str, type(None)),
    "document_end": (int, type(None)),
    "shards": (int, type(None)),
}
"""Types of the entries that are read."""


class Damage(Exception):
    """Why a file of a checkpoint cannot be used: the end of a sentence that begins with the checkpoint."""


class NotOurs(Damage):
    """The file is not the record of a checkpoint of x_positional."""


class TooNew(Exception):
    """A newer version wrote the record; the argument is that version."""


def write_record(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `trainer.json` with format, version and digest."""
    record = {"format": FORMAT, "version": VERSION if values.get("shards") else VERSION - 1, **values}
    (folder / TRAINER).write_text(json.dumps({**record, "digest": _own_digest(record)}, indent=1), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The entries of `trainer.json`.

    Raises:
        Damage: The file cannot be read, is not a record, its digest does not match, or an entry has the wrong type.
        TooNew: A newer version wrote it.
    """
    if not (folder / TRAINER).is_file():  # nor a pipe, which would never end
        raise Damage(f"{TRAINER} is missing")
    try:
        record = json.loads((folder / TRAINER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Damage(f"cannot read {folder / TRAINER}: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise NotOurs(f"its {TRAINER} lacks format={FORMAT!r}")
    version = record.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Damage(f"{TRAINER} has version={version!r}")
    if version > VERSION:
        raise TooNew(version)
    digest = record.pop("digest", None)
    if digest != _own_digest(record) and not (version == 1 and digest is None):
        raise Damage(f"the digest of {TRAINER} does not match")
    for name in ("step", "files", *(ENTRIES.keys() & record.keys())):
        entry(record, name)
    return record


def entry(record: Mapping[str, Any], name: str) -> Any:
    """An entry of ENTRIES; raises `Damage` where it is missing or has another type."""
    if name not in record:
        raise Damage(f"{TRAINER} has no {name}")
    value = record[name]
    wrong = not isinstance(value, ENTRIES[name]) or isinstance(value, bool) or (name == "step" and value < 0)
    if name == "best" and isinstance(value, dict):
        wrong = type(value.get("step")) is not int or type(value.get("loss")) not in (int, float)
    if wrong:
        raise Damage(f"{TRAINER} has {name}={value!r}")
    return value


def file_digest(file: Path) -> str:
    """The digest of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, all of its files read; None if nothing is."""
    try:
        record = read_record(path)
    except TooNew as newer:
        return f"format version {newer}"
    except Damage as damage:
        return str(damage)
    tensors = [] if record.get("shards") else [MODEL, OPTIMIZER]
    names = dict.fromkeys([*tensors, CONFIG, *record["files"]])
    unexpected = (shard_damage(path, record, folder) for folder in (MODEL_SHARDS, OPTIMIZER_SHARDS))
    return next(filter(None, (*unexpected, *(file_damage(path, record, name) for name in names))), None)


def newest_good(root: Path, but: Path | None = None) -> Path | None:
    """The newest checkpoint under `root`, except `but`, that has no damage; reads every file of it."""
    folders = reversed(checkpoint_folders(root))
    return next((folder for folder in folders if folder != but and damage_of(folder) is None), None)


def fallback(path: Path) -> str:
    """The way out of a damaged checkpoint: the newest good one of its run."""
    good = newest_good(path.parent, but=path) if NAME.fullmatch(path.name) else None
    if good is None:
        return "This run has no good checkpoint."
    return f"The newest good checkpoint is {good}; --resume --skip-damaged continues from there."


def file_damage(path: Path, record: Mapping[str, Any], name: str) -> str | None:
    """What is wrong with one file of a checkpoint; None if its digest is that of the record."""
    file = path / name
    if not file.is_file():
        return f"{name} is missing"
    try:
        matches = file_digest(file) == record["files"].get(name)
    except OSError as error:
        return f"cannot read {file}: {error.strerror}"
    return None if matches else f"the digest of {name} does not match"


def shard_files(record: Mapping[str, Any], folder: str) -> list[str]:
    """The files of a folder of shards, as the record lists them."""
    return sorted(name for name in record["files"] if name.startswith(f"{folder}/"))


def shard_damage(path: Path, record: Mapping[str, Any], folder: str) -> str | None:
    """What is wrong with the list of files in a folder of shards, all of which are read together; None if nothing is."""
    if not record.get("shards"):
        return None
    recorded = shard_files(record, folder)
    if not recorded:
        return f"{TRAINER} lists no files of {folder}"
    found = {f"{folder}/{file.name}" for file in (path / folder).glob("*")}
    return next((f"{name} is unexpected" for name in sorted(found - set(recorded))), None)


def checkpoint_folders(root: Path) -> list[Path]:
    """Complete checkpoints under `root`, oldest first. Leftovers of a crash have other names and are ignored."""
    if not root.is_dir():
        return []
    steps = {folder: NAME.fullmatch(folder.name) for folder in root.iterdir() if folder.is_dir()}
    return sorted((folder for folder, name in steps.items() if name), key=lambda folder: int(folder.name[5:]))


def _own_digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
