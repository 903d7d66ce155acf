"""Attention written out in plain Python floats, and a layer of ours whose input is its queries, keys and values.

B batch, T tokens, H heads, G key/value heads, D head dim, M = (H + 2 G) D model dim.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from x_positional.attention.backends import choose
from x_positional.attention.plan import LayerKind
from x_positional.config.layers import LayerConfig
from x_positional.models.build import build_positions
from x_positional.modules.attention import Attention
from x_positional.modules.block import Block
from x_positional.modules.norms import Norm
from x_positional.modules.stack import AttentionLayers
from x_positional.schemes.base import AttentionWindow, Dims
from x_positional.schemes.registry import SchemeConfig

Row = Sequence[float]
Pair = Callable[[Row, Row, float, float, int], float]
"""(query, key, query position, key position, head) -> logit."""
Logits = Callable[[Row, list[Row], list[int], int, int, int], list[float]]
"""(query, visible keys, their indices, query index, head, row of the batch) -> a logit per visible key."""


def dot(a: Row, b: Row) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def random_qkv(heads: int, head_dim: int, kv_heads: int | None = None, T: int = 9, B: int = 2, seed: int = 0):
    """q [B H T D], k and v [B G T D] in float64."""
    generator = torch.Generator().manual_seed(seed)
    groups = kv_heads or heads
    return tuple(
        torch.randn(B, n, T, head_dim, generator=generator, dtype=torch.float64) for n in (heads, groups, groups)
    )


def one_layer(
    position: SchemeConfig | Sequence[SchemeConfig],
    heads: int,
    head_dim: int,
    *,
    kv_heads: int | None = None,
    causal: bool = True,
    backend: str = "eager",
    max_seq_len: int | None = None,
    seed: int = 3,
) -> AttentionLayers:
    """One attention layer in float64 that adds to [q k v] what attention makes of them. Projections are identities, there
    are no norms and no feedforward; the scheme's parameters are perturbed."""
    groups = kv_heads or heads
    dim = (heads + 2 * groups) * head_dim
    dims = Dims(
        dim=dim, heads=heads, kv_heads=groups, head_dim=head_dim, causal=causal, embed_dim=dim, max_seq_len=max_seq_len
    )
    parts = (position,) if isinstance(position, SchemeConfig) else tuple(position)
    if found := [problem for part in parts for problem in part.problems(dims)]:
        raise ValueError(" ".join(found))
    torch.manual_seed(seed)
    positions = build_positions((LayerConfig(position=parts),), dims, 1)
    attn = Attention(dim, heads, groups, head_dim)
    torch.nn.init.eye_(attn.to_qkv.weight)
    torch.nn.init.eye_(attn.to_out.weight)
    scheme = positions.layers[0]
    choice = choose(backend, False, scheme.capabilities().kernel)
    layers = AttentionLayers(
        dims=dims,
        blocks=[Block(attn, None, None, norm=partial(Norm, dim, "none"))],
        schemes=positions.parts,
        kinds=[LayerKind(scheme=scheme, window=AttentionWindow(), choice=choice)],
        final_norm=None,
    )
    with torch.no_grad():
        for parameter in layers.schemes.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layers.double()


def joined(*qkv: Tensor) -> Tensor:
    """[B . T D] each -> [B T M]."""
    return torch.cat([t.transpose(1, 2).flatten(-2) for t in qkv], dim=-1)


def attended(
    layers: AttentionLayers, qkv: Sequence[Tensor], positions: Tensor | None = None, chunks: Sequence[int] = ()
) -> Tensor:
    """What the layer's attention gives, [B H T D]; in chunks through a cache where `chunks` are given."""
    x, heads, head_dim = joined(*qkv), layers.dims.heads, layers.dims.head_dim
    with torch.no_grad():
        if chunks:
            cache = layers.new_cache(x.shape[0])
            out = torch.cat(
                [
                    layers(
                        part, cache=cache, positions=None if positions is None else positions[:, start : start + len_]
                    )
                    for part, start, len_ in _cut(x, chunks)
                ],
                dim=1,
            )
        else:
            out = layers(x, positions=positions)
    return (out - x)[..., : heads * head_dim].unflatten(-1, (heads, head_dim)).transpose(1, 2)


def _cut(x: Tensor, chunks: Sequence[int]):
    if sum(chunks) != x.shape[1]:
        raise ValueError(f"chunks {chunks} do not make {x.shape[1]} tokens")
    start = 0
    for length in chunks:
        yield x[:, start : start + length], start, length
        start += length


def naive(qkv: Sequence[Tensor], logits: Logits, causal: bool = True) -> Tensor:
    """[B H T D]: softmax of `logits` over the visible keys times the values, one number after the other."""
    q, k, v = (t.tolist() for t in qkv)
    out = []
    for b in range(len(q)):
        rows = []
        for h in range(len(q[0])):
            g = h // (len(q[0]) // len(k[0]))
            rows.append([_mean(q[b][h][m], k[b][g], v[b][g], logits, causal, m, h, b) for m in range(len(q[0][0]))])
        out.append(rows)
    return torch.tensor(out, dtype=torch.float64)


def _mean(query: Row, keys: list[Row], values: list[Row], logits: Logits, causal: bool, m: int, h: int, b: int) -> Row:
    seen = [n for n in range(len(keys)) if n <= m or not causal]
    scores = logits(query, [keys[n] for n in seen], seen, m, h, b)
    weights = [math.exp(s - max(scores)) for s in scores]
    total = math.fsum(weights)
    return [
        math.fsum(w * values[n][c] for w, n in zip(weights, seen, strict=True)) / total for c in range(len(values[0]))
    ]


def pairwise(logit: Pair, positions: Tensor | None = None) -> Logits:
    """Logits that depend on one query, one key and their positions [B T] (or indices) at a time."""
    at = None if positions is None else positions.tolist()

    def logits(query: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        where = range(max(m, *seen, 0) + 1) if at is None else at[b]
        return [logit(query, key, where[m], where[n], h) for key, n in zip(keys, seen, strict=True)]

    return logits


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; both must be finite."""
    if not (found.isfinite().all() and expected.isfinite().all()):
        raise AssertionError("not finite")
    return (found.double() - expected.double()).abs().max().item()
