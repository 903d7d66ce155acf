"""No scheme, and several at once: rotations first, biases added, gates of CoPE from the sum of both."""

import math
from collections.abc import Sequence

import pytest
import torch

from tests.support.naive_attention import Logits, Row, attended, dot, naive, one_layer, pairwise, random_qkv, worst
from tests.support.scheme_logits import alibi_logit, dynamic_logit, polar_logit, press, rope_logit, t5_logit, xpos_logit
from x_positional import Decoder
from x_positional.modules.stack import AttentionLayers
from x_positional.schemes import T5, Alibi, Cope, Dynamic, NoPE, Polar, Rope, XPos
from x_positional.schemes.registry import SchemeConfig

HEADS, HEAD_DIM = 3, 6
TIGHT = 1e-6


def plain_logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
    return dot(q, k) / math.sqrt(len(q))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_no_scheme_is_plain_attention(causal: bool, backend: str) -> None:
    layers, qkv = one_layer(NoPE(), HEADS, HEAD_DIM, causal=causal, backend=backend), random_qkv(HEADS, HEAD_DIM)
    assert worst(attended(layers, qkv), naive(qkv, pairwise(plain_logit), causal)) < TIGHT


def test_without_positions_a_constant_sequence_gives_constant_rows() -> None:
    torch.manual_seed(0)
    layers = Decoder(dim=20, depth=3, heads=3, head_dim=6, position="none").double()
    token = torch.randn(2, 1, 20, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        rows = layers(token.expand(-1, 9, -1))
    assert worst(rows, rows[:, :1].expand(-1, 9, -1)) < 1e-12


def of_scheme(layers: AttentionLayers, index: int, config: SchemeConfig):
    """The logit of one scheme of a combination, scale * q.k included."""
    scheme = layers.position_schemes[index]
    makers = {
        Rope: lambda: rope_logit(config),
        XPos: lambda: xpos_logit(config),
        Polar: lambda: polar_logit(scheme.delta[:, 0].tolist(), heads=HEADS),
        Alibi: lambda: alibi_logit(press(HEADS), press(HEADS)),
        T5: lambda: t5_logit(scheme, True),
        Dynamic: lambda: dynamic_logit(scheme),
    }
    return makers[type(config)]()


def summed(layers: AttentionLayers, configs: Sequence[SchemeConfig]):
    """The score of the scheme that rotates, if any, and what each other one adds to scale * q.k."""
    logits = [of_scheme(layers, i, config) for i, config in enumerate(configs)]

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        plain = plain_logit(q, k, m, n, h)
        return plain + math.fsum(own(q, k, m, n, h) - plain for own in logits)

    return logit


SUMS = {
    "rope, alibi": (Rope(), Alibi()),
    "alibi, rope": (Alibi(), Rope(dim=4, interleaved=True)),
    "xpos, t5": (XPos(scale_base=20.0), T5(num_buckets=8, max_distance=6)),
    "rope, alibi, t5": (Rope(), Alibi(), T5(num_buckets=8, max_distance=6)),
    "dynamic, t5": (Dynamic(), T5(num_buckets=8, max_distance=6)),
    "rope, dynamic": (Rope(heads=2), Dynamic(log_distance=True)),
}


@pytest.mark.parametrize("configs", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize(
    ("backend", "chunks"), [("eager", ()), ("eager", (4, 1, 3, 1)), ("sdpa", ()), ("sdpa", (2, 7)), ("flex", ())]
)
def test_rotations_and_biases_together(configs: tuple, backend: str, chunks: tuple[int, ...]) -> None:
    layers, qkv = one_layer(configs, HEADS, HEAD_DIM, backend=backend), random_qkv(HEADS, HEAD_DIM)
    found = attended(layers, qkv, chunks=chunks)
    assert worst(found, naive(qkv, pairwise(summed(layers, configs)))) < TIGHT


def gated(base, table: list[list[float]]) -> Logits:
    """CoPE on top of scores that are turned or biased already; the query that meets the table is the one before."""

    def logits(q: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        scores = [base(q, k, m, n, h) for k, n in zip(keys, seen, strict=True)]
        gates, out = [1 / (1 + math.exp(-s)) for s in scores], []
        for i, score in enumerate(scores):
            p = min(math.fsum(gates[i:]), len(table) - 1)
            low, high = dot(q, table[math.floor(p)]), dot(q, table[math.ceil(p)])
            out.append(score + low + (p - math.floor(p)) * (high - low))
        return out

    return logits


@pytest.mark.parametrize("beside", [Rope(), Alibi(), XPos(scale_base=20.0)], ids=["rope", "alibi", "xpos"])
@pytest.mark.parametrize("chunks", [(), (4, 1, 3, 1)])
def test_cope_beside_another_scheme(beside: SchemeConfig, chunks: tuple[int, ...]) -> None:
    layers, qkv = one_layer((beside, Cope(max_pos=4)), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    expected = naive(qkv, gated(of_scheme(layers, 0, beside), layers.position_schemes[1].table.tolist()))
    assert worst(attended(layers, qkv, chunks=chunks), expected) < TIGHT


def test_cope_beside_rope_sees_distances_only() -> None:
    """The table meets the query before its rotation; after it, every score would move with the query's position."""
    layers, qkv = one_layer((Rope(), Cope(max_pos=4)), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    positions = torch.arange(9)[None].expand(2, -1)
    assert worst(attended(layers, qkv, positions + 1000), attended(layers, qkv, positions)) < TIGHT
