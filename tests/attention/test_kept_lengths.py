"""keep_first beside schemes that depend on the length of the text or scale queries, against attention in plain Python floats."""

import cmath
import math
from dataclasses import replace

import pytest
import torch

from tests.support.length_scalings import KINDS, LONG, SHORT, TRAINED
from tests.support.naive_attention import Row, attended, dot, joined, naive, one_layer, random_qkv
from tests.support.rounding import assert_same
from x_positional.modules.stack import AttentionLayers
from x_positional.schemes import LogN, Rope, RopeScaling, Temperature
from x_positional.schemes.base import AttentionWindow

HEADS, PAIRS, THETA, T = 2, 5, 100.0, 14
FIRST, WINDOW = 3, 4
HEAD_DIM = 2 * PAIRS
LONGEST = 20
"""max_seq_len."""


def layer(*parts) -> AttentionLayers:
    """One attention layer that keeps the first tokens."""
    layers = one_layer(parts, HEADS, HEAD_DIM, max_seq_len=LONGEST)
    window = AttentionWindow(size=WINDOW, keep_first=FIRST)
    layers.kinds = [replace(kind, window=window) for kind in layers.kinds]
    return layers


def frequencies(name: str, length: int) -> tuple[list[float], float]:
    """By the papers' formulas: radians per position of each pair, and the factor of cosines and sines."""
    plain = [THETA ** (-i / PAIRS) for i in range(PAIRS)]
    long = length > TRAINED
    if name == "dynamic":
        theta = THETA * (3 * max(length, TRAINED) / TRAINED - 2) ** (PAIRS / (PAIRS - 1))
        return [theta ** (-i / PAIRS) for i in range(PAIRS)], 1.0
    divided = [f / by for f, by in zip(plain, LONG if long else SHORT, strict=True)]
    published = math.sqrt(1 + math.log(4) / math.log(TRAINED))
    return divided, published if name == "longrope" else 1.4 if long else 1.1


def rotated_dot(query: Row, key: Row, angles: list[float]) -> float:
    """q . k once the pairs of q are rotated by these angles more than those of k."""
    q = [complex(*pair) for pair in zip(query[:PAIRS], query[PAIRS:], strict=True)]
    k = [complex(*pair) for pair in zip(key[:PAIRS], key[PAIRS:], strict=True)]
    return math.fsum((a * b.conjugate() * cmath.exp(1j * t)).real for a, b, t in zip(q, k, angles, strict=True))


def expected(qkv, name: str, lengths: list[int]) -> torch.Tensor:
    """Every key of a row at the frequencies of the row's length; the first tokens at distances that stop growing."""

    def logits(query: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        each, factor = frequencies(name, lengths[b])
        out = []
        for key, n in zip(keys, seen, strict=True):
            distance = (min(m, FIRST + WINDOW - 1) if n < FIRST else m) - n
            score = factor**2 * rotated_dot(query, key, [distance * f for f in each]) / math.sqrt(HEAD_DIM)
            out.append(score if n < FIRST or m - n < WINDOW else -math.inf)
        return out

    return naive(qkv, logits)


POLICIES = {"max_seq_len": {}, "length": {"length": TRAINED - 1}, "recompute": {"length_policy": "recompute"}}


def rope(scaling: RopeScaling) -> Rope:
    return Rope(theta=THETA, scaling=scaling)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", KINDS)
def test_queries_and_keys_have_the_frequencies_of_one_length(name: str, policy: str) -> None:
    layers, qkv = layer(rope(KINDS[name](**POLICIES[policy]))), random_qkv(HEADS, HEAD_DIM, T=T)
    length = {"max_seq_len": LONGEST, "length": TRAINED - 1, "recompute": T}[policy]
    want = expected(qkv, name, [length] * 2)
    assert_same(attended(layers, qkv), want)
    if policy != "recompute":
        assert_same(attended(layers, qkv, chunks=[5, 1, 8]), want)


@pytest.mark.parametrize("name", KINDS)
def test_a_padded_row_has_the_frequencies_of_its_own_length(name: str) -> None:
    layers, qkv = layer(rope(KINDS[name](length_policy="recompute"))), random_qkv(HEADS, HEAD_DIM, T=T)
    short = [t[:1, :, T - TRAINED :] for t in qkv]
    mask = torch.arange(T) >= torch.tensor([[T - TRAINED], [0]])
    x = joined(*qkv)
    with torch.no_grad():
        out = (layers(x, mask=mask) - x)[..., : HEADS * HEAD_DIM].unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    assert_same(out[:1, :, T - TRAINED :], expected(short, name, [TRAINED]))
    assert_same(out[1:], expected([t[1:] for t in qkv], name, [T]))


@pytest.mark.parametrize("name", KINDS)
def test_a_cache_that_knows_the_final_lengths_uses_them(name: str) -> None:
    layers, qkv, finals = layer(rope(KINDS[name]())), random_qkv(HEADS, HEAD_DIM, T=T), [TRAINED, LONGEST]
    cache, x = layers.new_cache(2, final_lengths=torch.tensor(finals)), joined(*qkv)
    with torch.no_grad():
        out = torch.cat([layers(part, cache=cache) for part in x.split([6, 1, 7], dim=1)], dim=1) - x
    found = out[..., : HEADS * HEAD_DIM].unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    assert_same(found, expected(qkv, name, finals))


@pytest.mark.parametrize("scaled", [Temperature(floor_scale=2, scale=0.5), LogN(trained=3)], ids=lambda part: part.kind)
@pytest.mark.parametrize("parts", [(), (Rope(theta=THETA),)], ids=["alone", "rope"])
def test_a_temperature_is_the_same_for_all_keys_of_a_query(parts: tuple[Rope, ...], scaled) -> None:
    """It depends on where the query is in the whole text, so the first tokens do not change it."""

    def logits(query: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        log_n, steps = max(1.0, math.log(m + 1) / math.log(3)), math.floor((m + 1) / 2)
        factor = (log_n if scaled.kind == "log_n" else 1 + 0.5 * math.log(1 + steps)) / math.sqrt(HEAD_DIM)
        out = []
        for key, n in zip(keys, seen, strict=True):
            distance = (min(m, FIRST + WINDOW - 1) if n < FIRST else m) - n
            angles = [distance * THETA ** (-i / PAIRS) for i in range(PAIRS)]
            score = rotated_dot(query, key, angles) if parts else dot(query, key)
            out.append(factor * score if n < FIRST or m - n < WINDOW else -math.inf)
        return out

    layers, qkv = layer(*parts, scaled), random_qkv(HEADS, HEAD_DIM, T=T)
    want = naive(qkv, logits)
    assert_same(attended(layers, qkv), want)
    assert_same(attended(layers, qkv, chunks=[5, 1, 8]), want)
