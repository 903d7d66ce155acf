"""The time of a training step and of a decoded token of every scheme, interleaved in one process, so that a busy machine slows
all of them alike.

python -m benchmarks.evidence.cost
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.evidence.grid import CONFIG, entries
from benchmarks.evidence.store import COST, FOLDER, ROOT, Cost
from x_positional.evidence.comparison.plan import config_of_cell
from x_positional.evidence.comparison.results import Entry
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TransformerWrapper
from x_positional.training.config import TrainConfig
from x_positional.training.load import load_fields

ROUNDS, WARM_UP = 15, 2
PROMPT, DECODED = 32, 128
"""Tokens of one sequence; together they fit into every scheme's trained length."""
Trained = tuple[AutoregressiveWrapper, torch.optim.Optimizer]


def main() -> int:
    """Measure all schemes on one thread; about three minutes."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    fields = load_fields(ROOT / CONFIG, {})
    configs = {entry.label: _config(fields, entry) for entry in entries()}
    models = {}
    for label, config in configs.items():
        model = AutoregressiveWrapper(TransformerWrapper.from_config(config.model))
        models[label] = model, torch.optim.AdamW(model.parameters(), fused=True)
    [size] = {(config.run.batch_size, config.seq_len + 1) for config in configs.values()}
    tokens = torch.randint(0, 256, size)
    steps = _interleaved(models, lambda trained: _step(trained, tokens))
    decoded = _interleaved(models, lambda trained: _decoding(trained, tokens[0, :PROMPT]))
    Cost(step_seconds={label: statistics.median(found) for label, found in steps.items()}, decode_seconds=decoded).save(
        FOLDER / COST
    )
    return 0


def _config(fields: Mapping[str, Any], entry: Entry) -> TrainConfig:
    """The run of a scheme. Raises ValueError with every problem."""
    config, problems = config_of_cell(fields, entry, {"trackers": []})
    if config is None:
        raise ValueError("; ".join(problems))
    return config


def _interleaved(models: Mapping[str, Trained], measure: Callable[[Trained], float]) -> dict[str, tuple[float, ...]]:
    """What is measured of each model, one value a round; a round takes all models in turn."""
    times: dict[str, list[float]] = {label: [] for label in models}
    for _ in range(ROUNDS + WARM_UP):
        for label, trained in models.items():
            times[label].append(measure(trained))
    return {label: tuple(found[WARM_UP:]) for label, found in times.items()}


def _decoding(trained: Trained, prompt: torch.Tensor) -> float:
    """One token of greedy decoding with a cache."""
    began = time.perf_counter()
    trained[0].generate(prompt, DECODED, temperature=0.0, compile=False).tolist()
    return (time.perf_counter() - began) / DECODED


def _step(trained: Trained, tokens: torch.Tensor) -> float:
    """One training step."""
    model, optimizer = trained
    began = time.perf_counter()
    optimizer.zero_grad()
    model(tokens).backward()
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
