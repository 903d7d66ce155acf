"""DeBERTa's disentangled attention against He et al. 2020 (arXiv:2006.03654): buckets by exact arithmetic, then the bias."""

import math
from fractions import Fraction

import pytest
import torch

from x_positional import TransformerWrapper
from x_positional.schemes import Deberta, DebertaBias, log_buckets, log_ratio
from x_positional.schemes.base import AttentionContext, LayerView

HEADS, GROUPS, HEAD_DIM, DIM, T, S = 4, 2, 3, 7, 5, 6
TIGHT = 1e-12


def bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    """Without a logarithm: the least k with |d| / e <= ((max - 1) / e)^(k / (e - 1)), in whole numbers."""
    exact = num_buckets // 2
    size = abs(distance)
    if size <= exact:
        return distance
    k, last = 0, Fraction(max_distance - 1, exact)
    while Fraction(size, exact) ** (exact - 1) > last**k:
        k += 1
    return int(math.copysign(exact + k, distance))


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(8, 20), (16, 40), (32, 128), (64, 512), (7, 9), (4, 1000)])
def test_buckets_are_the_exact_ones(num_buckets: int, max_distance: int):
    far = list(range(-2 * max_distance, 2 * max_distance + 1))[:: max(1, max_distance // 64)]
    found = log_buckets(torch.tensor(far), num_buckets, log_ratio(num_buckets, max_distance)).tolist()
    assert found == [bucket(d, num_buckets, max_distance) for d in far]


def test_buckets_by_hand():
    """256 buckets to 512, as published: 128 exact, then 127 to a side up to 511."""
    distances = torch.tensor([0, 1, 127, 128, 129, 130, 511, -511, -129])
    assert log_buckets(distances, 256, log_ratio(256, 512)).tolist() == [0, 1, 127, 128, 129, 130, 255, -255, -129]
    assert DebertaBias(2).rows(torch.tensor([0, 511, 9999, -255, -256, -9999])).tolist() == [256, 511, 511, 64, 64, 0]


def scene(scheme: DebertaBias) -> tuple[LayerView, AttentionContext, torch.Tensor, torch.Tensor]:
    """Random queries, keys and projections, and positions with gaps that differ between the two rows."""
    draw = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    w_q, w_k = random(HEADS, HEAD_DIM, DIM), random(GROUPS, HEAD_DIM, DIM)
    view = LayerView(
        q=random(2, HEADS, T, HEAD_DIM),
        k=random(2, GROUPS, S, HEAD_DIM),
        scale=0.3,
        to_q=lambda r: torch.einsum("nm,hdm->hnd", r, w_q),
        to_k=lambda r: torch.einsum("nm,gdm->gnd", r, w_k),
    )
    q_positions = torch.tensor([[3, 4, 6, 9, 30], [0, 1, 2, 3, 4]])
    kv_positions = torch.tensor([[0, 3, 4, 6, 9, 40], [0, 1, 2, 3, 4, 5]])
    ctx = AttentionContext(
        q_index=torch.arange(T)[None],
        kv_index=torch.arange(S)[None],
        q_positions=q_positions,
        kv_positions=kv_positions,
        batch=2,
        heads=HEADS,
        span=S,
        causal=False,
        custom_positions=True,
    )
    return view, ctx, w_q, w_k


@pytest.mark.parametrize("terms", ["c2p", "p2c", "both"])
@pytest.mark.parametrize("num_buckets", [8, None])
@pytest.mark.parametrize("norm_eps", [None, 0.1])
@torch.no_grad()
def test_the_bias_pair_by_pair(terms: str, num_buckets: int | None, norm_eps: float | None):
    torch.manual_seed(0)
    scheme = DebertaBias(DIM, num_buckets, 20, terms, norm_eps).double()
    for parameter in scheme.parameters():
        parameter.copy_(torch.randn_like(parameter))
    view, ctx, w_q, w_k = scene(scheme)
    bias = scheme.layer_bias(view, ctx)
    got = bias.dense(ctx, ctx.every_row, ctx.every_key)
    pointwise = bias.fn(*torch.meshgrid(*map(torch.arange, (2, HEADS, T, S)), indexing="ij"))
    table, span = scheme.table, num_buckets or 20
    if norm_eps is not None:
        centred = table - table.mean(-1, keepdim=True)
        table = (
            centred / (centred.square().mean(-1, keepdim=True) + norm_eps).sqrt() * scheme.norm.weight
            + scheme.norm.bias
        )
    for b in range(2):
        for h in range(HEADS):
            for i in range(T):
                for j in range(S):
                    distance = int(ctx.q_positions[b, i] - ctx.kv_positions[b, j])
                    distance = distance if num_buckets is None else bucket(distance, num_buckets, 20)
                    r, g = table[max(0, min(distance + span, 2 * span - 1))], h // (HEADS // GROUPS)
                    want = 0.0
                    if terms in ("c2p", "both"):
                        want += float(view.q[b, h, i] @ (w_k[g] @ r)) * 0.3
                    if terms in ("p2c", "both"):
                        want += float(view.k[b, g, j] @ (w_q[h] @ r)) * 0.3
                    assert abs(got[b, h, i, j] - want) < TIGHT
                    assert abs(pointwise[b, h, i, j] - want) < TIGHT


@pytest.mark.parametrize("own", [False, True])
@torch.no_grad()
def test_layers_project_the_table_as_they_project_words(own: bool):
    """With the bias of the projection, and where positions have their own, with those."""
    model = TransformerWrapper.from_config(
        {
            "num_tokens": 11,
            "max_seq_len": 9,
            "layers": {
                "kind": "encoder",
                "dim": DIM,
                "depth": 1,
                "heads": HEADS,
                "kv_heads": GROUPS,
                "head_dim": HEAD_DIM,
                "position": Deberta(num_buckets=6, max_distance=9),
                "attn": {"bias": True, "position_projections": own},
            },
        }
    )
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter))
    attn, vectors = model.attn_layers.blocks[0].attn, torch.randn(5, DIM)
    joined = attn.to_qkv(vectors)
    queries, keys = joined[:, : HEADS * HEAD_DIM], joined[:, HEADS * HEAD_DIM :][:, : GROUPS * HEAD_DIM]
    if own:
        queries, keys = attn.position_q(vectors), attn.position_k(vectors)
    assert torch.allclose(attn._queries_of(vectors), queries.unflatten(-1, (HEADS, HEAD_DIM)).transpose(0, 1))
    assert torch.allclose(attn._keys_of(vectors), keys.unflatten(-1, (GROUPS, HEAD_DIM)).transpose(0, 1))
