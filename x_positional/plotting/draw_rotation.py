"""Pictures of turning: the cosines and sines of every channel, and the wavelength of every pair.

T positions, D head dim, P pairs.
"""

import math

import torch
from torch import Tensor

from x_positional.plotting.canvas import BLUE, GREY, ORANGE, TWO_SIGNS, Picture, figure, mark, png, tidy
from x_positional.plotting.part import Part, Subject
from x_positional.plotting.rotation import Pairs, cos_sin, find_pairs, speeds

POSITIONS = 256


def draw_cos_sin(part: Part) -> Picture | None:
    """Position by channel, cosines on the left, sines on the right; None where nothing turns in pairs."""
    pairs = find_pairs(part.subject, part.max_seq_len)
    if pairs is None:
        return None
    positions = torch.arange(min(part.max_seq_len, POSITIONS))
    tables = cos_sin(part.subject, pairs, positions, part.max_seq_len)
    drawn = figure(9.6, 4.2)
    panels = drawn.subplots(1, 2, sharey=True)
    far = max(1.0, *(float(table.abs().max()) for table in tables))
    images = []
    for axes, table, title in zip(
        panels, tables, ("cosine: what stays in the channel", "sine: what its partner gets"), strict=True
    ):
        shown = axes.imshow(table.numpy(), cmap=TWO_SIGNS, vmin=-far, vmax=far, aspect="auto", interpolation="nearest")
        images.append(shown)
        axes.set(xlabel="channel of a query", title=title)
    panels[0].set_ylabel("position")
    drawn.colorbar(images[0], ax=panels, label="share of the value at position 0")
    return Picture(f"{part.name}-cos-sin", "Cosines and sines", _about_tables(part, pairs), png(drawn))


def draw_wavelengths(part: Part) -> Picture | None:
    """Positions per turn of every pair on a logarithmic scale, before and after stretching; None without pairs."""
    pairs = find_pairs(part.subject, part.horizon + 1)
    if pairs is None:
        return None
    drawn = figure(8.6, 4.4)
    axes = drawn.subplots()
    length, then = part.horizon + 1, ""
    before, after = as_trained(part, pairs), wavelengths(part.subject, pairs, length)
    if part.before is not None and (all_before := find_pairs(part.before, length)) is not None:
        then = " before stretching"
        waves = wavelengths(part.before, all_before, length).numpy()
        axes.scatter(firsts(all_before).numpy(), waves, s=30, facecolors="none", edgecolors=GREY, label=then.strip())
    number, whole = firsts(pairs), before <= part.trained
    for chosen, colour, marker, label in (
        (whole, BLUE, "o", f"a whole turn within {part.trained}{then}"),
        (~whole, ORANGE, "s", f"less than a turn{then}"),
    ):
        if chosen.any():
            axes.scatter(number[chosen].numpy(), after[chosen].numpy(), s=16, color=colour, marker=marker, label=label)
    axes.set_yscale("log")
    mark(axes, part.marks, upright=False)
    tidy(axes, xlabel="pair, by its first channel", ylabel="positions per turn")
    drawn.legend(loc="outside right center", frameon=False, fontsize=8)
    sentence = _about_wavelengths(part, pairs, before, after)
    return Picture(f"{part.name}-wavelengths", "Wavelengths", sentence, png(drawn))


def as_trained(part: Part, pairs: Pairs) -> Tensor:
    """[P] positions per turn of these pairs before they were stretched."""
    length = part.horizon + 1
    found = None if part.before is None else find_pairs(part.before, length)
    if part.before is None or found is None:
        return wavelengths(part.subject, pairs, length)
    waves = dict(zip(found.inputs, wavelengths(part.before, found, length).tolist(), strict=True))
    return torch.tensor([waves.get(channels, math.inf) for channels in pairs.inputs], dtype=torch.float64)


def wavelengths(subject: Subject, pairs: Pairs, length: int) -> Tensor:
    """[P] positions per turn, in a text of `length` where that counts."""
    return 2 * math.pi / speeds(subject, pairs, length)


def firsts(pairs: Pairs) -> Tensor:
    """[P] the first input channel of each pair."""
    return torch.tensor([channels[0] for channels in pairs.inputs])


def _about_tables(part: Part, pairs: Pairs) -> str:
    turning = part.dims.head_dim - len(pairs.still)
    rest = f"; the other {len(pairs.still)} stay as they are" if pairs.still else ""
    head = f" of head {pairs.head + 1}" if part.dims.heads > 1 else ""
    return (
        f"A query with 1 in one channel and 0 elsewhere, at each position: {turning} of {part.dims.head_dim} channels{head} "
        f"turn, each at its own speed, the fast ones in narrow stripes{rest}.{part.learned}"
    )


def _about_wavelengths(part: Part, pairs: Pairs, before: Tensor, after: Tensor) -> str:
    text = _turns(part, before, after)
    text += f" The fastest turns once in {float(after.min()):.3g} positions, the slowest in {float(after.max()):.3g}."
    if part.before is not None and not part.scheme.capabilities().prefix_consistent:
        text += f" The scaling follows the text's length; this is a text of {part.horizon + 1}."
    if pairs.still:
        text += f" {len(pairs.still)} channels do not turn and are not here."
    return text + part.learned


def _turns(part: Part, before: Tensor, after: Tensor) -> str:
    """How many pairs turned fully in training, and which of the others will go where they have not been."""
    whole, count, trained, longest = before <= part.trained, len(after), part.trained, part.max_seq_len
    if part.before is None:
        text = f"{int(whole.sum())} of {count} pairs turn fully within {trained} positions"
        return text + ("." if whole.all() else "; past them the others reach angles that training has not shown.")
    if part.config.trained_length() is None:
        now = int((after <= trained).sum())
        return (
            f"Within {trained} positions {int(whole.sum())} of {count} pairs turned fully before stretching, now {now}."
        )
    new = int((~whole & (longest / after > 1.0001 * trained / before)).sum())
    return (
        f"Before stretching {int(whole.sum())} of {count} pairs turned fully within the trained {trained} positions; of the "
        f"others, {new} pass the angles they had there within {longest} positions."
    )
