"""Scalings of rotary frequencies, by the papers' formulas in plain Python."""

import math
from typing import Any

from x_positional.schemes import (
    DefaultRope,
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    Ntk,
    NtkAlpha,
    NtkByParts,
    Proportional,
    RopeScaling,
    Yarn,
    YarnPaper,
)

WIDTH, THETA, TRAINED = 128, 10_000.0, 4096

HALF = WIDTH // 2


def f(i: int, theta: float = THETA, width: int = WIDTH) -> float:
    return theta ** (-2 * i / width)


def turns(i: int) -> float:
    return TRAINED * f(i) / (2 * math.pi)


def by_parts(s: float, alpha: float, beta: float) -> list[float]:
    """Peng et al. 2023, eq. 17-20."""
    out = []
    for i in range(HALF):
        g = 0.0 if turns(i) < alpha else 1.0 if turns(i) > beta else (turns(i) - alpha) / (beta - alpha)
        out.append((1 - g) * f(i) / s + g * f(i))
    return out


def llama3(s: float, low: float, high: float) -> list[float]:
    """In wavelengths, as published."""
    out = []
    for i in range(HALF):
        wavelength = 2 * math.pi / f(i)
        smooth = (TRAINED / wavelength - low) / (high - low)
        middle = (1 - smooth) * f(i) / s + smooth * f(i)
        out.append(f(i) / s if wavelength > TRAINED / low else f(i) if wavelength < TRAINED / high else middle)
    return out


def yarn(s: float, fast: float, slow: float, truncate: bool) -> list[float]:
    """The code everyone runs."""

    def dim(rotations: float) -> float:
        return WIDTH * math.log(TRAINED / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = (math.floor(dim(fast)), math.ceil(dim(slow))) if truncate else (dim(fast), dim(slow))
    ramps = [min(1.0, max(0.0, (i - low) / (high - low))) for i in range(HALF)]
    return [f(i) / s * ramp + f(i) * (1 - ramp) for i, ramp in enumerate(ramps)]


ntk = [f(i, THETA * 8 ** (WIDTH / (WIDTH - 2))) for i in range(HALF)]

lists: Any = {
    "short_factor": tuple(1 + i / 64 for i in range(HALF)),
    "long_factor": tuple(2.0 + i for i in range(HALF)),
}

long = LongRope(**lists, factor=16.0, original_max_position_embeddings=TRAINED, length=TRAINED + 1)

L: Any = {"original_max_position_embeddings": TRAINED}

FORMULAS: dict[str, tuple[RopeScaling, list[float], float]] = {
    "default": (DefaultRope(), [f(i) for i in range(HALF)], 1.0),
    "linear": (Linear(factor=8), [f(i) / 8 for i in range(HALF)], 1.0),
    "ntk": (Ntk(factor=8), ntk, 1.0),
    "ntk_alpha": (NtkAlpha(alpha=8), ntk, 1.0),
    "dynamic": (DynamicNtk(factor=1, length=8 * TRAINED, **L), ntk, 1.0),
    "dynamic, factor 3": (
        DynamicNtk(factor=3, length=(10 * TRAINED) // 3 + 1, **L),
        [f(i, THETA * (3 * ((10 * TRAINED) // 3 + 1) / TRAINED - 2) ** (128 / 126)) for i in range(HALF)],
        1.0,
    ),
    "ntk_by_parts": (NtkByParts(factor=8, **L), by_parts(8, 1, 32), 1.0),
    "yarn_paper": (YarnPaper(factor=8, **L), by_parts(8, 1, 32), 0.1 * math.log(8) + 1),
    "llama3": (Llama3(factor=8, **L), llama3(8, 1, 4), 1.0),
    "yarn": (Yarn(factor=8, **L), yarn(8, 32, 1, True), 0.1 * math.log(8) + 1),
    "yarn, gpt-oss": (Yarn(factor=32, truncate=False, **L), yarn(32, 32, 1, False), 0.1 * math.log(32) + 1),
    "yarn, deepseek": (
        Yarn(factor=40, mscale=1.0, mscale_all_dim=0.707, beta_fast=16, beta_slow=2, **L),
        yarn(40, 16, 2, True),
        (0.1 * math.log(40) + 1) / (0.0707 * math.log(40) + 1),
    ),
    "yarn, its own factor": (Yarn(factor=4, attention_factor=1.5, **L), yarn(4, 32, 1, True), 1.5),
    "longrope, long": (long, [f(i) / (2 + i) for i in range(HALF)], math.sqrt(1 + math.log(16) / math.log(TRAINED))),
    "longrope, short": (
        long.model_copy(update={"length": TRAINED}),
        [f(i) / (1 + i / 64) for i in range(HALF)],
        math.sqrt(1 + math.log(16) / math.log(TRAINED)),
    ),
    "proportional": (Proportional(fraction=0.25, factor=2.0), [f(i) / 2 if i < 16 else 0.0 for i in range(HALF)], 1.0),
}
