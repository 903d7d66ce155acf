"""Attention that rotates queries and keys first, on PyTorch's fused kernels.

B batch, H heads, G key/value heads, T tokens, D head dim, R rotated channels, N tokens with a position.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from x_positional.errors import ArgumentError
from x_positional.rotary.apply import rotate, signed, widen


def flash_attn_with_rotary(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pos_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = True,
    rotary_pos_emb: Tensor | None = None,
    rotary_pos_emb_indices: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention with rotary embeddings.

    The score of two tokens uses the rotated q and k where both have a position, and the unrotated q and k otherwise.

    Args:
        q: [B H T D].
        k: [B G T D].
        v: [B G T D].
        cos: cosines of the angles, with `sin` an alternative to `rotary_pos_emb`.
        sin: sines of the angles.
        pos_mask: [T], True where a token has a position; default all.
        attn_mask: [B T], [B T T] or [B|1 H|1 T T]: bool with True = keep, or float added to the scores.
        is_causal: token t attends to tokens 0 .. t.
        rotary_pos_emb: angles [T R], [B T R] or [B|1 H|1 T R], as `RotaryEmbedding` returns them.
        rotary_pos_emb_indices: [N], the tokens that the N rows of angles belong to; other tokens have no position.

    Returns:
        [B H T D] in q's dtype.

    Raises:
        ArgumentError: without angles, or if the number of their rows is not T.
    """
    tokens = q.shape[-2]
    if rotary_pos_emb is not None:
        angle = widen(rotary_pos_emb.to(q.device))
        if rotary_pos_emb_indices is not None:
            where = rotary_pos_emb_indices.to(q.device)
            angle = angle.flatten(0, -2)
            angle = angle.new_zeros(tokens, angle.shape[-1]).index_copy(0, where, angle)
            pos_mask = torch.zeros(tokens, device=q.device, dtype=torch.bool).index_fill(0, where, True)
        angle = angle.unsqueeze(1) if angle.ndim == 3 else angle
        cos, sin = angle.cos(), angle.sin()
    if cos is None or sin is None:
        raise ArgumentError("no angles: pass rotary_pos_emb, or cos and sin.")
    if not cos.shape[-2] == tokens == k.shape[-2]:
        raise ArgumentError(
            f"{cos.shape[-2]} rows of angles for {tokens} queries and {k.shape[-2]} keys: all three must be equal. "
            "With cached keys, use rotate_queries_with_cached_keys and scaled_dot_product_attention."
        )
    rotated_q, rotated_k = (rotate(x, cos, signed(sin)) for x in (q, _match_heads(k, q, cos)))
    if pos_mask is not None:
        rotated_q, rotated_k = _where_both(rotated_q, rotated_k, q, _match_heads(k, q, cos), pos_mask)
    mask = _mask(attn_mask, tokens, is_causal, q)
    return F.scaled_dot_product_attention(
        rotated_q,
        rotated_k,
        _match_heads(v, q, cos),
        attn_mask=mask,
        is_causal=is_causal and mask is None,
        scale=q.shape[-1] ** -0.5,
        enable_gqa=True,
    )


def _match_heads(x: Tensor, q: Tensor, cos: Tensor) -> Tensor:
    """[B G T D], repeated to [B H T D] if the angles differ between query heads."""
    per_head = cos.ndim == 4 and cos.shape[1] > 1
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) if per_head and x.shape[1] != q.shape[1] else x


def _where_both(rotated_q: Tensor, rotated_k: Tensor, q: Tensor, k: Tensor, pos_mask: Tensor) -> tuple[Tensor, Tensor]:
    """[... T D] -> [... T 3D] whose scores are rotated where both tokens have a position, and unrotated otherwise.

    The three parts of the score: both have a position; the query has none; the query has one and the key has none.
    """
    has = pos_mask.to(q.dtype)[:, None]
    return (
        torch.cat((rotated_q * has, q * (1 - has), q * has), dim=-1),
        torch.cat((rotated_k * has, k, k * (1 - has)), dim=-1),
    )


def _mask(attn_mask: Tensor | None, tokens: int, is_causal: bool, q: Tensor) -> Tensor | None:
    """attn_mask as [B|1 H|1 T|1 T], combined with the causal mask; None without attn_mask."""
    if attn_mask is None:
        return None
    shapes = {2: (slice(None), None, None), 3: (slice(None), None)}
    mask = attn_mask[shapes.get(attn_mask.ndim, ...)]
    past = torch.ones(tokens, tokens, device=q.device, dtype=torch.bool).tril(0 if is_causal else tokens)
    if mask.dtype == torch.bool:
        return mask & past
    return mask.to(q.dtype).masked_fill(~past, -torch.inf)
