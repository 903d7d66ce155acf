"""What is drawn: each position scheme of a config by itself, built as the model builds it, with the lengths that matter.

T positions, A position axes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from x_positional.config.layers import LayersConfig
from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig


@dataclass(frozen=True)
class Subject:
    """A scheme, and the axis along which positions move while the others stay at 0; None moves all of them alike."""

    scheme: PositionScheme
    dims: Dims
    axis: int | None = None

    def place(self, positions: Tensor) -> Tensor:
        """[T] -> [1 T], or [1 T A] for a scheme of several axes."""
        axes = self.scheme.max_axes
        if axes == 1:
            return positions[None]
        moves = torch.ones(axes, dtype=positions.dtype)
        if self.axis is not None:
            moves = torch.zeros_like(moves).index_fill(0, torch.tensor(self.axis), 1)
        return (positions[:, None] * moves)[None]


@dataclass(frozen=True)
class Part:
    """One scheme along one axis. before: the same before its frequencies were stretched, None where they are not.
    max_seq_len: the model's. window: of its layer, None for all keys."""

    name: str
    config: SchemeConfig
    subject: Subject
    before: Subject | None
    max_seq_len: int
    window: int | None = None

    @property
    def scheme(self) -> PositionScheme:
        return self.subject.scheme

    @property
    def dims(self) -> Dims:
        return self.subject.dims

    @property
    def trained(self) -> int:
        """The trained length: of the config before stretching where it says so, otherwise max_seq_len."""
        return self.config.trained_length() or self.max_seq_len

    @property
    def horizon(self) -> int:
        """The last position drawn: four times the trained length, at least max_seq_len, at most what the scheme has."""
        far = max(4 * self.trained, self.max_seq_len)
        return far if self.scheme.limit is None else min(far, self.scheme.limit - 1)

    @property
    def marks(self) -> list[tuple[int, str]]:
        """Lengths to mark, each with its name."""
        if self.before is None:
            return [(self.max_seq_len, f"trained length {self.max_seq_len}")]
        known = self.config.trained_length()
        marks = [] if known is None else [(known, f"trained length {known}")]
        return marks if known == self.max_seq_len else [*marks, (self.max_seq_len, f"max_seq_len {self.max_seq_len}")]

    @property
    def learned(self) -> str:
        """A sentence where training will change the picture; "" where it cannot."""
        if not any(True for _ in self.scheme.parameters()):
            return ""
        return " The parameters are those at the start of training; they are learned."

    def along_axes(self) -> list["Part"]:
        """This part, and for a scheme of several axes one part more for each axis."""
        axes = self.scheme.max_axes
        return [self] if axes == 1 else [self, *(self._along(axis) for axis in range(axes))]

    def _along(self, axis: int) -> "Part":
        before = None if self.before is None else replace(self.before, axis=axis)
        return replace(
            self, name=f"{self.name}-axis-{axis + 1}", subject=replace(self.subject, axis=axis), before=before
        )


def _distinct(layers: LayersConfig, max_seq_len: int) -> list[tuple[SchemeConfig, int | None]]:
    """Each scheme once with each window that it runs under, in the order of the layers."""
    found: list[tuple[SchemeConfig, int | None]] = []
    for kind in layers.resolved_layers(max_seq_len):
        found += [(part, kind.window) for part in kind.parts if (part, kind.window) not in found]
    return found


def parts_of(layers: LayersConfig, max_seq_len: int, embed_dim: int | None = None) -> list[Part]:
    """The schemes of a stack, parameters as at the start of training and the same at every call; of a scheme with
    parameters for each layer, one layer's."""
    dims = layers.dims(max_seq_len, embed_dim)
    seen: list[str] = []
    parts: list[Part] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for config, window in _distinct(layers, max_seq_len):
            seen.append(config.label)
            twin, plain = seen.count(seen[-1]), config.unstretched()
            part = Part(
                name=seen[-1] if twin == 1 else f"{seen[-1]}-{twin}",
                config=config,
                subject=Subject(config.build(dims), dims),
                before=None if plain is None else Subject(plain.build(dims), dims),
                max_seq_len=max_seq_len,
                window=window,
            )
            parts += part.along_axes()
    return parts
