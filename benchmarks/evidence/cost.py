"""The time of a training step of every scheme, interleaved in one process, so that a busy machine slows all of them alike.

python -m benchmarks.evidence.cost
"""

import statistics
import time

import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.evidence.grid import CONFIG, entries
from benchmarks.evidence.store import COST, FOLDER, ROOT, Cost
from x_positional.evidence.comparison.plan import config_of_cell
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TransformerWrapper
from x_positional.training.load import load_fields

ROUNDS, WARM_UP = 15, 2
Trained = tuple[AutoregressiveWrapper, torch.optim.Optimizer]


def main() -> int:
    """Measure all schemes on one thread; about half a minute."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    fields = load_fields(ROOT / CONFIG, {})
    models = {}
    for entry in entries():
        config, problems = config_of_cell(fields, entry, {"trackers": []})
        if config is None:
            raise ValueError("; ".join(problems))
        model = AutoregressiveWrapper(TransformerWrapper.from_config(config.model))
        models[entry.label] = model, torch.optim.AdamW(model.parameters(), fused=True)
        size = config.run.batch_size, config.seq_len + 1
    tokens = torch.randint(0, 256, size)
    times: dict[str, list[float]] = {label: [] for label in models}
    for _ in range(ROUNDS + WARM_UP):
        for label, trained in models.items():
            times[label].append(_seconds(trained, tokens))
    Cost(step_seconds={label: statistics.median(found[WARM_UP:]) for label, found in times.items()}).save(FOLDER / COST)
    return 0


def _seconds(trained: Trained, tokens: torch.Tensor) -> float:
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
