"""Made-up results for the pages of reports."""

import math
import random

from x_positional.evidence.comparison.results import Cell, Comparison, Entry
from x_positional.evidence.evaluation.results import (
    DataSummary,
    Evaluation,
    LengthLoss,
    ModelSummary,
    PasskeyScore,
    PositionLoss,
    TaskScore,
    UsableLength,
)
from x_positional.evidence.extension.results import Attempt, Extension

TRAINED = 64
LENGTHS = (32, 64, 128, 256)
REASON = "positions up to 128 exceed max_seq_len=64 & <more>"
EVIL = "<script>alert('x')</script>"


def evaluation(name: str, seed: int = 0, *, level: float = 1.0, rise: float = 0.0, stops: bool = False) -> Evaluation:
    """A loss of about `level` nats, which rises by `rise` each time the length doubles past the trained one."""
    noise = random.Random(f"{name} {seed}")
    losses = []
    for length in LENGTHS:
        if stops and length > TRAINED:
            losses.append(LengthLoss(length=length, loss=None, reason=REASON))
            continue
        value = level + max(0.0, rise * math.log2(length / TRAINED)) + noise.gauss(0, 0.001)
        windows = tuple(value + shift for shift in (-0.1, 0.0, 0.1))
        losses.append(LengthLoss(length=length, loss=value, targets=96, windows=windows))
    passkey = (
        PasskeyScore(length=32, depth=0.5, correct=3, trials=4),
        PasskeyScore(length=128, depth=0.5, reason=REASON),
    )
    tasks = (
        TaskScore(task="copy", length=8, trained=True, accuracy=1.0, exact=0.9, trials=10),
        TaskScore(task="copy", length=64, trained=False, accuracy=None, exact=None, reason=REASON),
    )
    return Evaluation(
        model=ModelSummary(name=name, position=name, trained_length=TRAINED, parameters=35_300),
        data=DataSummary(name="a text", tokens=9000, bytes_per_token=2.0, fingerprint="0"),
        protocol="The same 96 targets at every length.",
        lengths=tuple(losses),
        positions=PositionLoss(length=64, edges=(1, 2, 4, 64), loss=(3.0, 2.0, None)),
        passkey=passkey,
        tasks=tasks,
        usable=UsableLength(length=128, tolerance=0.01, rule="the loss rises by at most 0.01"),
    )


def cell(label: str, seed: int, **about: float) -> Cell:
    """A finished cell."""
    return Cell(
        label=label,
        seed=seed,
        status="done",
        steps=10,
        tokens=2560,
        seconds=1.5,
        tokens_per_second=35_312.0,
        decode_tokens_per_second=120.0,
        peak_bytes=2**20,
        curve=((1, 4.0), (10, 1.5)),
        evaluation=evaluation(label, seed, **about),  # pyright: ignore[reportArgumentType]
        run=f"{label}-{seed}",
    )


def comparison(seeds: tuple[int, ...] = (0, 1, 2), name: str = "tiny") -> Comparison:
    """`rope` lowest at the trained length and `alibi` at the longest; `absolute` stops, a cell failed, another is NaN."""
    cells = [
        *(cell("rope", seed, level=1.0, rise=0.5) for seed in seeds),
        *(cell("alibi", seed, level=1.1) for seed in seeds),
        *(cell("absolute", seed, level=1.2, stops=True) for seed in seeds),
        *(cell(EVIL, seed, level=1.3) for seed in seeds),
    ]
    cells[-1] = Cell(label=EVIL, seed=seeds[-1], status="not finite", reason="the loss was NaN at step 7")
    labels = ("rope", "alibi", "absolute", EVIL)
    return Comparison(
        name=name,
        entries=tuple(Entry(label=label, layers={"position": label}) for label in labels),
        seeds=seeds,
        lengths=LENGTHS,
        trained_length=TRAINED,
        equal="tokens",
        steps=10,
        budget_seconds=None,
        config={"model": {"layers": {"dim": 16}}, "lr": 0.001},
        cells=tuple(cells),
    )


def extension() -> Extension:
    """The unchanged model collapses; yarn helps; a method cannot run."""
    attempts = (
        Attempt(label="none", settings={"kind": "rope"}, evaluation=evaluation("none", rise=2.0)),
        Attempt(label="yarn x4", settings={"rope_type": "yarn"}, evaluation=evaluation("yarn", level=1.05)),
        Attempt(label="longrope", settings={}, evaluation=None, reason="longrope needs its factors"),
    )
    return Extension(name="m", trained_length=TRAINED, target=256, attempts=attempts, chosen="yarn x4", folder="out")
