"""Replace the model of a folder as a whole: after a crash at any instant the folder contains the old or the new model.

1. The new files are written to a hidden folder `.x_positional-stage-…` and flushed to disk, with a record of their names.
2. That folder is renamed to `.x_positional-save`. This commits the save: before, the folder contains the old model; after,
   the new one, from whichever place each of its files is in.
3. config.json is removed, old weights are removed, new files are moved to their places, config.json last. A reader that knows
   only the names of transformers finds no config.json, so it fails rather than mixing two models.
4. The record and the hidden folder are removed.

The next reader or writer completes an interrupted save from step 3. A reader that cannot write uses the staged files.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from x_positional.errors import PretrainedError
from x_positional.pretrained.folder import (
    COMMITTED,
    CONFIG,
    FORMAT,
    MODEL_FILE,
    RECORD,
    Folder,
    digest,
    list_folder,
    read_pending,
)

try:
    import fcntl
except ImportError:  # Windows: two writers of one folder are not kept apart, and readers do not complete a save
    fcntl = None

STAGE = ".x_positional-stage-"


def open_folder(path: Path) -> Folder:
    """The files of a folder, after completing an interrupted save where that is possible. Raises PretrainedError."""
    if (path / COMMITTED).exists():
        with suppress(OSError), _locked(path, wait=False) as locked:
            if locked:
                _complete(path)
    return list_folder(path)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty hidden folder, and move the files written there to `folder` on exit, all or none.

    They replace the files of the same names, and all model files (config, weights). Other files are kept.

    Raises:
        PretrainedError: If the folder cannot be written. It is unchanged then.
    """
    with _errors(folder):
        existed = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, wait=True):
            _clean(folder)
            stage = folder / f"{STAGE}{os.getpid()}"
            stage.mkdir()
            try:
                yield stage
                _commit(folder, stage)
            except BaseException:
                shutil.rmtree(stage, ignore_errors=True)
                if not existed:
                    with suppress(OSError):
                        folder.rmdir()
                raise
            _complete(folder)


def _clean(folder: Path) -> None:
    """Complete a committed save, and delete what interrupted ones left."""
    try:
        _complete(folder)
    except PretrainedError:  # it cannot be completed, and is replaced now
        _discard(folder / COMMITTED)
    for left in folder.glob(f"{STAGE}*"):
        shutil.rmtree(left)


def _commit(folder: Path, stage: Path) -> None:
    files = sorted(stage.iterdir())
    taken = [file.name for file in files if (folder / file.name).is_dir()]
    if taken:
        raise PretrainedError(f"{folder} cannot be written:", [f"{name} is a folder." for name in taken])
    sizes = {file.name: file.stat().st_size for file in files}
    record = {"format": FORMAT, "files": sizes, "replaced": digest(folder / CONFIG)}
    (stage / RECORD).write_text(json.dumps(record), encoding="utf-8")
    for file in (*files, stage / RECORD):
        flush_file(file)
    flush_folder(stage)
    os.rename(stage, folder / COMMITTED)
    flush_folder(folder)


def _complete(folder: Path) -> None:
    """Move the files of a committed save to their places. Every step may have been done before. Raises PretrainedError."""
    staged, pending = folder / COMMITTED, read_pending(folder)
    if pending is not None:
        if (staged / CONFIG).exists():
            (folder / CONFIG).unlink(missing_ok=True)
            flush_folder(folder)
        for old in list(folder.iterdir()):
            if MODEL_FILE.fullmatch(old.name) and old.name not in pending.files:
                old.unlink()
        for name in sorted(pending.files, key=lambda name: name == CONFIG):
            if (staged / name).exists():
                if name == CONFIG:
                    flush_folder(folder)
                os.replace(staged / name, folder / name)
        flush_folder(folder)
    if staged.exists():
        _discard(staged)


def _discard(staged: Path) -> None:
    """Delete the hidden folder of a save, the record first: without it the folder means nothing."""
    (staged / RECORD).unlink(missing_ok=True)
    shutil.rmtree(staged)


@contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of a folder, which writers and completing readers share. Yields whether it is held."""
    if fcntl is None:
        yield wait
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError:  # held by another process, or the file system has no locks
            held = wait
        try:
            yield held
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a forked process inherited the descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PretrainedError(f"{folder} cannot be written:", [str(error)]) from error


def flush_file(file: Path) -> None:
    """Flush a file to disk."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    if os.name == "nt":  # Windows cannot flush a folder, and NTFS journals renames
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
