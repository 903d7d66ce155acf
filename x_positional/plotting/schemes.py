"""The position schemes of a config, each built as the model builds it, with the lengths to plot.

T positions, A position axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from x_positional.config.layers import LayersConfig
from x_positional.modules.stack import AttentionLayers
from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.compose import leaves
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
class Stage:
    """Parameters of a model at one time of its training."""

    label: str
    """Suffix of file names: `initial` or `trained`."""
    when: str
    """In words, as in "after 200 steps"."""
    layers: AttentionLayers
    """The layers that own them."""


@dataclass(frozen=True)
class PlottedScheme:
    """A scheme along one axis."""

    section: str
    """Name of the scheme and its axis."""
    config: SchemeConfig
    probe: Probe
    unscaled: Probe | None
    """The same scheme without RoPE scaling; None if it has none."""
    max_seq_len: int
    """The context length of the model."""
    window: int | None = None
    """The attention window of its layers; None for full attention."""
    stage: Stage | None = None
    """Whose learned parameters it has; None for those of a new scheme."""
    others: tuple["PlottedScheme", ...] = ()
    """The same scheme at the other stages, drawn beside it on the same scale."""

    @property
    def name(self) -> str:
        """Prefix of its file names."""
        return self.section if self.stage is None else f"{self.section}-{self.stage.label}"

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
        if self.stage is not None:
            return f" The learned parameters are those {self.stage.when}."
        return " The learned parameters are at their initial values."

    @property
    def beside(self) -> tuple["PlottedScheme", ...]:
        """This scheme at every stage."""
        return (self, *self.others)

    def along_axes(self) -> list["PlottedScheme"]:
        """This scheme along all axes together, then along each axis if there are several."""
        axes = self.scheme.max_axes
        return [self] if axes == 1 else [self, *(self._along(axis) for axis in range(axes))]

    def _along(self, axis: int) -> "PlottedScheme":
        unscaled = None if self.unscaled is None else replace(self.unscaled, axis=axis)
        probe, section = replace(self.probe, axis=axis), f"{self.section}-axis-{axis + 1}"
        return replace(self, section=section, probe=probe, unscaled=unscaled)

    def at(self, stages: Sequence[Stage], layer: int, part: int) -> list["PlottedScheme"]:
        """This scheme with the parameters that it has at each stage, as part of the scheme of a layer."""
        schemes = [leaves(stage.layers.kinds[layer].scheme)[part] for stage in stages]
        staged = [
            replace(self, probe=replace(self.probe, scheme=scheme), stage=stage)
            for scheme, stage in zip(schemes, stages, strict=True)
        ]
        return [replace(own, others=tuple(other for other in staged if other is not own)) for own in staged]


@dataclass(frozen=True)
class _Place:
    """A scheme with its attention window, and the first layer and part of its scheme where it is."""

    config: SchemeConfig
    window: int | None
    layer: int
    part: int


def _distinct(layers: LayersConfig, max_seq_len: int) -> list[_Place]:
    """Every distinct pair of scheme and attention window, in the order of the layers."""
    found: list[_Place] = []
    for layer, kind in enumerate(layers.resolved_layers(max_seq_len)):
        known = [
            one.config for one in found if one.window == kind.window
        ]  # of earlier layers: one may have a scheme twice
        found += [_Place(c, kind.window, layer, part) for part, c in enumerate(kind.parts) if c not in known]
    return found


def plotted_schemes(
    layers: LayersConfig, max_seq_len: int, embed_dim: int | None = None, stages: Sequence[Stage] = ()
) -> list[PlottedScheme]:
    """The schemes of a stack, with the same initial parameters at every call, or with those of each stage.

    A scheme with parameters per layer is built for one layer.
    """
    dims = layers.dims(max_seq_len, embed_dim)
    seen: list[str] = []
    schemes: list[PlottedScheme] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for place in _distinct(layers, max_seq_len):
            seen.append(place.config.label)
            count, plain = seen.count(seen[-1]), place.config.unstretched()
            plotted = PlottedScheme(
                section=seen[-1] if count == 1 else f"{seen[-1]}-{count}",
                config=place.config,
                probe=Probe(place.config.build(dims), dims),
                unscaled=None if plain is None else Probe(plain.build(dims), dims),
                max_seq_len=max_seq_len,
                window=place.window,
            )
            learned = any(True for _ in plotted.scheme.parameters())
            for along in plotted.along_axes():
                schemes += along.at(stages, place.layer, place.part) if stages and learned else [along]
    return schemes
