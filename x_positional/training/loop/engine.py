"""One optimizer step on the device: accelerate, precision, gradient accumulation, weight decay and the learning rate schedule.

Shapes: B batch, T tokens in one window.
"""

import importlib.util
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from x_positional.errors import UserError
from x_positional.generation.step.compiled import cpp_compilers
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import build_model
from x_positional.models.sharding import materialize
from x_positional.modules.experts import Experts, Router
from x_positional.modules.stack import set_activation_checkpointing
from x_positional.progress import Track
from x_positional.schemes.fire import Affine
from x_positional.training.config import OptimizerConfig, RunConfig, TrainConfig
from x_positional.training.data.token_cache import Split
from x_positional.training.evaluate import EvalRows, EvalWindows, Score, Share, evaluate
from x_positional.training.finetune.packing import PackedRows
from x_positional.training.loop.processes import Processes

if TYPE_CHECKING:  # torch may be built without distributed, and importing it takes time
    from x_positional.training.loop.sharding import ShardedRoot

Result = TypeVar("Result")

LINEAR_WEIGHTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    Affine: ("weight",),
    Router: ("weight",),
    Experts: ("up", "down"),
}
"""Linear maps, and the names of their weights."""


Batch: TypeAlias = dict[str, Tensor]
"""Arguments of `AutoregressiveWrapper`: `tokens`, and for packed rows `labels` and `document_ids`."""


class Batches(Protocol):
    """Training batches as a pure function of the index."""

    def batch(self, first: int, count: int) -> Tensor | Batch:
        """Windows or rows `first` to `first + count - 1` of the whole run. A tensor is `tokens` alone."""
        ...


class Engine:
    """Model and optimizer on their device.

    Dropout is seeded from (seed, step, process) and windows depend only on (seed, step), so weights, optimizer state
    and the step are all that a run needs to resume bit-equal.

    Args:
        net: The model; on the meta device it gets the values that `build_model` draws from the seed of the run.
        wrapper: Maps a batch to the mean loss of `net` over its targets.
        windows: Training windows, or rows of conversations.
        config: The run.
    """

    def __init__(self, net: nn.Module, wrapper: AutoregressiveWrapper, windows: Batches, config: TrainConfig) -> None:
        run = config.run
        self.processes = Processes(run)
        self.processes.require_equal({**config.flat(), "torch": torch.__version__})
        self.precision = precision(run, self.device)
        self._config = config
        self._windows = windows
        self._ignored, self._pad = wrapper.ignore_index, wrapper.pad_value
        self.net = net
        self._root: ShardedRoot | None = None
        set_activation_checkpointing(net, run.activation_checkpointing)
        dtype = torch.float64 if self.precision == "fp64" else None
        if self.processes.sharded:
            from x_positional.training.loop.sharding import sharded

            self._root = sharded(net.to(dtype=dtype), self.device, self.processes.count)
            self._draw()
            self.optimizer, model = make_optimizer(net, config.optimizer), wrapper
        else:
            net.to(dtype=dtype)
            self._draw()
            net.to(self.device)
            self.optimizer = make_optimizer(net, config.optimizer)
            model = self.processes.accelerator.prepare(compiled(wrapper, self.device) if run.compile else wrapper)
        self._model, self._optimizer = model, self.processes.accelerator.prepare(self.optimizer)

    def _draw(self) -> None:
        """Give a model on the meta device the values of its construction, in shards where it is sharded."""
        if any(parameter.is_meta for parameter in self.net.parameters()):
            torch.manual_seed(self._config.run.seed)
            materialize(self.net, lambda: build_model(self._config.model), self.device)

    @property
    def device(self) -> torch.device:
        return self.processes.device

    @property
    def windows_per_step(self) -> int:
        """Training windows of one optimizer step, over all processes."""
        return self._config.run.batch_size * self._config.run.accumulate * self.processes.count

    def gathered(self, action: Callable[[], Result]) -> Result:
        """Call `action`, which calls the model, with the parameters that it needs on the device."""
        return action() if self._root is None else self._root(action)

    def whole(self, tensor: Tensor) -> Tensor:
        """A parameter, or its gradient or optimizer state, gathered from all processes where it is sharded."""
        return tensor if self._root is None else self._root.whole(tensor)

    def autocast(self) -> torch.autocast:
        """A bfloat16 autocast context, disabled for float32 and float64."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def step(self, step: int) -> tuple[Tensor, Tensor, float]:
        """Optimizer step number `step` (0-based): (mean loss, gradient norm before clipping, learning rate).

        The loss is the mean over all targets of the step, wherever they are: a process or a batch with fewer targets weighs
        less. It includes label smoothing and z-loss. Both tensors stay on the device: reading them forces a host sync, which is
        left to the caller.
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
                    batch = {name: part.to(self.device, non_blocking=True) for name, part in batch.items()}
                    loss = self.gathered(lambda batch=batch: self._loss(batch)) * weight
                accelerator.backward(loss)
                total += loss.detach().to(wide) / run.accumulate
                if accelerator.sync_gradients:
                    limit = float("inf") if self._config.optimizer.clip is None else self._config.optimizer.clip
                    norm = accelerator.clip_grad_norm_(self.net.parameters(), limit)
                self._optimizer.step()
                self._optimizer.zero_grad()
        return accelerator.reduce(total, "mean"), self.whole(norm), rate

    def evaluate(self, data: Split | PackedRows, windows: EvalWindows | EvalRows, track: Track) -> Score:
        """The score of all windows, which the processes share. Every process must call this at the same step."""
        share = Share(self.processes.index, self.processes.count, self.processes.total)
        size, device, autocast = self._config.run.batch_size, self.device, self.autocast()

        def score() -> Score:
            return evaluate(
                self.net, data, windows, batch_size=size, device=device, autocast=autocast, track=track, share=share
            )

        try:
            return self.gathered(score)
        finally:
            if self._root is not None:
                self._root.release()

    def _loss(self, batch: Batch) -> Tensor:
        """A batch -> the mean loss [] of its targets."""
        run = self._config.run
        return self._model(**batch, label_smoothing=run.label_smoothing, z_loss=run.z_loss)

    def _batch(self, step: int, micro: int) -> Batch:
        """What this process reads, on the host."""
        size = self._config.run.batch_size
        offset = (micro * self.processes.count + self.processes.index) * size
        found = self._windows.batch(step * self.windows_per_step + offset, size)
        return {"tokens": found} if isinstance(found, Tensor) else found

    def _weighted(self, batches: list[Batch], dtype: torch.dtype) -> list[tuple[Batch, Tensor | float]]:
        """Each batch with the weight of its mean loss: its targets over the mean of all batches of all processes.

        1 where every window is full. A batch without targets weighs 0, and its tokens are replaced by any that are valid.
        """
        targets = [int((b.get("labels", b["tokens"])[:, 1:] != self._ignored).sum()) for b in batches]
        full = [b if n else self._valid(b) for b, n in zip(batches, targets, strict=True)]
        count = self.processes.count * len(batches)
        if self.processes.count == 1:
            return [(batch, n * count / max(1, sum(targets))) for batch, n in zip(full, targets, strict=True)]
        total = self.processes.total(torch.tensor(sum(targets), dtype=torch.float64, device=self.device)).clamp(min=1)
        return [(batch, (n * count / total).to(dtype)) for batch, n in zip(full, targets, strict=True)]

    def _valid(self, batch: Batch) -> Batch:
        """The batch with ids that the model can read."""
        return {**batch, "tokens": batch["tokens"].masked_fill(batch["tokens"] == self._ignored, self._pad)}


def compiled(model: nn.Module, device: torch.device) -> Any:
    """The model under torch.compile. Raises UserError where torch finds no compiler for the device."""
    if device.type == "cpu" and not cpp_compilers():
        raise UserError(
            "run.compile needs a C++ compiler, and none was found; install g++ or clang++, name one in the environment "
            "variable CXX, or leave run.compile out"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("run.compile on CUDA needs the package triton; install it, or leave run.compile out")
    return torch.compile(model)


def precision(run: RunConfig, device: torch.device) -> str:
    """`bf16`, `fp32` or `fp64`. "auto" is bf16 on CUDA devices that support it; on most CPUs bf16 is slower."""
    if run.precision != "auto":
        return run.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def decayed_parameters(model: nn.Module) -> set[str]:
    """Names of the weights of linear maps, including the stacked weights of experts. In place of a parametrized weight, the
    tensors that it is computed from (its magnitude and direction under weight_norm).

    Norm gains, biases, slopes, bias tables and embeddings (even if tied to the output) do not decay: pulling them
    towards zero changes the function without regularizing a map.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for kind, names in LINEAR_WEIGHTS.items()
        if isinstance(module, kind)
        for weight in names
        for name in _sources(module, weight)
    }


def _sources(module: nn.Module, weight: str) -> list[str]:
    """Names of the parameters that a weight of a module is computed from: its own, unless it is parametrized."""
    if not parametrize.is_parametrized(module, weight):
        return [weight]
    originals = module.get_submodule(f"parametrizations.{weight}")
    return [f"parametrizations.{weight}.{name}" for name, _ in originals.named_parameters(recurse=False)]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, in two groups: with and without weight decay."""
    decayed = decayed_parameters(model)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trainable if name in decayed], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trainable if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (0-based) of `steps`: linear warm-up, then cosine decay to the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, steps - 1 - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    floor = config.final_lr_fraction
    return config.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done)))
