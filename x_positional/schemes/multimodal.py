"""Positions of text with images and video, for RoPE with sections: time, height and width of every token.

B batch, T tokens, N tokens of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from x_positional.errors import ArgumentError
from x_positional.schemes.base import NO_TOKEN


def _at_least(least: int, **sizes: int) -> None:
    wrong = {name: size for name, size in sizes.items() if not isinstance(size, int) or size < least}
    if wrong:
        raise ArgumentError(
            f"{', '.join(f'{n}={s!r}' for n, s in wrong.items())}: expected an integer of at least {least}."
        )


@dataclass(frozen=True)
class Text:
    """Tokens of text."""

    length: int
    """How many; 0 is allowed."""

    def __post_init__(self) -> None:
        _at_least(0, length=self.length)


@dataclass(frozen=True)
class Image:
    """height * width tokens, row by row: the patches that the model sees, after any merging."""

    height: int
    """Rows of tokens."""
    width: int
    """Tokens per row."""

    def __post_init__(self) -> None:
        _at_least(1, height=self.height, width=self.width)


@dataclass(frozen=True)
class Video:
    """frames * height * width tokens, frame by frame."""

    frames: int
    """Frames of tokens."""
    height: int
    """Rows of tokens in a frame."""
    width: int
    """Tokens per row."""
    seconds_per_grid: float | None = None
    """Seconds between two frames, for models whose time positions follow the clock (Qwen2.5-VL)."""

    def __post_init__(self) -> None:
        _at_least(1, frames=self.frames, height=self.height, width=self.width)
        if self.seconds_per_grid is not None and not self.seconds_per_grid > 0:
            raise ArgumentError(f"seconds_per_grid={self.seconds_per_grid!r} must be above 0.")


Segment: TypeAlias = Text | Image | Video


@dataclass(frozen=True)
class MultimodalPositions:
    """The result of `multimodal_positions`."""

    positions: Tensor
    """[B T 3] int64, time, height and width; -1 on every axis for padding."""
    offsets: Tensor
    """[B] int64. A token decoded later, with index n in its row (counted without padding, from 0), has position
    n + offset on every axis: pass `index + offsets[:, None]`, [B T]."""


def multimodal_positions(
    rows: Sequence[Sequence[Segment]],
    *,
    layout: Literal["grid", "diagonal"] = "grid",
    delta: int | None = None,
    tokens_per_second: float | None = None,
    padding: Literal["right", "left"] = "right",
    length: int | None = None,
    device: torch.device | str | None = None,
) -> MultimodalPositions:
    """Positions of a batch of text, images and videos.

    Positions of text increase by one per token and are the same on all axes.

    layout="grid" (M-RoPE: Wang et al. 2024, arXiv:2409.12191, section 2.1): the position of an image or video token is the
    start of its segment plus its frame, row and column. The next segment starts one after the largest position on any axis.

    layout="diagonal" (VideoRoPE: Wei et al. 2025, arXiv:2502.05173, section 4): frame k is `delta` * k after the start of
    its segment, and rows and columns are centred on the time of their frame. The next segment starts one after the time of
    the last frame. If a row would have negative positions, all of it is shifted up, which changes no distance.

    Args:
        rows: the segments of each row, such as [Text(5), Image(8, 6), Text(9)].
        layout: how images and videos are placed.
        delta: positions between two frames, for layout="diagonal"; None is 2.
        tokens_per_second: time positions per second: frame k of a video is k * seconds_per_grid * tokens_per_second after
            its start, rounded down in float32 as in the published models (Qwen2.5-VL: Bai et al. 2025, arXiv:2502.13923,
            section 2.1.2). None is one position per frame.
        padding: the side on which shorter rows are padded.
        length: the padded length; None is the longest row.
        device: of the result.

    Raises:
        ArgumentError: for a row longer than `length`, and for settings that cannot be combined.
    """
    problems = _problems(rows, layout, delta, tokens_per_second)
    if problems:
        raise ArgumentError(" ".join(problems))
    placed = [_place(row, layout == "diagonal", 2 if delta is None else delta, tokens_per_second) for row in rows]
    longest = max((len(at) for at, _ in placed), default=0)
    if length is not None and longest > length:
        raise ArgumentError(
            f"length={length} is shorter than the longest row, which has {longest} tokens. Raise length, or remove it."
        )
    filled = []
    for at, _ in placed:
        rest = (longest if length is None else length) - len(at)
        filled.append(F.pad(at, (0, 0, rest, 0) if padding == "left" else (0, 0, 0, rest), value=NO_TOKEN))
    offsets = torch.tensor([after - len(at) for at, after in placed], dtype=torch.long)
    return MultimodalPositions(torch.stack(filled).to(device), offsets.to(device))


def _problems(
    rows: Sequence[Sequence[Segment]], layout: str, delta: int | None, tokens_per_second: float | None
) -> list[str]:
    found = []
    if not rows:
        found.append("rows is empty. Pass a list of segments for each row.")
    if layout == "grid" and delta is not None:
        found.append(f"delta={delta} needs layout='diagonal'. Remove it, or use that layout.")
    if delta is not None and not (isinstance(delta, int) and delta > 0):
        found.append(f"delta={delta} must be an integer above 0.")
    timed = {s.seconds_per_grid is not None for row in rows for s in row if isinstance(s, Video)}
    if tokens_per_second is None and True in timed:
        found.append("seconds_per_grid needs tokens_per_second, the time positions per second. Set it.")
    if tokens_per_second is not None and not tokens_per_second > 0:
        found.append(f"tokens_per_second={tokens_per_second:g} must be above 0.")
    if tokens_per_second is not None and False in timed:
        found.append("tokens_per_second needs seconds_per_grid on every video. Set it.")
    return found


def _place(row: Sequence[Segment], diagonal: bool, delta: int, tokens_per_second: float | None) -> tuple[Tensor, int]:
    """[N 3], and the next position after the row."""
    start, parts = 0, [torch.empty(0, 3, dtype=torch.long)]
    for segment in row:
        if isinstance(segment, Text):
            part = torch.arange(segment.length)[:, None].expand(-1, 3)
        else:
            part = _grid(segment, diagonal, delta, tokens_per_second)
        if len(part):
            parts.append(part + start)
            start += int((part[:, 0] if diagonal else part).max()) + 1
    at = torch.cat(parts)
    lift = max(0, -int(at.min())) if len(at) else 0
    return at + lift, start + lift


def _grid(segment: Image | Video, diagonal: bool, delta: int, tokens_per_second: float | None) -> Tensor:
    """[N 3], the positions of an image or a video that starts at 0."""
    times = torch.arange(segment.frames) if isinstance(segment, Video) else torch.zeros(1, dtype=torch.long)
    if isinstance(segment, Video) and segment.seconds_per_grid is not None and tokens_per_second is not None:
        times = (times * (segment.seconds_per_grid * tokens_per_second)).long()
    height, width = torch.arange(segment.height), torch.arange(segment.width)
    if diagonal:
        times, height, width = times * delta, height - (segment.height - 1) // 2, width - (segment.width - 1) // 2
    at = rearrange(list(torch.meshgrid(times, height, width, indexing="ij")), "a t h w -> (t h w) a")
    return torch.cat([at[:, :1], at[:, 1:] + at[:, :1]], -1) if diagonal else at
