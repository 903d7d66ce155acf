"""Plots of rotations: cosine and sine of every channel, and the wavelength of every pair.

T positions, D head dim, P pairs.
"""

import math

import torch
from torch import Tensor

from x_positional.errors import counted
from x_positional.plotting.canvas import BLUE, DIVERGING, GREY, ORANGE, Picture, figure, mark_lengths, png, style
from x_positional.plotting.rotation import Pairs, cos_sin, find_pairs, frequencies
from x_positional.plotting.schemes import PlottedScheme, Probe
from x_positional.plotting.words import number

POSITIONS = 256


def draw_cos_sin(plotted: PlottedScheme) -> Picture | None:
    """Heatmaps, position by channel: cosines on the left, sines on the right; None without rotated pairs."""
    pairs = find_pairs(plotted.probe, plotted.max_seq_len)
    if pairs is None:
        return None
    positions = torch.arange(min(plotted.max_seq_len, POSITIONS))
    tables = cos_sin(plotted.probe, pairs, positions, plotted.max_seq_len)
    drawn = figure(9.6, 4.2)
    panels = drawn.subplots(1, 2, sharey=True)
    far = max(1.0, *(float(table.abs().max()) for table in tables))
    images = []
    for axes, table, title in zip(
        panels, tables, ("cosine: share that stays in the channel", "sine: share moved to its partner"), strict=True
    ):
        shown = axes.imshow(table.numpy(), cmap=DIVERGING, vmin=-far, vmax=far, aspect="auto", interpolation="nearest")
        images.append(shown)
        axes.set(xlabel="query channel", title=title)
    panels[0].set_ylabel("position")
    drawn.colorbar(images[0], ax=panels, label="relative to position 0")
    return Picture(
        f"{plotted.name}-cos-sin", "Cosine and sine by position", _cos_sin_caption(plotted, pairs), png(drawn)
    )


def draw_wavelengths(plotted: PlottedScheme) -> Picture | None:
    """Wavelength of every pair on a logarithmic scale, before and after RoPE scaling; None without rotated pairs."""
    pairs = find_pairs(plotted.probe, plotted.horizon + 1)
    if pairs is None:
        return None
    drawn = figure(8.6, 4.4)
    axes = drawn.subplots()
    length, then = plotted.horizon + 1, ""
    before, after = trained_wavelengths(plotted, pairs), wavelengths(plotted.probe, pairs, length)
    if plotted.unscaled is not None and (all_before := find_pairs(plotted.unscaled, length)) is not None:
        then = " before scaling"
        waves = wavelengths(plotted.unscaled, all_before, length).numpy()
        axes.scatter(
            first_channels(all_before).numpy(), waves, s=30, facecolors="none", edgecolors=GREY, label=then.strip()
        )
    channels, whole = first_channels(pairs), before <= plotted.trained
    for chosen, colour, marker, label in (
        (whole, BLUE, "o", f"at least one turn within {plotted.trained}{then}"),
        (~whole, ORANGE, "s", f"less than one turn{then}"),
    ):
        if chosen.any():
            axes.scatter(
                channels[chosen].numpy(), after[chosen].numpy(), s=16, color=colour, marker=marker, label=label
            )
    axes.set_yscale("log")
    mark_lengths(axes, plotted.marks, vertical=False)
    style(axes, xlabel="first channel of the pair", ylabel="wavelength (positions per turn)")
    drawn.legend(loc="outside right center", frameon=False, fontsize=8)
    caption = _wavelengths_caption(plotted, pairs, before, after)
    return Picture(f"{plotted.name}-wavelengths", "Wavelengths", caption, png(drawn))


def trained_wavelengths(plotted: PlottedScheme, pairs: Pairs) -> Tensor:
    """[P] wavelengths of these pairs before RoPE scaling."""
    length = plotted.horizon + 1
    found = None if plotted.unscaled is None else find_pairs(plotted.unscaled, length)
    if plotted.unscaled is None or found is None:
        return wavelengths(plotted.probe, pairs, length)
    waves = dict(zip(found.inputs, wavelengths(plotted.unscaled, found, length).tolist(), strict=True))
    return torch.tensor([waves.get(channels, math.inf) for channels in pairs.inputs], dtype=torch.float64)


def wavelengths(probe: Probe, pairs: Pairs, length: int) -> Tensor:
    """[P] positions per turn, in a sequence of `length` if the frequencies depend on it."""
    return 2 * math.pi / frequencies(probe, pairs, length)


def first_channels(pairs: Pairs) -> Tensor:
    """[P] the first input channel of each pair."""
    return torch.tensor([channels[0] for channels in pairs.inputs])


def _cos_sin_caption(plotted: PlottedScheme, pairs: Pairs) -> str:
    count = plotted.dims.head_dim - len(pairs.unrotated)
    rest = f"; the other {len(pairs.unrotated)} are not rotated" if pairs.unrotated else ""
    head = f" of head {pairs.head + 1}" if plotted.dims.heads > 1 else ""
    return (
        f"How each channel of a query is rotated at each position: {count} of {plotted.dims.head_dim} channels{head} are "
        f"rotated, high frequencies showing as narrow stripes{rest}.{plotted.learned_note}"
    )


def _wavelengths_caption(plotted: PlottedScheme, pairs: Pairs, before: Tensor, after: Tensor) -> str:
    text = _coverage(plotted, before, after)
    text += f" Wavelengths range from {number(float(after.min()))} to {number(float(after.max()))} positions."
    if plotted.unscaled is not None and not plotted.scheme.capabilities().prefix_consistent:
        text += f" The scaling depends on the sequence length, which is {plotted.horizon + 1} here."
    if pairs.unrotated:
        text += f" Not rotated and not shown: {counted(len(pairs.unrotated), 'channel')}."
    return text + plotted.learned_note


def _coverage(plotted: PlottedScheme, before: Tensor, after: Tensor) -> str:
    """How many pairs complete a turn in training, and how many of the others will reach angles not seen in training."""
    whole, count, trained, longest = before <= plotted.trained, len(after), plotted.trained, plotted.max_seq_len
    if plotted.unscaled is None:
        text = f"{int(whole.sum())} of {count} pairs complete a turn within {trained} positions"
        return text + ("." if whole.all() else "; beyond that, the others reach angles not seen in training.")
    if plotted.config.trained_length() is None:
        now = int((after <= trained).sum())
        return f"Within {trained} positions, {int(whole.sum())} of {count} pairs completed a turn before scaling, {now} after."
    new = int((~whole & (longest / after > 1.0001 * trained / before)).sum())
    return (
        f"Before scaling, {int(whole.sum())} of {count} pairs complete a turn within the trained length of {trained} "
        f"positions. Of the others, {new} reach angles not seen in training within {longest} positions."
    )
