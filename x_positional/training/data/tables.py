"""Rows of tables and datasets: JSON lines, Parquet and Arrow files, saved `datasets` folders, and datasets on the Hub.

JSON lines are read by Python itself, everything else by the package datasets, which streams: no table is held in memory.
"""

import gzip
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from x_positional.errors import UserError, import_extra, shown
from x_positional.training.config import DataConfig
from x_positional.training.data.documents import matching
from x_positional.training.data.hub import is_hub_name, one_line

JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz")
BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
"""Suffixes of the files that datasets reads, and its name for their format."""
SAVED = ("dataset_info.json", "dataset_dict.json")
"""Files that mark a folder of `save_to_disk`."""
TRAIN, VALIDATION = "train", ("validation", "valid", "val", "dev")
_FILE_SPLIT = re.compile(rf"({TRAIN}|{'|'.join(VALIDATION)}|test)(?=[-_.]|$)")

Row = Mapping[str, Any]
Rows = Iterable[Row]


@dataclass(frozen=True)
class Table:
    """Rows in one or several splits, which are opened when they are needed."""

    source: str
    """Where the rows come from, for messages."""
    identity: Mapping[str, Any]
    """What the rows depend on, known without reading them: the files with their sizes and times, or the name on the Hub."""
    open: Callable[[str | None], Mapping[str, Rows]]
    """The rows of each split, with one field alone if it is given and exists. The only split of a table without splits is
    named ''."""


def find_table(config: DataConfig) -> Table | None:
    """The table or dataset that `data.path` names; None if it is text, token ids or the embedded text.

    Raises:
        UserError: `data.path` does not exist, neither here nor as a name on the Hub.
    """
    if config.path is None:
        return None
    path = Path(config.path)
    if is_hub_name(config.path):
        return _hub_table(config)
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED):
            return Table(config.path, {"saved": _listing(path.rglob("*"))}, lambda field: _saved_rows(path, field))
        files = matching(path, config.pattern)
    else:
        files = [path]
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1 or (kind := kinds.pop()) is None:
        return None
    return Table(
        config.path,
        {"files": _listing(files)},
        lambda field: {split: _file_rows(group, kind, field) for split, group in _file_splits(files).items()},
    )


def choose_splits(splits: Mapping[str, Rows], config: DataConfig) -> tuple[Rows, str, Rows | None, str]:
    """(training rows, name of their split, validation rows, name of their split); without a validation split None and ''.

    Raises:
        UserError: There is no such split; the message names those that exist.
    """
    names = list(splits)
    if names == [""]:
        if config.split is not None:
            raise UserError(f"data.split={config.split!r}: {config.path} has no splits; leave data.split out")
        return splits[""], "", None, ""
    name = config.split or (names[0] if len(names) == 1 else TRAIN)
    if name not in splits:
        wanted = f"data.split={name!r} does not exist" if config.split else "data.split is needed"
        raise UserError(f"{wanted}: {config.path} has the splits {', '.join(names)}; name one of them")
    validation = next((other for other in VALIDATION if other in splits and other != name), "")
    return splits[name], name, splits.get(validation), validation


def texts(rows: Rows, config: DataConfig) -> Iterator[str | None]:
    """The text of each row, None where it is null or empty.

    Raises:
        UserError: A row has no field `data.field`, or something other than text there.
    """
    field = config.field
    for number, row in enumerate(rows, 1):
        if field not in row:
            raise UserError(
                f"data.field={field!r} does not exist in row {number} of {config.path}; its fields are "
                f"{', '.join(map(str, row)) or 'none'}"
            )
        text = row[field]
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"data.field={field!r} is not text in row {number} of {config.path}: it is a {type(text).__name__}, "
                f"{shown(text)}"
            )
        yield text or None


def _kind(file: Path) -> str | None:
    """`json` for JSON lines, datasets' name for the format of a table, None for other files."""
    name = file.name.lower()
    return "json" if name.endswith(JSON_LINES) else BUILDERS.get(file.suffix.lower())


def _listing(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of change of each file."""
    found = [(file, file.stat()) for file in sorted(files) if file.is_file()]
    return [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in found]


def _file_splits(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by split, where the name of each begins with that of a split (`train-00000-of-00002.parquet`); else one split."""
    found = [_FILE_SPLIT.match(file.name) for file in files]
    names = [match and match.group(1) for match in found]
    if TRAIN not in names or None in names:
        return {"": list(files)}
    groups: dict[str, list[Path]] = {}
    for name, file in zip(names, files, strict=True):
        groups.setdefault(str(name), []).append(file)
    return groups


def _file_rows(files: Sequence[Path], kind: str, field: str | None) -> Rows:
    if kind == "json":
        return _json_rows(files)
    datasets = import_extra("datasets", f"reading {files[0]} needs", "data")
    with _failures(str(files[0])), _quiet():
        rows = datasets.load_dataset(kind, data_files=[str(file) for file in files], split=TRAIN, streaming=True)
    return _guarded(rows, str(files[0].parent if len(files) > 1 else files[0]), field)


def _json_rows(files: Sequence[Path]) -> Iterator[Row]:
    for file in files:
        try:
            with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _json_row(line, f"line {number} of {file}")
        except (OSError, EOFError) as error:
            raise UserError(f"cannot read {file}: {error}") from error


def _json_row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f'{where} is {shown(row)}; each line must be an object such as {{"text": "..."}}')
    return row


def _saved_rows(folder: Path, field: str | None) -> Mapping[str, Rows]:
    datasets = import_extra("datasets", f"reading the saved dataset {folder} needs", "data")
    with _failures(str(folder)), _quiet():
        saved = datasets.load_from_disk(str(folder))
    splits = saved if isinstance(saved, dict) else {"": saved}
    return {name: _guarded(rows, str(folder), field) for name, rows in splits.items()}


def _hub_table(config: DataConfig) -> Table:
    """A dataset on the Hub. Its tokens are cached under its name and `data.revision`, so a second run needs no network."""
    name = str(config.path)
    identity = {"hub": name, "subset": config.subset, "revision": config.revision}
    return Table(name, identity, lambda field: _hub_rows(name, config, field))


def _hub_rows(name: str, config: DataConfig, field: str | None) -> Mapping[str, Rows]:
    reading = f"data.path={name!r} does not exist here, and reading it from the Hub needs"
    datasets, hub = (import_extra(package, reading, "data") for package in ("datasets", "huggingface_hub"))
    try:
        commit = hub.HfApi().dataset_info(name, revision=config.revision, timeout=10).sha
        splits = datasets.load_dataset(name, config.subset, revision=commit, streaming=True)
    except Exception as error:  # no network, no such dataset, no permission, no such subset: each is another class
        raise UserError(
            f"data.path={name!r} does not exist here, and it cannot be read from the Hub: {one_line(error)}"
        ) from error
    return {split: _guarded(rows, name, field) for split, rows in splits.items()}


def _guarded(rows: Any, source: str, field: str | None) -> Iterator[Row]:
    """The rows of a dataset, or one field of them, with its errors as UserErrors."""
    with _failures(source):
        yield from rows.select_columns([field]) if field in (rows.column_names or ()) else rows


@contextmanager
def _failures(source: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of pyarrow or datasets, each with classes of its own
        raise UserError(f"cannot read {source}: {one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what datasets logs of a damaged file, which its error contains too."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
