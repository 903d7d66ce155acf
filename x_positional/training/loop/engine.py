"""One optimizer step on the device: accelerate, precision, gradient accumulation.

Shapes: B batch, T tokens in one window.
"""

from typing import Any

import torch
from torch import Tensor, nn

from x_positional.errors import UserError, import_extra
from x_positional.training.config import RunConfig, TrainConfig
from x_positional.training.data.windows import Windows
from x_positional.training.loop.optimizer import learning_rate, make_optimizer


class Engine:
    """Model and optimizer on their device.

    Dropout is seeded from (seed, step, process) and windows depend only on (seed, step), so weights, optimizer state
    and the step are all that a run needs to resume bit-equal.

    Args:
        net: The model.
        wrapper: Maps windows [B, T + 1] to the loss of `net`.
        windows: Training windows.
        config: The run.
    """

    def __init__(self, net: nn.Module, wrapper: nn.Module, windows: Windows, config: TrainConfig) -> None:
        run = config.run
        self.accelerator = make_accelerator(run)
        self.precision = precision(run, self.accelerator.device)
        self._config = config
        self._windows = windows
        self.optimizer = make_optimizer(net.to(self.accelerator.device), config.optimizer)
        model = torch.compile(wrapper) if run.compile else wrapper
        self.net = net
        self._model, self._optimizer = self.accelerator.prepare(model, self.optimizer)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def windows_per_step(self) -> int:
        """Training windows of one optimizer step, over all processes."""
        return self._config.run.batch_size * self._config.run.accumulate * self.accelerator.num_processes

    def autocast(self) -> torch.autocast:
        """A bfloat16 autocast context, disabled for float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def step(self, step: int) -> tuple[Tensor, Tensor, float]:
        """Optimizer step number `step` (0-based): (mean loss, gradient norm before clipping, learning rate).

        Both tensors stay on the device: reading them forces a host sync, which is left to the caller.
        """
        run, accelerator = self._config.run, self.accelerator
        rate = learning_rate(self._config.optimizer, step, run.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(run.seed * 1_000_003 + step * 1009 + accelerator.process_index)
        total = torch.zeros((), device=self.device)
        norm = torch.zeros((), device=self.device)
        self._model.train()
        for micro in range(run.accumulate):
            with accelerator.accumulate(self._model):
                with self.autocast():
                    loss = self._model(self._batch(step, micro))
                accelerator.backward(loss)
                total += loss.detach().float() / run.accumulate
                if accelerator.sync_gradients:
                    limit = float("inf") if self._config.optimizer.clip is None else self._config.optimizer.clip
                    norm = accelerator.clip_grad_norm_(self.net.parameters(), limit)
                self._optimizer.step()
                self._optimizer.zero_grad()
        return accelerator.reduce(total, "mean"), norm, rate

    def _batch(self, step: int, micro: int) -> Tensor:
        """The windows [B, T + 1] of this process."""
        size = self._config.run.batch_size
        offset = (micro * self.accelerator.num_processes + self.accelerator.process_index) * size
        return self._windows.batch(step * self.windows_per_step + offset, size).to(self.device, non_blocking=True)


def make_accelerator(run: RunConfig) -> Any:
    """accelerate's Accelerator on `run.device`; raises `UserError` if the device is unavailable."""
    import_extra("accelerate", "training needs", "train")
    from accelerate import Accelerator

    if run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device=cuda, but torch finds no CUDA device; use run.device=auto or cpu")
    if run.device == "mps" and not torch.backends.mps.is_available():
        raise UserError("run.device=mps, but torch finds no Metal device; use run.device=auto or cpu")
    try:
        accelerator = Accelerator(cpu=run.device == "cpu", gradient_accumulation_steps=run.accumulate)
    except ValueError as error:  # accelerate keeps one device per process
        raise UserError(
            f"this Python process has already trained on another device; start a new one: {error}"
        ) from error
    if run.device != "auto" and accelerator.device.type != run.device:
        raise UserError(f"run.device={run.device}, but accelerate chose {accelerator.device}; use run.device=auto")
    return accelerator


def precision(run: RunConfig, device: torch.device) -> str:
    """`bf16` or `fp32`. "auto" is bf16 on CUDA devices that support it; on most CPUs bf16 is slower."""
    if run.precision != "auto":
        return run.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
