"""The processes of one run: all that were launched train one model, or none starts."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from x_positional.errors import MainProcessFailed, ProcessLost, UserError, import_extra, listed, shown
from x_positional.training.config import RunConfig

Result = TypeVar("Result")
DIFFERENT = "the processes of this run differ; start all of them with the same command, config, data and versions:"
MAX_SHOWN = 8

WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which torchrun and the MPI launchers announce the number of processes."""
TORCHRUN = "torchrun --nproc_per_node N -m x_positional.cli.main train ..."


class Processes:
    """This process among those that train one model.

    Args:
        run: Device, precision and accumulation of the run.

    Raises:
        UserError: The device is unavailable, or the processes that were launched would not train together.
    """

    def __init__(self, run: RunConfig) -> None:
        self.accelerator = make_accelerator(run)
        self.count: int = self.accelerator.num_processes
        self.index: int = self.accelerator.process_index
        self.main: bool = self.accelerator.is_main_process
        self.device: torch.device = self.accelerator.device
        self.sharded = run.parallel == "fsdp" and self.count > 1
        """Whether parameters are divided among processes."""
        refuse_separate_processes(self.count, self.accelerator.distributed_type.value, os.environ)
        # Decisions of the host are exchanged on the host, so that they never wait for the device.
        nccl = self.count > 1 and distributed.get_backend() != "gloo"
        self.hosts: Any = distributed.new_group(backend="gloo") if nccl else None
        """The group of these exchanges; None is the default group."""

    def total(self, value: Tensor) -> Tensor:
        """The sum of a device tensor over all processes; no host sync."""
        return value if self.count == 1 else self.accelerator.reduce(value, "sum")

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in at least one process. Every process must call this at the same step."""
        if self.count == 1:
            return flag
        flags = torch.tensor([int(flag)])
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self.hosts)
        return bool(flags.item())

    def gather(self, value: Result) -> list[Result]:
        """The values of all processes, in every process. Every process must call this at the same step."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=self.hosts)
        return values

    @contextmanager
    def watched(self, newest: Callable[[], Path | None]) -> Iterator[None]:
        """Raise `ProcessLost` in place of the error of a collective whose other end is gone.

        Args:
            newest: The newest checkpoint.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_lost(error):
                raise
            kept = newest()
            left = "No checkpoint had been saved." if kept is None else f"Continue from {kept} with --resume."
            raise ProcessLost(
                f"process {self.index} stops because another process was killed or crashed. {left}"
            ) from error

    def require_equal(self, values: Mapping[str, Any]) -> None:
        """Raise `UserError` where a process has other values than the main one. Every process must call this.

        Raises:
            MainProcessFailed: In the other processes.
        """
        problems = [
            f"{name} is {shown(value)} in process {index}, {shown(first.get(name))} in process 0"
            for first in [values]
            for index, own in enumerate(self.gather(dict(values)))
            for name, value in own.items()
            if value != first.get(name)
        ]

        def report() -> None:
            if problems:
                more = [f"and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
                raise UserError(listed(DIFFERENT, [*problems[:MAX_SHOWN], *more]))

        self.on_main(report)

    def on_main(self, action: Callable[[], Result]) -> Result | None:
        """Call `action` in the main process while the others wait; they return None.

        Raises:
            MainProcessFailed: In the other processes, where `action` raised in the main one.
        """
        result, error = None, None
        if self.main:
            try:
                result = action()
            except BaseException as caught:  # Ctrl-C too: the others must not wait for a process that stops
                error = caught
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise MainProcessFailed(
                f"process {self.index} stops because the main process failed; it reports the reason"
            )
        return result


def _is_lost(error: RuntimeError) -> bool:
    """Whether a collective failed because its other end is gone. gloo raises plain RuntimeErrors."""
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


def make_accelerator(run: RunConfig) -> Any:
    """accelerate's Accelerator on `run.device`; raises `UserError` if the device is unavailable."""
    import_extra("accelerate", "training needs", "train")
    from accelerate import Accelerator

    _check_device(run, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        # The precision of the run decides, not ACCELERATE_MIXED_PRECISION. Without a GPU accelerate joins processes only
        # where it is told to use the CPU.
        cpu = run.device == "cpu" or (run.device == "auto" and not torch.accelerator.is_available())
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",
            gradient_accumulation_steps=run.accumulate,
            log_with=list(run.trackers) or None,
            project_dir=str(Path(run.dir) / "trackers"),
        )
    except ValueError as error:  # accelerate keeps one device per process
        raise UserError(
            f"this Python process has already trained on another device; start a new one: {error}"
        ) from error
    if run.device != "auto" and accelerator.device.type != run.device:
        raise UserError(f"run.device={run.device}, but accelerate chose {accelerator.device}; use run.device=auto")
    if run.precision == "fp64" and accelerator.device.type == "mps":
        raise UserError("run.precision=fp64, but mps has no float64; use run.device=cpu or another precision")
    return accelerator


def _check_device(run: RunConfig, local: int) -> None:
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device=cuda, but torch finds no CUDA device; use run.device=auto or cpu")
    if run.device == "mps" and not torch.backends.mps.is_available():
        raise UserError("run.device=mps, but torch finds no Metal device; use run.device=auto or cpu")
    if run.device in ("auto", "cuda") and torch.cuda.is_available() and local > torch.cuda.device_count():
        raise UserError(
            f"{local} processes were launched on this machine, which has {torch.cuda.device_count()} CUDA devices; "
            "launch at most one process per device, or use run.device=cpu"
        )


def refuse_launcher_options(environment: Mapping[str, str]) -> None:
    """Raise `UserError` for options of `accelerate launch` that the run would ignore or that would change it."""
    options = {
        "ACCELERATE_MIXED_PRECISION": ("--mixed_precision", "set run.precision"),
        "ACCELERATE_DYNAMO_BACKEND": ("--dynamo_backend", "set run.compile"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("--gradient_accumulation_steps", "set run.accumulate"),
        "ACCELERATE_USE_DEEPSPEED": ("--use_deepspeed", "leave it out: training is data-parallel"),
        "ACCELERATE_USE_FSDP": ("--use_fsdp", "set run.parallel=fsdp"),
        "ACCELERATE_USE_MEGATRON_LM": ("--use_megatron_lm", "leave it out: training is data-parallel"),
    }
    for variable, (option, remedy) in options.items():
        value = environment.get(variable, "")
        if value.lower() not in ("", "no", "false", "0", "1" if "STEPS" in variable else ""):
            raise UserError(f"accelerate launch {option} ({variable}={value}) is unsupported; {remedy}")


def launched_processes(environment: Mapping[str, str]) -> int:
    """How many processes a launcher has announced; 0 where none did."""
    return max((int(environment[name]) for name in WORLD_SIZES if environment.get(name, "").isdigit()), default=0)


def refuse_separate_processes(count: int, kind: str, environment: Mapping[str, str]) -> None:
    """Raise `UserError` where fewer processes train together than were launched or requested.

    Args:
        count: Processes that train together, this one included.
        kind: accelerate's name for how they do.
        environment: The variables that launchers set.
    """
    launched = launched_processes(environment)
    if launched > 1 and launched != count:
        raise UserError(
            f"{launched} processes were launched, but {count} would train together ({kind}), each of them its own model; "
            f"use run.device=cpu, or launch one process per GPU: {TORCHRUN}"
        )
    # `accelerate launch` sets MASTER_ADDR only where several processes are requested, and WORLD_SIZE only where it starts
    # them. Without GPUs it starts one process.
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if by_accelerate and launched == 0 and count == 1:
        raise UserError(
            "accelerate launch was asked for several processes but started one, as it does on CPUs; "
            f"add --multi_gpu without --cpu (it works without GPUs too), or use {TORCHRUN}"
        )
