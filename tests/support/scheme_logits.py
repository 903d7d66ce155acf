"""What one query and one key score under a scheme, by the paper's formula in plain floats."""

import cmath
import math

from torch import nn

from tests.support.naive_attention import Row, dot
from x_positional.schemes import DynamicBias, Rope, T5Bias, XPos

HEADS = 3
"""Of the models that rope_logit and xpos_logit are for: `heads` in a config counts the last of them."""


def width_of(config: Rope, head_dim: int) -> int:
    if config.fraction is not None:
        return int(head_dim * config.fraction)
    return config.dim or head_dim


def frequencies(config: Rope, R: int) -> list[float]:
    """theta'_i = b'^(-2i/R) / s with b' = b * rescale^(R/(R-2)): position interpolation and NTK-aware scaling."""
    base = config.theta * config.base_rescale_factor ** (R / (R - 2))
    return [base ** (-2 * i / R) / config.interpolation_factor for i in range(R // 2)]


def rotated(x: Row, position: float, head: int, config: Rope) -> list[float]:
    """Each pair of channels as a complex number times e^(i t theta_i)."""
    if config.heads is not None and head < HEADS - config.heads:
        return list(x)
    R, out = width_of(config, len(x)), list(x)
    for i, frequency in enumerate(frequencies(config, R)):
        first, second = (2 * i, 2 * i + 1) if config.interleaved else (i, i + R // 2)
        turned = complex(x[first], x[second]) * cmath.exp(1j * position * frequency)
        out[first], out[second] = turned.real, turned.imag
    return out


def rope_logit(config: Rope):
    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        return dot(rotated(q, m, h, config), rotated(k, n, h, config)) / math.sqrt(len(q))

    return logit


def xpos_logit(config: XPos):
    """The product of the factors of q and k, never the factors: nothing can overflow and there is no centre."""

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        turns = config.heads is None or h >= HEADS - config.heads
        R = (config.dim or len(q)) if turns else 0
        base = config.theta * config.base_rescale_factor ** (R / (R - 2))
        terms = [a * b for a, b in zip(q[R:], k[R:], strict=True)]
        for i in range(R // 2):
            first, second = (2 * i, 2 * i + 1) if config.interleaved else (i, i + R // 2)
            angle = (m - n) * base ** (-2 * i / R) / config.interpolation_factor
            pair = complex(q[first], q[second]) * complex(k[first], k[second]).conjugate() * cmath.exp(1j * angle)
            terms.append(pair.real * ((2 * i / R + 0.4) / 1.4) ** ((m - n) / config.scale_base))
        return math.fsum(terms) / math.sqrt(len(q))

    return logit


def polar_logit(delta: list[list[float]], theta: float = 10_000.0, heads: int = 4):
    """scale * sum_c mu_q mu_k cos((m - n) theta^(-c/D) - delta_c), delta in [-2 pi, 0] of the key's head."""

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        D, terms = len(q), []
        for c in range(D):
            phase = min(max(delta[h * len(delta) // heads][c], -2 * math.pi), 0.0)
            lengths = math.log1p(math.exp(q[c])) * math.log1p(math.exp(k[c]))
            terms.append(lengths * math.cos((m - n) * theta ** (-c / D) - phase))
        return math.fsum(terms) / math.sqrt(D)

    return logit


def press(heads: int) -> list[float]:
    """The authors' rule: a geometric sequence from 2^(-8/n) for n = 2^k; else the one for the power of two below, and
    every other slope, from the first, of that for the power above."""
    if heads & (heads - 1) == 0:
        return [(2 ** (-8 / heads)) ** (i + 1) for i in range(heads)]
    below = 1
    while 2 * below < heads:
        below *= 2
    return press(below) + press(2 * below)[::2][: heads - below]


def alibi_logit(left: list[float], right: list[float]):
    """scale * q.k - slope_h * |m - n|, with the slopes of the side that the key is on; no slope is none."""

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        slopes = left if n <= m else right
        slope = slopes[h] if h < len(slopes) else 0.0
        return dot(q, k) / math.sqrt(len(q)) - slope * abs(m - n)

    return logit


def network(scheme: DynamicBias, distance: float) -> list[float]:
    """Linear, LayerNorm if any, SiLU, as often as it is deep, then a linear layer to one number per head."""
    x = [math.copysign(math.log(1 + abs(distance)), distance) if scheme.log_distance else float(distance)]
    for layer in scheme.mlp:
        if isinstance(layer, nn.Linear):
            rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            x = [dot(row, x) + bias for row, bias in rows]
        elif isinstance(layer, nn.LayerNorm):
            mean = math.fsum(x) / len(x)
            spread = math.sqrt(math.fsum((c - mean) ** 2 for c in x) / len(x) + 1e-5)
            affine = zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)
            x = [(c - mean) / spread * gain + shift for c, gain, shift in affine]
        else:
            x = [c * (1 + math.tanh(c / 2)) / 2 for c in x]  # silu, safe from overflow
    return x


def dynamic_logit(scheme: DynamicBias):
    known: dict[float, list[float]] = {}

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        if m - n not in known:
            known[m - n] = network(scheme, m - n)
        return dot(q, k) / math.sqrt(len(q)) + known[m - n][h]

    return logit


def bucket(distance: int, num_buckets: int, max_distance: int, causal: bool) -> int:
    """The definition without a logarithm: bucket e + k starts where (D/e)^(nb-e) reaches (max/e)^k, in integers."""
    offset = 0
    if not causal:
        num_buckets //= 2
        if distance < 0:
            offset, distance = num_buckets, -distance
    distance, exact = max(distance, 0), num_buckets // 2
    if distance < exact:
        return offset + distance
    wide, k = num_buckets - exact, 0
    while k + 1 < wide and distance**wide * exact ** (k + 1) >= max_distance ** (k + 1) * exact**wide:
        k += 1
    return offset + exact + k


def t5_logit(scheme: T5Bias, causal: bool):
    """scale * q.k + factor * W[bucket(m - n), h]."""
    table = scheme.table.tolist()

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        row = bucket(int(m - n), scheme.num_buckets, scheme.max_distance, causal)
        return dot(q, k) / math.sqrt(len(q)) + scheme.scale * table[row][h]

    return logit
