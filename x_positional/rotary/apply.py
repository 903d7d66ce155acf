"""Turning channel pairs (2i, 2i+1) of any tensor by given angles: the functions of the drop-in.

B batch, T tokens, D channels, R = 2F rotated channels, F angles, P learned rotations per token, K frequency ranges.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """At least float32: half-precision and integer tensors become float32."""
    return x.to(wider(x.dtype))


def wider(dtype: torch.dtype) -> torch.dtype:
    """float32 for everything but float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def broadcat(tensors: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Broadcasts tensors to one shape, then joins them along `dim`."""
    return torch.cat(torch.broadcast_tensors(*tensors), dim=dim)


def apply_rotary_emb(
    freqs: Tensor,
    t: Tensor,
    start_index: int = 0,
    scale: float | Tensor = 1.0,
    seq_dim: int = -2,
    freqs_seq_dim: int | None = None,
) -> Tensor:
    """Turns channels start_index .. start_index+R-1 of t [... D] by freqs [... R] radians; the others pass.

    freqs: [T' R] or anything that broadcasts with t; each angle stands twice, as `RotaryEmbedding` returns it. Where
    freqs has more rows than t has tokens, the last rows are taken: of 2-dim freqs, of 3-dim freqs for 3-dim t, or
    along `freqs_seq_dim` where that is given. Rows of 2-dim freqs lie along `seq_dim` of t.
    scale: multiplies what turns; a tensor broadcasts with freqs.

    Returns t's shape and dtype; the arithmetic is in float32 at least. Raises ValueError where widths or rows do not
    fit. Su et al. 2021, arXiv:2104.09864, eq. 34.
    """
    freqs = lay_rows(widen(freqs), t, seq_dim, freqs_seq_dim)
    return turn(t, freqs.cos(), freqs.sin(), start_index, scale)


def apply_learned_rotations(
    rotations: Tensor, t: Tensor, start_index: int = 0, freq_ranges: Tensor | None = None
) -> Tensor:
    """Turns pairs of t [... T D] by rotations [... T P] radians, or by each of them times each of freq_ranges [K].

    P pairs turn, or P*K with freq_ranges (rotation-major). Angles are multiplied in float32 at least, so rotations
    that a half-precision layer predicts keep their meaning under large ranges. Returns t's shape and dtype.
    """
    if freq_ranges is not None:
        rotations = (rotations[..., None] * widen(freq_ranges)).flatten(-2)
    return apply_rotary_emb(rotations.repeat_interleave(2, dim=-1), t, start_index=start_index)


def lay_rows(rows: Tensor, t: Tensor, seq_dim: int, rows_dim: int | None = None) -> Tensor:
    """rows [T' R] with its T' along `seq_dim` of t, cut to the last T; other shapes as `apply_rotary_emb` says."""
    axis = negative_dim(seq_dim, t)
    if rows_dim is None and rows.ndim == 3 and t.ndim == 3:
        rows_dim = axis
    if rows_dim is None and rows.ndim != 2:
        return rows
    rows_dim = 0 if rows_dim is None else rows_dim
    tokens, given = t.shape[axis], rows.shape[rows_dim]
    if given not in (1, tokens) and given < tokens:
        raise ValueError(
            f"freqs has {given} rows for {tokens} tokens (axis {seq_dim} of {tuple(t.shape)}): it needs one row a token, "
            "or one for all. Check seq_dim and freqs_seq_dim."
        )
    if given > tokens:
        rows = rows.narrow(rows_dim, given - tokens, tokens)
    return rows.unflatten(0, (-1, *[1] * (-axis - 2))) if rows.ndim == 2 else rows


def negative_dim(seq_dim: int, t: Tensor) -> int:
    """`seq_dim` counted from the end, so that rows align by broadcasting."""
    axis = seq_dim - t.ndim if seq_dim >= 0 else seq_dim
    if not -t.ndim <= axis <= -2:
        raise ValueError(
            f"seq_dim={seq_dim} is no token axis of a tensor of shape {tuple(t.shape)}: channels are the last axis, "
            f"so give {-t.ndim} .. -2, or 0 .. {t.ndim - 2}."
        )
    return axis


def turn(t: Tensor, cos: Tensor, sin: Tensor, start: int = 0, scale: float | Tensor = 1.0) -> Tensor:
    """(x, y) -> scale * (x cos - y sin, x sin + y cos) for pairs of channels start .. start+R-1 of t [... D].

    cos, sin: [... R], broadcast with t. Returns t's dtype.
    """
    width = cos.shape[-1]
    if width % 2 or start < 0 or start + width > t.shape[-1]:
        raise ValueError(
            f"freqs turns {width} channels from start_index={start}, but t has {t.shape[-1]}: channels turn in pairs, "
            "and all of them must be there. Use a smaller dim, or fewer axes."
        )
    dtype = wider(t.dtype)
    if isinstance(scale, Tensor):
        scale = scale.to(wider(scale.dtype))
    if isinstance(scale, Tensor) or scale != 1:
        cos, sin = cos * scale, sin * scale
    cos, sin = cos.to(dtype), sin.to(dtype)
    middle = t[..., start : start + width]
    x, y = middle.unflatten(-1, (-1, 2)).unbind(-1)
    turned = (middle * cos + torch.stack((-y, x), dim=-1).flatten(-2) * sin).to(t.dtype)
    if width == t.shape[-1]:
        return turned
    return torch.cat((t[..., :start], turned, t[..., start + width :]), dim=-1)
