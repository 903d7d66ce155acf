"""One optimizer step on the device: accelerate, precision, gradient accumulation.

Shapes: B batch, T tokens in one window.
"""

import torch
from torch import Tensor, nn

from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.training.config import RunConfig, TrainConfig
from x_positional.training.data.windows import Windows
from x_positional.training.loop.optimizer import learning_rate, make_optimizer
from x_positional.training.loop.processes import Processes


class Engine:
    """Model and optimizer on their device.

    Dropout is seeded from (seed, step, process) and windows depend only on (seed, step), so weights, optimizer state
    and the step are all that a run needs to resume bit-equal.

    Args:
        net: The model.
        wrapper: Maps windows [B, T + 1] to the mean loss of `net` over their targets.
        windows: Training windows.
        config: The run.
    """

    def __init__(self, net: nn.Module, wrapper: AutoregressiveWrapper, windows: Windows, config: TrainConfig) -> None:
        run = config.run
        self.processes = Processes(run)
        self.precision = precision(run, self.device)
        self._config = config
        self._windows = windows
        self._ignored, self._pad = wrapper.ignore_index, wrapper.pad_value
        net.to(self.device, torch.float64 if self.precision == "fp64" else None)
        self.optimizer = make_optimizer(net, config.optimizer)
        model = torch.compile(wrapper) if run.compile else wrapper
        self.net = net
        self._model, self._optimizer = self.processes.accelerator.prepare(model, self.optimizer)

    @property
    def device(self) -> torch.device:
        return self.processes.device

    @property
    def windows_per_step(self) -> int:
        """Training windows of one optimizer step, over all processes."""
        return self._config.run.batch_size * self._config.run.accumulate * self.processes.count

    def autocast(self) -> torch.autocast:
        """A bfloat16 autocast context, disabled for float32 and float64."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def step(self, step: int) -> tuple[Tensor, Tensor, float]:
        """Optimizer step number `step` (0-based): (mean loss, gradient norm before clipping, learning rate).

        The loss is the mean over all targets of the step, wherever they are: a process or a batch with fewer targets weighs
        less. Both tensors stay on the device: reading them forces a host sync, which is left to the caller.
        """
        run, accelerator = self._config.run, self.processes.accelerator
        rate = learning_rate(self._config.optimizer, step, run.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(run.seed * 1_000_003 + step * 1009 + self.processes.index)
        wide = torch.float64 if self.precision == "fp64" else torch.float32
        total = torch.zeros((), device=self.device, dtype=wide)
        norm = torch.zeros((), device=self.device)
        self._model.train()
        for batch, weight in self._weighted([self._batch(step, micro) for micro in range(run.accumulate)], wide):
            with accelerator.accumulate(self._model):
                with self.autocast():
                    loss = self._model(batch.to(self.device, non_blocking=True)) * weight
                accelerator.backward(loss)
                total += loss.detach().to(wide) / run.accumulate
                if accelerator.sync_gradients:
                    limit = float("inf") if self._config.optimizer.clip is None else self._config.optimizer.clip
                    norm = accelerator.clip_grad_norm_(self.net.parameters(), limit)
                self._optimizer.step()
                self._optimizer.zero_grad()
        return accelerator.reduce(total, "mean"), norm, rate

    def _batch(self, step: int, micro: int) -> Tensor:
        """The windows [B, T + 1] of this process, on the host."""
        size = self._config.run.batch_size
        offset = (micro * self.processes.count + self.processes.index) * size
        return self._windows.batch(step * self.windows_per_step + offset, size)

    def _weighted(self, batches: list[Tensor], dtype: torch.dtype) -> list[tuple[Tensor, Tensor | float]]:
        """Each batch with the weight of its mean loss: its targets over the mean of all batches of all processes.

        1 where every window is full. A batch without targets weighs 0, and its tokens are replaced by any that are valid.
        """
        targets = [int((batch[:, 1:] != self._ignored).sum()) for batch in batches]
        full = [b if n else b.masked_fill(b == self._ignored, self._pad) for b, n in zip(batches, targets, strict=True)]
        count = self.processes.count * len(batches)
        if self.processes.count == 1:
            return [(batch, n * count / max(1, sum(targets))) for batch, n in zip(full, targets, strict=True)]
        total = self.processes.total(torch.tensor(sum(targets), dtype=torch.float64, device=self.device)).clamp(min=1)
        return [(batch, (n * count / total).to(dtype)) for batch, n in zip(full, targets, strict=True)]


def precision(run: RunConfig, device: torch.device) -> str:
    """`bf16`, `fp32` or `fp64`. "auto" is bf16 on CUDA devices that support it; on most CPUs bf16 is slower."""
    if run.precision != "auto":
        return run.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
