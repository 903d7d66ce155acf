"""flash_attn_with_rotary against attention written out pair by pair, and its mask and head forms."""

import math

import pytest
import torch
from torch import Tensor

from x_positional.rotary import RotaryEmbedding
from x_positional.rotary.flash_attn_with_rotary import flash_attn_with_rotary

B, H, T, D, R = 2, 4, 7, 10, 6


def written_out(
    q: Tensor, k: Tensor, v: Tensor, place: list[float | None], freqs: list[float], seen: Tensor, added: Tensor
) -> Tensor:
    """[H T D], [H T D] -> [H T D] in float64. place: position of each token or None; seen, added: [T T]."""

    def rotated(x: Tensor, at: float) -> Tensor:
        out = x.clone()
        for i, freq in enumerate(freqs):
            c, s = math.cos(at * freq), math.sin(at * freq)
            out[2 * i], out[2 * i + 1] = x[2 * i] * c - x[2 * i + 1] * s, x[2 * i] * s + x[2 * i + 1] * c
        return out

    out = torch.zeros_like(q)
    for h in range(len(q)):
        for m, at in enumerate(place):
            scores = torch.full((len(place),), -math.inf, dtype=torch.float64)
            for n, there in enumerate(place):
                if seen[m, n]:
                    both = at is not None and there is not None
                    a, b = (rotated(q[h, m], at), rotated(k[h, n], there)) if both else (q[h, m], k[h, n])
                    scores[n] = (a @ b) / math.sqrt(q.shape[-1]) + added[m, n]
            out[h, m] = scores.softmax(0) @ v[h]
    return out


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q [B H T D], k and v [B 2 T D] and a float [B T T], of a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(B, heads, T, D, generator=generator) * 2 for heads in (H, 2, 2))
    return q, k, v, torch.randn(B, T, T, generator=generator)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("mask", ["none", "keys", "pairs", "added", "heads"])
@pytest.mark.parametrize("placed", ["all", "some", "cos and sin"])
def test_attention(inputs: tuple[Tensor, ...], is_causal: bool, mask: str, placed: str) -> None:
    q, k, v, noise = inputs
    rotary = RotaryEmbedding(R, theta=20.0)
    positions = torch.arange(T) * 1.5
    keep = (noise > -0.8) | torch.eye(T, dtype=torch.bool)
    given = {"none": None, "keys": keep[:, 0] | True, "pairs": keep, "added": noise, "heads": keep[:, None]}[mask]
    if mask == "keys":
        given[:, 3] = False
    arguments: dict = {"rotary_pos_emb": rotary(positions)}
    place: list[float | None] = positions.tolist()
    if placed != "all":
        place = [None, None, *positions.tolist()[2:]]
    if placed == "some":
        arguments = {"rotary_pos_emb": rotary(positions[2:]), "rotary_pos_emb_indices": torch.arange(T - 2) + 2}
    if placed == "cos and sin":
        angle = rotary(positions)
        arguments = {"cos": angle.cos(), "sin": angle.sin(), "pos_mask": torch.arange(T) >= 2}

    got = flash_attn_with_rotary(q, k, v, attn_mask=given, is_causal=is_causal, **arguments)

    freqs = [20.0 ** (-2 * i / R) for i in range(R // 2)]
    for b in range(B):
        seen = torch.ones(T, T, dtype=torch.bool)
        if given is not None and given.dtype == torch.bool:
            seen = given[b].reshape(-1, T).expand(T, T)
        seen = seen.tril() if is_causal else seen
        added = noise[b] if mask == "added" else torch.zeros(T, T)
        heads = [x[b].double().repeat_interleave(H // len(x[b]), 0) for x in (q, k, v)]
        right = written_out(*heads, place, freqs, seen, added.double())
        torch.testing.assert_close(got[b].double(), right, rtol=1e-5, atol=1e-5)


def test_angles_of_each_row_and_of_each_head(inputs: tuple[Tensor, ...]) -> None:
    q, k, v, noise = inputs
    freqs = RotaryEmbedding(R)(noise[:, 0] * 5)
    rows = flash_attn_with_rotary(q, k, v, rotary_pos_emb=freqs)
    for b in range(B):
        alone = flash_attn_with_rotary(q[b : b + 1], k[b : b + 1], v[b : b + 1], rotary_pos_emb=freqs[b])
        torch.testing.assert_close(rows[b : b + 1], alone, rtol=1e-5, atol=1e-5)
    assert (rows - flash_attn_with_rotary(q, k, v, rotary_pos_emb=freqs[0])).abs().max() > 0.1
    by_head = torch.stack([freqs[0] * h for h in range(H)])[None]
    heads = flash_attn_with_rotary(q, k, v, rotary_pos_emb=by_head)
    for h in range(H):
        g = h // 2
        alone = flash_attn_with_rotary(q[:, h, None], k[:, g, None], v[:, g, None], rotary_pos_emb=freqs[0] * h)
        torch.testing.assert_close(heads[:, h, None], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("indices", [None, torch.arange(2000) + 2])
def test_bfloat16_keeps_far_positions(indices: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = 2000 if indices is None else 2002
    q, k, v = (torch.randn(1, 1, tokens, 16, generator=generator) * size for size in (3, 3, 1))
    freqs = RotaryEmbedding(16)(torch.arange(2000))
    call = {"rotary_pos_emb": freqs, "rotary_pos_emb_indices": indices}
    q, k, v = (x.bfloat16() for x in (q, k, v))
    right = flash_attn_with_rotary(q.float(), k.float(), v.float(), **call)
    got = flash_attn_with_rotary(q, k, v, **call)
    assert got.dtype == torch.bfloat16
    error = (got.float() - right).norm(dim=-1) / right.norm(dim=-1)
    assert error[..., -500:].mean() < 0.05
    assert error[..., -500:].mean() < 2 * error[..., 100:250].mean()


def test_refuses_with_a_reason(inputs: tuple[Tensor, ...]) -> None:
    q, k, v, _ = inputs
    freqs = RotaryEmbedding(R)(torch.arange(T))
    with pytest.raises(ValueError, match="pass rotary_pos_emb, or cos and sin"):
        flash_attn_with_rotary(q, k, v, cos=freqs.cos())
    with pytest.raises(ValueError, match="7 rows of angles for 1 queries and 7 keys"):
        flash_attn_with_rotary(q[:, :, -1:], k, v, rotary_pos_emb=freqs)
