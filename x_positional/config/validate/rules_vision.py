"""Rules of image models, and what a learned table adds to a report."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from x_positional.config.validate.case import Case
from x_positional.config.validate.report import Report
from x_positional.config.validate.rule import rule
from x_positional.config.vision import VisionConfig
from x_positional.modules.patches import multiples
from x_positional.schemes.base import ActsOn, PositionScheme
from x_positional.schemes.none import NoPE
from x_positional.schemes.rotary.mixed import MixedEmbedding
from x_positional.schemes.rotary.rotation import RopeEmbedding


def position_axes(schemes: Iterable[PositionScheme]) -> int:
    """Axes of the positions that these schemes read; 0 where none reads positions."""
    return max((s.max_axes for s in schemes if s.capabilities().uses_positions), default=0)


@rule(models=VisionConfig)
def patches_cover_the_image(case: Case, image: VisionConfig) -> Iterator[str]:
    """An image is cut into whole patches."""
    for side, size, patch in zip(("height", "width"), image.image_size, image.patch_size, strict=True):
        if size % patch:
            yield (
                f"image_size={image.image_size}: {side} {size} is not a multiple of the patch's {patch}. "
                f"Use {multiples(size, patch)}, or another patch_size."
            )


@rule(models=VisionConfig)
def an_image_needs_an_encoder(case: Case, image: VisionConfig) -> Iterator[str]:
    """Patches attend to each other in both directions, and there is no context."""
    if image.layers.kind != "encoder":
        yield (f"layers.kind={image.layers.kind!r} for images: patches have no causal order. Use an Encoder.")
    elif image.layers.cross_attend:
        yield (
            "layers.cross_attend=True for images: the model gets no context. Leave it out, or run the Encoder on your own "
            "embeddings."
        )


@rule(models=VisionConfig)
def one_table_of_the_grid(case: Case, image: VisionConfig) -> Iterator[str]:
    """A learned table has exactly one row for each patch of the trained grid."""
    for table in image.tables:
        if table.offset or table.max_seq_len:
            yield (
                f"absolute: offset={table.offset}, max_seq_len={table.max_seq_len} apply to a table for text; that of an "
                f"image has {image.trained_patches} rows, one per patch of the trained size. Leave both out."
            )
    if len(image.tables) > 1:
        yield "position names absolute more than once, and an image has one table. Give it once."
    if image.tables and any(isinstance(part, NoPE) for part in image.layers.position or ()):
        yield "position combines 'none' with 'absolute'. Leave 'none' out, or give it alone."


@rule(needs="schemes", models=VisionConfig)
def positions_fit_every_scheme(case: Case, image: VisionConfig) -> Iterator[str]:
    """All schemes get the same positions: (row, column), or the number of the patch."""
    axes = {name: s.max_axes for name, s in case.named if s.capabilities().uses_positions}
    for name, count in axes.items():
        if count > 2:
            yield f"{name} reads positions with {count} axes, and a patch has two: row and column. Use two sections."
    flat, both = [n for n, count in axes.items() if count == 1], [n for n, count in axes.items() if count == 2]
    if flat and both:
        yield (
            f"{', '.join(both)} reads row and column, and {', '.join(flat)} one number per token; they get the same "
            "positions. Choose schemes with the same axes."
        )


@rule(needs="schemes", models=VisionConfig)
def coordinates_are_read(case: Case, image: VisionConfig) -> Iterator[str]:
    """Coordinates other than the index need a scheme with two axes."""
    if image.coordinates != "index" and position_axes(case.schemes) < 2:
        chosen = [part.label for part in image.layers.position or image.tables]
        yield (
            f"coordinates={image.coordinates!r} is ignored: no scheme of position={' + '.join(chosen)} reads row and column. "
            "Use axial or mixed, or leave coordinates out."
        )


@rule("warning", needs="schemes", models=VisionConfig)
def rows_are_read_one_after_another(case: Case, image: VisionConfig) -> Iterator[str]:
    """A scheme with one axis treats an image as a sequence of patches, row by row."""
    flat = case.names(lambda s: s.capabilities().uses_positions and s.max_axes == 1)
    if flat:
        rows, columns = image.grid
        yield (
            f"{', '.join(flat)} has one axis and numbers the {rows} x {columns} patches row by row: the patch below is "
            f"{columns} away, and another image width changes that. Use axial or mixed for rows and columns."
        )


@rule("warning", models=VisionConfig)
def a_window_counts_along_rows(case: Case, image: VisionConfig) -> Iterator[str]:
    """A window is a range of tokens, not a square of patches."""
    if image.layers.window is not None:
        yield (
            f"window={image.layers.window} counts tokens row by row, the cls token and registers first: it is not a square of "
            "patches. Leave it out unless that is intended."
        )


@rule("warning", needs="schemes", models=VisionConfig)
def coordinates_suit_the_frequencies(case: Case, image: VisionConfig) -> Iterator[str]:
    """Neighbouring patches and opposite edges must both be distinguishable."""
    for name, scheme in case.named:
        fastest = _fastest_rotation(scheme)
        if scheme.max_axes != 2 or fastest is None:
            continue
        if image.coordinates == "centered" and 2 * fastest < math.pi:
            yield (
                f"coordinates='centered' span 2, and the fastest pair of {name} rotates by {fastest:.2g} radians per unit: far "
                "patches look alike. Use axial with freqs='pixel', or coordinates='index'."
            )
        if image.coordinates != "centered" and fastest > math.pi:
            yield (
                f"coordinates={image.coordinates!r} are about 1 apart, and the fastest pair of {name} rotates by {fastest:.2g} "
                "radians from one patch to the next, so near ones look far. Use coordinates='centered'."
            )


def _fastest_rotation(scheme: PositionScheme) -> float | None:
    """Radians per unit of position, at initialisation; None for a scheme without rotation."""
    if isinstance(scheme, MixedEmbedding):
        return 1.0  # theta^0, whatever theta is
    if not isinstance(scheme, RopeEmbedding):
        return None
    return float(scheme.initial_frequencies(torch.device("cpu")).inv_freq.max())


def with_table(report: Report, image: VisionConfig) -> Report:
    """The report on the layers, with the learned table of the patches, which belongs to the model."""
    if not image.tables:
        return report if report.past is None else replace(report, past="any size that patch_size divides runs")
    others = report.position if report.position != "none" else None
    caps = report.capabilities
    if caps is not None:  # NoPE alone is blind to order; the table is not
        alone = others is None
        acts_on: tuple[ActsOn, ...] = ("embeddings", *(place for place in caps.acts_on if place != "embeddings"))
        caps = replace(caps, acts_on=acts_on, absolute=True, causal_only=caps.causal_only and not alone)
    past = (
        None
        if report.past is None
        else f"any size that patch_size divides runs; the table is resized ({image.resizing})"
    )
    return replace(report, position=" + ".join(filter(None, ("absolute", others))), capabilities=caps, past=past)
