"""Interleaved timing, and the statistics of its ratios."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Sample = Callable[[], float]
"""Does its work once and returns a time in seconds."""


@dataclass(frozen=True)
class Ratio:
    """The median of ratios, with the 95 % interval of that median."""

    median: float
    low: float
    high: float


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, its kernels included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the kernels of a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rounds_within(budget: float, one: float, least: int = 2, most: int = 15) -> int:
    """How many rounds fit in `budget` seconds, if one takes `one`."""
    return max(least, min(most, int(budget / one))) if one > 0 else most


def interleave(samples: Mapping[str, Sample], rounds: int) -> dict[str, list[float]]:
    """A B B A A B ...: every sample once a round, the order reversed from round to round, so that drift cancels."""
    found: dict[str, list[float]] = {name: [] for name in samples}
    for turn in range(rounds):
        for name in samples if turn % 2 == 0 else reversed(list(samples)):
            found[name].append(samples[name]())
    return found


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """The ratios of pairs that were measured in the same round."""
    ratios = [above / below for above, below in zip(numerators, denominators, strict=True)]
    low, high = interval(ratios)
    return Ratio(statistics.median(ratios), low, high)


def interval(values: Sequence[float], draws: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the median, by bootstrap."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]
