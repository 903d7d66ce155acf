"""Checkpoints of sharded models: each process writes its parts, all of them or none become a checkpoint; and reading any checkpoint
into a model that is sharded in another way, or whole."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from x_positional.pretrained.commit import flush_file
from x_positional.pretrained.integrity import MODEL_SHARDS, OPTIMIZER_SHARDS, file_damage, file_digest
from x_positional.training.checkpoints.checkpoint import Checkpoint, complete, unused_name
from x_positional.training.checkpoints.state import (
    check_model,
    check_optimizer,
    parameters_of,
    state_of,
)
from x_positional.training.loop.processes import Processes


def save_sharded(
    root: Path,
    step: int,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
    *,
    trainer: Mapping[str, Any],
    config_text: str,
    write_tokenizer: Callable[[Path], None] | None = None,
) -> Path:
    """Write `root/step-...` from all processes, which need to share the file system. Arguments and errors as in `save_checkpoint`.

    Raises:
        OSError: In every process, where one of them could not write.
    """
    final = root / f"step-{step:08d}"
    temporary = root / f".tmp-{final.name}-shards"

    def begin() -> None:
        unused_name(root, step)
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in (MODEL_SHARDS, OPTIMIZER_SHARDS):
            (temporary / folder).mkdir(parents=True)

    def end() -> None:
        record = {"step": step, "shards": processes.count, **trainer}
        complete(temporary, final, record, config_text, write_tokenizer, digests)

    try:
        processes.on_main(begin)
        _write(temporary / MODEL_SHARDS, parameters_of(net), processes)
        _write(temporary / OPTIMIZER_SHARDS, state_of(net, optimizer), processes)
        digests = _flushed(temporary, processes)
        processes.on_main(end)
    except BaseException:
        if processes.main:
            shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs its space
        raise
    return final


def _write(folder: Path, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=processes.hosts)
    except CheckpointException as error:
        index, (cause, _) = min(error.failures.items())
        raise OSError(
            getattr(cause, "errno", None), f"process {index}: {getattr(cause, 'strerror', None) or cause}"
        ) from error


def _flushed(temporary: Path, processes: Processes) -> dict[str, str]:
    """The digests of all files, which are flushed to disk: a share of them by each process."""
    own = sorted(temporary.glob("*/*"))[processes.index :: processes.count]
    for file in own:
        flush_file(file)
    parts = processes.gather({file.relative_to(temporary).as_posix(): file_digest(file) for file in own})
    return {name: digest for part in parts for name, digest in part.items()}


def restore(checkpoint: Checkpoint, net: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes) -> None:
    """Read a checkpoint, sharded or whole, into a model that is either. Each process reads the parts that it holds.

    Raises:
        UserError: The checkpoint is damaged, or belongs to another model. The model is unchanged.
    """
    _verify(checkpoint, processes)
    model, moments = checkpoint.parts()
    stored = {name: (model.shape(name), model.dtype(name)) for name in model.names() if "/" not in name}
    check_model(net, stored, checkpoint.path)
    shapes = {name: moments.shape(name) for name in moments.names() if "/" in name}
    check_optimizer(net, shapes, checkpoint.path)
    model.read_into(parameters_of(net))
    moments.read_into(state_of(net, optimizer, new=True))


def _verify(checkpoint: Checkpoint, processes: Processes) -> None:
    """Compare all tensor files with their digests: a share of them in each process. Raises `DamagedCheckpoint` in every one."""
    own = checkpoint.tensor_files()[processes.index :: processes.count]
    damage = next(filter(None, (file_damage(checkpoint.path, checkpoint.trainer, name) for name in own)), None)
    found = next(filter(None, processes.gather(damage)), None)
    if found is not None:
        raise checkpoint.damaged(found)
