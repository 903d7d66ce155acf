"""The position schemes of a config, each built as the model builds it, with the lengths to plot.

T positions, A position axes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from x_positional.config.layers import LayersConfig
from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig


@dataclass(frozen=True)
class Probe:
    """A scheme to measure, and the position axis to measure it along."""

    scheme: PositionScheme
    dims: Dims
    axis: int | None = None
    """The axis that positions vary along, the others being 0; None varies all axes together."""

    def on_axes(self, positions: Tensor) -> Tensor:
        """[T] -> [1 T], or [1 T A] for a scheme of several axes."""
        axes = self.scheme.max_axes
        if axes == 1:
            return positions[None]
        varies = torch.ones(axes, dtype=positions.dtype)
        if self.axis is not None:
            varies = torch.zeros_like(varies).index_fill(0, torch.tensor(self.axis), 1)
        return (positions[:, None] * varies)[None]


@dataclass(frozen=True)
class PlottedScheme:
    """A scheme along one axis."""

    name: str
    """Prefix of its file names."""
    config: SchemeConfig
    probe: Probe
    unscaled: Probe | None
    """The same scheme without RoPE scaling; None if it has none."""
    max_seq_len: int
    """The context length of the model."""
    window: int | None = None
    """The attention window of its layers; None for full attention."""

    @property
    def scheme(self) -> PositionScheme:
        return self.probe.scheme

    @property
    def dims(self) -> Dims:
        return self.probe.dims

    @property
    def trained(self) -> int:
        """The trained length: that of the RoPE scaling if it specifies one, otherwise max_seq_len."""
        return self.config.trained_length() or self.max_seq_len

    @property
    def horizon(self) -> int:
        """The last position to plot: four times the trained length, at least max_seq_len, within the limit of the scheme."""
        far = max(4 * self.trained, self.max_seq_len)
        return far if self.scheme.limit is None else min(far, self.scheme.limit - 1)

    @property
    def marks(self) -> list[tuple[int, str]]:
        """Lengths to mark in plots, and their labels."""
        if self.unscaled is None:
            return [(self.max_seq_len, f"trained length {self.max_seq_len}")]
        known = self.config.trained_length()
        marks = [] if known is None else [(known, f"trained length {known}")]
        return marks if known == self.max_seq_len else [*marks, (self.max_seq_len, f"max_seq_len {self.max_seq_len}")]

    @property
    def learned_note(self) -> str:
        """A sentence for captions if the scheme has learned parameters, otherwise ""."""
        if not any(True for _ in self.scheme.parameters()):
            return ""
        return " The learned parameters are at their initial values."

    def along_axes(self) -> list["PlottedScheme"]:
        """This scheme along all axes together, then along each axis if there are several."""
        axes = self.scheme.max_axes
        return [self] if axes == 1 else [self, *(self._along(axis) for axis in range(axes))]

    def _along(self, axis: int) -> "PlottedScheme":
        unscaled = None if self.unscaled is None else replace(self.unscaled, axis=axis)
        return replace(
            self, name=f"{self.name}-axis-{axis + 1}", probe=replace(self.probe, axis=axis), unscaled=unscaled
        )


def _distinct(layers: LayersConfig, max_seq_len: int) -> list[tuple[SchemeConfig, int | None]]:
    """Every distinct pair of scheme and attention window, in the order of the layers."""
    found: list[tuple[SchemeConfig, int | None]] = []
    for kind in layers.resolved_layers(max_seq_len):
        found += [(part, kind.window) for part in kind.parts if (part, kind.window) not in found]
    return found


def plotted_schemes(layers: LayersConfig, max_seq_len: int, embed_dim: int | None = None) -> list[PlottedScheme]:
    """The schemes of a stack, with the same initial parameters at every call.

    A scheme with parameters per layer is built for one layer.
    """
    dims = layers.dims(max_seq_len, embed_dim)
    seen: list[str] = []
    schemes: list[PlottedScheme] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for config, window in _distinct(layers, max_seq_len):
            seen.append(config.label)
            count, plain = seen.count(seen[-1]), config.unstretched()
            plotted = PlottedScheme(
                name=seen[-1] if count == 1 else f"{seen[-1]}-{count}",
                config=config,
                probe=Probe(config.build(dims), dims),
                unscaled=None if plain is None else Probe(plain.build(dims), dims),
                max_seq_len=max_seq_len,
                window=window,
            )
            schemes += plotted.along_axes()
    return schemes
