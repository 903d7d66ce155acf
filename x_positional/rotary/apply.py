"""Functions of the drop-in that rotate channel pairs (2i, 2i+1) of any tensor by given angles.

B batch, T tokens, D channels, R = 2F rotated channels, F angles, P learned rotations per token, K frequency ranges.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from x_positional.errors import ArgumentError
from x_positional.schemes.rotary.rotation import rotate_pairs


def widen(x: Tensor) -> Tensor:
    """The tensor in float64 if it is float64, else in float32."""
    return x.to(wider(x.dtype))


def wider(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every other dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def broadcat(tensors: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Broadcast tensors to one shape and concatenate them along `dim`."""
    return torch.cat(torch.broadcast_tensors(*tensors), dim=dim)


def apply_rotary_emb(
    freqs: Tensor,
    t: Tensor,
    start_index: int = 0,
    scale: float | Tensor = 1.0,
    seq_dim: int = -2,
    freqs_seq_dim: int | None = None,
) -> Tensor:
    """Rotate channels start_index .. start_index+R-1 of t by freqs; the other channels are unchanged.

    Su et al. 2021, arXiv:2104.09864, eq. 34. Computed in float32, or float64 for float64 t.

    Args:
        freqs: angles in radians, [T' R] or any shape that broadcasts with t. Each angle appears twice, as in the output of
            `RotaryEmbedding`. If freqs has more rows than t has tokens, the last rows are used: of 2-dim freqs, of 3-dim
            freqs with 3-dim t, or along `freqs_seq_dim` if that is given.
        t: [... D].
        start_index: first rotated channel.
        scale: factor on the rotated channels; a tensor broadcasts with freqs.
        seq_dim: token axis of t; the rows of 2-dim freqs belong to it.
        freqs_seq_dim: token axis of freqs.

    Returns:
        A tensor with the shape and dtype of t.

    Raises:
        ArgumentError: if widths or numbers of rows do not match.
    """
    freqs = align_rows(widen(freqs), t, seq_dim, freqs_seq_dim)
    return rotate(t, freqs.cos(), signed(freqs.sin()), start_index, scale)


def apply_learned_rotations(
    rotations: Tensor, t: Tensor, start_index: int = 0, freq_ranges: Tensor | None = None
) -> Tensor:
    """Rotate channel pairs of t by predicted angles.

    Angles are multiplied by freq_ranges in float32 or float64, so half-precision rotations stay precise in large ranges.

    Args:
        rotations: [... T P] radians.
        t: [... T D].
        start_index: first rotated channel.
        freq_ranges: [K] factors. Each rotation then rotates K pairs, by the rotation times each factor; the K pairs of a
            rotation are adjacent.

    Returns:
        A tensor with the shape and dtype of t; P pairs are rotated, or P * K with freq_ranges.
    """
    if freq_ranges is not None:
        rotations = (rotations[..., None] * widen(freq_ranges)).flatten(-2)
    return apply_rotary_emb(rotations.repeat_interleave(2, dim=-1), t, start_index=start_index)


def align_rows(rows: Tensor, t: Tensor, seq_dim: int, rows_dim: int | None = None) -> Tensor:
    """rows [T' R] cut to the last T rows and reshaped so that they broadcast along `seq_dim` of t.

    Rows of other shapes are treated as `apply_rotary_emb` documents.
    """
    axis = negative_dim(seq_dim, t)
    if rows_dim is None and rows.ndim == 3 and t.ndim == 3:
        rows_dim = axis
    if rows_dim is None and rows.ndim != 2:
        return rows
    rows_dim = 0 if rows_dim is None else rows_dim
    tokens, given = t.shape[axis], rows.shape[rows_dim]
    if given not in (1, tokens) and given < tokens:
        raise ArgumentError(
            f"freqs has {given} rows for {tokens} tokens (axis {seq_dim} of shape {tuple(t.shape)}): it needs one row per "
            "token, or a single row. Check seq_dim and freqs_seq_dim."
        )
    if given > tokens:
        rows = rows.narrow(rows_dim, given - tokens, tokens)
    return torch.unflatten(rows, 0, (-1, *[1] * (-axis - 2))) if rows.ndim == 2 else rows


def negative_dim(seq_dim: int, t: Tensor) -> int:
    """`seq_dim` counted from the end. Raises ArgumentError if it is not a token axis of t."""
    axis = seq_dim - t.ndim if seq_dim >= 0 else seq_dim
    if not -t.ndim <= axis <= -2:
        raise ArgumentError(
            f"seq_dim={seq_dim} is not a token axis of a tensor of shape {tuple(t.shape)}: the last axis holds channels. "
            f"Use {-t.ndim} .. -2, or 0 .. {t.ndim - 2}."
        )
    return axis


def signed(sin: Tensor) -> Tensor:
    """[... R] sines, each twice -> (-sin, sin) for each pair. Raises ArgumentError for an odd R."""
    if sin.shape[-1] % 2:
        raise ArgumentError(
            f"freqs rotates {sin.shape[-1]} channels; the number must be even, as channels rotate in pairs."
        )
    return torch.stack((-sin[..., ::2], sin[..., 1::2]), dim=-1).flatten(-2)


def rotate(t: Tensor, cos: Tensor, sin: Tensor, start: int = 0, scale: float | Tensor = 1.0) -> Tensor:
    """(x, y) -> scale * (x cos - y sin, x sin + y cos) for the pairs of channels start .. start+R-1 of t [... D].

    Args:
        t: [... D].
        cos: [... R], broadcasts with t.
        sin: [... R], `signed`.
        start: first rotated channel.
        scale: factor on the rotated channels.

    Returns:
        A tensor with the shape and dtype of t.

    Raises:
        ArgumentError: if t does not have the channels start .. start+R-1.
    """
    width = cos.shape[-1]
    if start < 0 or start + width > t.shape[-1]:
        raise ArgumentError(
            f"freqs rotates {width} channels from start_index={start}, but t has {t.shape[-1]} channels. Use a "
            "smaller dim, fewer axes or another start_index."
        )
    if isinstance(scale, Tensor):
        scale = scale.to(wider(scale.dtype))
    if isinstance(scale, Tensor) or scale != 1:
        cos, sin = cos * scale, sin * scale
    dtype = wider(t.dtype)
    rotated = rotate_pairs(t[..., start:] if start else t, cos.to(dtype), sin.to(dtype), interleaved=True)
    return torch.cat((t[..., :start], rotated), dim=-1) if start else rotated
