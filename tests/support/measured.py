"""A leaderboard with chosen losses, for tests of the pages that are generated from one."""

import math
from collections.abc import Mapping

from benchmarks.evidence.grid import LENGTHS, SEEDS
from benchmarks.evidence.grid import entries as grid_entries
from benchmarks.evidence.store import Evidence
from x_positional.evidence.comparison.results import Cell, Comparison
from x_positional.evidence.evaluation.results import DataSummary, Evaluation, LengthLoss, ModelSummary

SPREAD = (-0.01, 0.0, 0.01)
"""What the three seeds add to a loss."""


def evaluation(losses: Mapping[int, float]) -> Evaluation:
    """An evaluation with these bits per byte by length."""
    return Evaluation(
        model=ModelSummary(name="model", position="position", trained_length=LENGTHS[0], parameters=1000),
        data=DataSummary(name="text", tokens=1000, bytes_per_token=1.0, fingerprint="0"),
        protocol="protocol",
        lengths=tuple(LengthLoss(length=n, loss=bits * math.log(2)) for n, bits in losses.items()),
    )


def evidence(losses: Mapping[str, tuple[float, float]], speed: float = 1000.0) -> Evidence:
    """Bits per byte of each scheme at the trained length, and at all longer ones."""
    cells = tuple(
        Cell(
            label=label,
            seed=seed,
            status="done",
            decode_tokens_per_second=speed / len(label) + seed,
            evaluation=evaluation({n: (short if n == LENGTHS[0] else long) + SPREAD[seed] for n in LENGTHS}),
        )
        for label, (short, long) in losses.items()
        for seed in SEEDS
    )
    comparison = Comparison(
        name="evidence",
        entries=tuple(entry for entry in grid_entries() if entry.label in losses),
        seeds=SEEDS,
        lengths=LENGTHS,
        trained_length=LENGTHS[0],
        equal="tokens",
        steps=1,
        budget_seconds=None,
        config={},
        cells=cells,
    )
    return Evidence(comparison)
