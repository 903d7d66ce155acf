"""A position scheme on the tasks of the length-generalisation papers: trained on short inputs, scored on longer ones.

As in Kazemnejad et al. 2023 (arXiv:2305.19466), a decoder is trained from scratch on inputs of up to L = 20 symbols, with the
loss on the answer alone, and scored past L. Theirs have 107 million parameters; these have 0.2 million and train in half a minute.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from x_positional.config.layers import LayersConfig
from x_positional.config.models import ModelConfig
from x_positional.errors import XPositionalError
from x_positional.evidence.evaluation.results import TaskScore
from x_positional.evidence.evaluation.tasks import Task, TaskRows, named_tasks, task_rows
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TransformerWrapper
from x_positional.modules.cross_entropy import NO_TARGET
from x_positional.progress import Track, silent
from x_positional.training.cpu import denormals_flushed


@dataclass(frozen=True)
class ProbeOptions:
    """Size of the model, training, and lengths of a probe."""

    longest: int = 20
    """Inputs of 1 to this many symbols are trained."""
    factors: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)
    """Scored lengths, as multiples of `longest`."""
    dim: int = 64
    """Model width."""
    depth: int = 3
    """Layers; as many as the pattern has where it is longer."""
    heads: int = 4
    """Query heads, and key heads."""
    head_dim: int = 32
    """Width of a head."""
    steps: int = 1500
    """Optimizer steps."""
    batch: int = 16
    """Rows in a step."""
    lr: float = 3e-3
    """Peak learning rate of AdamW, after a tenth of the steps, with a cosine decay to 2 %."""
    trials: int = 64
    """Rows scored at each length."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """The scored lengths."""
        return tuple(dict.fromkeys(max(1, round(self.longest * factor)) for factor in self.factors))


DEFAULT = ProbeOptions()


def task_scores(
    layers: LayersConfig,
    tasks: Sequence[str],
    seed: int = 0,
    options: ProbeOptions = DEFAULT,
    track: Track = silent,
) -> tuple[TaskScore, ...]:
    """The scores of all named tasks. Raises ArgumentError for unknown names, before the first step.

    Args:
        layers: Whose position scheme, pattern, norms and feedforward are tried, in a model of the size in `options`.
        tasks: Names in `TASKS`.
        seed: Of the weights and rows. All schemes see the same rows.
        options: Sizes, training and lengths.
        track: Progress over the steps.
    """
    return tuple(score for task in named_tasks(tasks) for score in train_task(layers, task, seed, options, track))


def train_task(
    layers: LayersConfig, task: Task, seed: int = 0, options: ProbeOptions = DEFAULT, track: Track = silent
) -> tuple[TaskScore, ...]:
    """Train on one task and score every length. What cannot be built, trained or scored is a score with the reason."""
    with denormals_flushed(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = _model(layers, task, options)
            reason = _train(model, task, seed, options, track)
        except XPositionalError as error:
            return tuple(_missing(task, length, options, str(error)) for length in options.lengths)
        if reason is not None:
            return tuple(_missing(task, length, options, reason) for length in options.lengths)
        return tuple(_score(model, task, length, seed, options) for length in options.lengths)


def probe_layers(layers: LayersConfig, options: ProbeOptions = DEFAULT) -> LayersConfig:
    """The layers in the size of a probe."""
    sizes = {"dim": options.dim, "depth": max(options.depth, len(layers.pattern)), "heads": options.heads}
    return layers.model_copy(update={**sizes, "kv_heads": None, "head_dim": options.head_dim})


def _model(layers: LayersConfig, task: Task, options: ProbeOptions) -> AutoregressiveWrapper:
    longest = max(options.lengths)
    trained = task_rows(task, [options.longest], longest, np.random.default_rng(0)).tokens.shape[1]
    config = ModelConfig(num_tokens=task.num_tokens(longest), max_seq_len=trained, layers=probe_layers(layers, options))
    return AutoregressiveWrapper(TransformerWrapper.from_config(config))


def _train(model: AutoregressiveWrapper, task: Task, seed: int, options: ProbeOptions, track: Track) -> str | None:
    """Returns the reason where the loss or a gradient is not finite."""
    random = np.random.default_rng([seed, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    model.train()
    for step in track(range(options.steps), f"training {task.name}"):
        length = int(random.integers(1, options.longest + 1))  # one a step: mixed lengths would be half padding
        rows = task_rows(task, [length] * options.batch, max(options.lengths), random)
        loss = model(rows.tokens, labels=rows.labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            return f"the training loss was not finite at step {step + 1}"
        for group in optimizer.param_groups:
            group["lr"] = options.lr * schedule(step, options.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return None


def schedule(step: int, steps: int, warmup: float = 0.1, last: float = 0.02) -> float:
    """Fraction of the peak learning rate at a step: linear warm-up, cosine decay."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return last + (1 - last) * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


@torch.no_grad()
def _score(model: AutoregressiveWrapper, task: Task, length: int, seed: int, options: ProbeOptions) -> TaskScore:
    rows = task_rows(task, [length] * options.trials, max(options.lengths), np.random.default_rng([seed, 1, length]))
    model.eval()
    try:
        right = answers_right(model.net(rows.tokens[:, :-1]), rows)
    except XPositionalError as error:
        return _missing(task, length, options, str(error))
    if right is None:
        return _missing(task, length, options, "logits were not finite")
    targets = rows.labels[:, 1:] != NO_TARGET
    return TaskScore(
        task=task.name,
        length=length,
        trained=length <= options.longest,
        accuracy=(right & targets).sum().item() / targets.sum().item(),
        exact=(right | ~targets).all(dim=1).sum().item() / len(right),
        trials=len(right),
    )


def answers_right(logits: Tensor, rows: TaskRows) -> Tensor | None:
    """[B T-1] whether each next token is the most likely one; None where a logit is not finite."""
    if not torch.isfinite(logits).all():
        return None
    return logits.argmax(dim=-1) == rows.labels[:, 1:]


def _missing(task: Task, length: int, options: ProbeOptions, reason: str) -> TaskScore:
    trained = length <= options.longest
    return TaskScore(task=task.name, length=length, trained=trained, accuracy=None, exact=None, reason=reason)
