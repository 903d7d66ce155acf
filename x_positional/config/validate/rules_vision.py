"""The validator's rules for models of images, one function each, as in `validate_rules`."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from x_positional.config.validate.case import Case, part_name
from x_positional.config.validate.report import Report
from x_positional.config.vision import VisionConfig
from x_positional.modules.patches import multiples
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.none import NoPE
from x_positional.schemes.rotary.mixed import MixedEmbedding
from x_positional.schemes.rotary.rotation import RopeEmbedding

Rule = Callable[[Case, VisionConfig], Iterator[str]]


def position_axes(schemes: Iterable[PositionScheme]) -> int:
    """How many axes these schemes want positions to have; 0 where none reads them."""
    return max((s.max_axes for s in schemes if s.capabilities().uses_positions), default=0)


def patches_cover_the_image(case: Case, image: VisionConfig) -> Iterator[str]:
    """An image is cut into whole patches."""
    for side, size, patch in zip(("height", "width"), image.image_size, image.patch_size, strict=True):
        if size % patch:
            yield (
                f"image_size={image.image_size}: {side} {size} is no multiple of the patch's {patch}, so a patch would be cut. "
                f"Use {multiples(size, patch)}, or another patch_size."
            )


def an_image_is_read_both_ways(case: Case, image: VisionConfig) -> Iterator[str]:
    """Every patch sees every other, and there is nothing else to attend to."""
    if image.layers.kind != "encoder":
        yield (
            f"layers.kind={image.layers.kind!r} for images: patches have no order in which one could follow another. "
            "Use an Encoder."
        )
    elif image.layers.cross_attend:
        yield (
            "layers.cross_attend=True for images: the model gets an image and no context. Leave it out, or run the Encoder "
            "on embeddings of your own."
        )


def one_table_of_the_grid(case: Case, image: VisionConfig) -> Iterator[str]:
    """A learned table has a row for each patch of the trained grid, no more and no less."""
    for table in image.tables:
        if table.offset or table.max_seq_len:
            yield (
                f"absolute: offset={table.offset}, max_seq_len={table.max_seq_len} are of a table for text; that of an "
                f"image has {image.trained_patches} rows, one per patch of the trained size. Leave both out."
            )
    if len(image.tables) > 1:
        yield "position names absolute more than once, and an image has one table. Give it once."
    if image.tables and any(isinstance(part, NoPE) for part in image.layers.position or ()):
        yield "position says 'none' and 'absolute'. Leave 'none' out, or give it alone."


def positions_fit_every_scheme(case: Case, image: VisionConfig) -> Iterator[str]:
    """All schemes get the same positions: (row, column), or the number of the patch."""
    axes = {name: s.max_axes for name, s in case.named if s.capabilities().uses_positions}
    for name, count in axes.items():
        if count > 2:
            yield f"{name} reads positions with {count} axes, and a patch has a row and a column. Give it two."
    flat, both = [n for n, count in axes.items() if count == 1], [n for n, count in axes.items() if count == 2]
    if flat and both:
        yield (
            f"{', '.join(both)} reads row and column, and {', '.join(flat)} one number per token; they get the same "
            "positions. Choose schemes with the same axes."
        )


def no_vision_setting_is_idle(case: Case, image: VisionConfig) -> Iterator[str]:
    """A setting that changes nothing was meant to change something."""
    if image.coordinates != "index" and position_axes(case.schemes) < 2:
        chosen = [part_name(part) for part in image.layers.position or image.tables]
        yield (
            f"coordinates={image.coordinates!r} says what a row and a column are, and no scheme of "
            f"position={' + '.join(chosen)} reads them. Use axial or mixed, or leave coordinates out."
        )
    if image.antialias and not image.tables:
        yield (
            "antialias=True is how a learned table is resized, and there is none. Put 'absolute' into position, or leave it out."
        )
    if image.cls_position and not (image.tables and image.has_cls):
        lacking = "there is no learned table" if image.has_cls else f"pool={image.pool!r} has no cls token"
        yield (
            f"cls_position=True gives the cls token a row of the learned table, and {lacking}. Use pool='cls' and 'absolute' in "
            "position, or leave it out."
        )
    if image.interpolation != "bicubic" and not image.tables:
        yield (
            f"interpolation={image.interpolation!r} is how a learned table is resized, and there is none. Put 'absolute' "
            "into position, or leave it out."
        )


def rows_are_read_one_after_another(case: Case, image: VisionConfig) -> Iterator[str]:
    """A scheme with one axis takes an image for a text of its rows."""
    flat = case.names(lambda s: s.capabilities().uses_positions and s.max_axes == 1)
    if flat:
        rows, columns = image.grid
        yield (
            f"{', '.join(flat)} has one axis and numbers the {rows} x {columns} patches row by row: the patch below is "
            f"{columns} away, and another width moves every row. Use axial or mixed for rows and columns."
        )


def a_window_counts_along_rows(case: Case, image: VisionConfig) -> Iterator[str]:
    """A window is a stretch of tokens, not a square of patches."""
    if image.layers.window is not None:
        yield (
            f"window={image.layers.window} counts tokens row by row, the cls token and registers first: it is no square of "
            "patches. Leave it out unless that is meant."
        )


def coordinates_suit_the_frequencies(case: Case, image: VisionConfig) -> Iterator[str]:
    """Neighbours should be told apart, and the two ends of an image too."""
    for name, scheme in case.named:
        fastest = _fastest_turn(scheme)
        if scheme.max_axes != 2 or fastest is None:
            continue
        if image.coordinates == "centered" and 2 * fastest < math.pi:
            yield (
                f"coordinates='centered' span 2, and the fastest pair of {name} turns by {fastest:.2g} radians for each 1: far "
                "patches look alike. Use axial with freqs='pixel', or coordinates='index'."
            )
        if image.coordinates != "centered" and fastest > math.pi:
            yield (
                f"coordinates={image.coordinates!r} are about 1 apart, and the fastest pair of {name} turns by {fastest:.2g} "
                "radians from one patch to the next, so near ones look far. Use coordinates='centered'."
            )


def _fastest_turn(scheme: PositionScheme) -> float | None:
    """Radians for a step of 1, before anything was learned; None for a scheme that does not turn."""
    if isinstance(scheme, MixedEmbedding):
        return 1.0  # theta^0, whatever theta is
    if not isinstance(scheme, RopeEmbedding):
        return None
    return float(scheme.initial_frequencies(torch.device("cpu")).inv_freq.max())


ERRORS: tuple[Rule, ...] = (
    patches_cover_the_image,
    an_image_is_read_both_ways,
    one_table_of_the_grid,
    positions_fit_every_scheme,
    no_vision_setting_is_idle,
)
WARNINGS: tuple[Rule, ...] = (
    rows_are_read_one_after_another,
    a_window_counts_along_rows,
    coordinates_suit_the_frequencies,
)


def found(rules: Iterable[Rule], case: Case) -> list[str]:
    """What the rules say of a model of images; nothing of any other."""
    image = case.model
    return [text for rule in rules for text in rule(case, image)] if isinstance(image, VisionConfig) else []


def with_table(report: Report, image: VisionConfig) -> Report:
    """The report on the layers, and what holds of the whole model: a table of patches is a position too."""
    if not image.tables:
        return report if report.past is None else replace(report, past="any size that patch_size divides runs")
    others = report.position if report.position != "none" else None
    caps = report.capabilities
    if caps is not None:  # NoPE alone is blind to order, and the table is not
        alone = others is None
        caps = replace(caps, absolute=True, causal_only=caps.causal_only and not alone)
    past = (
        None
        if report.past is None
        else f"any size that patch_size divides runs; the table is resized ({image.resizing})"
    )
    return replace(report, position=" + ".join(filter(None, ("absolute", others))), capabilities=caps, past=past)
