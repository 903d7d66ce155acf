"""Which patches of an image enter the layers: all, those that a mask shows, those at given indices, or a random share.

B batch, T patches of the largest image in raster order, K patches that enter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.inputs import INTEGERS, as_tensor, check_mask, read_bounds, read_value
from x_positional.errors import InputError


@dataclass(frozen=True)
class PatchChoice:
    """The patches of every image that enter the layers."""

    index: Tensor | None
    """[B K] their numbers in raster order; None is all T, in order."""
    mask: Tensor | None
    """[B K] bool, False where there is no patch; None where each slot holds one."""

    @property
    def is_all(self) -> bool:
        """Every patch of every image enters, and all images have as many."""
        return self.index is None and self.mask is None

    def take(self, x: Tensor) -> Tensor:
        """[B|1 T ...] -> [B|1 K ...]: the rows of these patches."""
        if self.index is None:
            return x
        index = self.index.view(*self.index.shape, *(1,) * (x.ndim - 2))
        return x.expand(len(index), *x.shape[1:]).gather(1, index.expand(-1, -1, *x.shape[2:]))


def choose_patches(
    grids: Sequence[tuple[int, int]], mask: Any, kept: Any, dropout: float, device: torch.device
) -> PatchChoice:
    """The choice for images with these grids.

    Args:
        grids: rows and columns of each image.
        mask: [B T] bool, True = keep; or None.
        kept: [B K] integers, the only patches that enter, in this order; or None.
        dropout: the share of each image's patches to leave out at random, at least one stays; it has no effect on `kept`.
        device: of the result.

    Raises:
        InputError: a mask or indices of another shape, dtype or range; an image without a patch.
    """
    counts = [prod(grid) for grid in grids]
    shown = _visible(counts, mask, device)
    if kept is not None:
        index = _indices(kept, counts, device)
        shown = None if shown is None else shown.gather(1, index)
        if shown is not None:
            _check_every_image(shown, "mask and kept leave")
        return PatchChoice(index, shown)
    return _random_share(shown, counts, dropout, device) if dropout else PatchChoice(None, shown)


def _visible(counts: list[int], mask: Any, device: torch.device) -> Tensor | None:
    """[B T] bool, None if every slot holds a visible patch."""
    longest, own = max(counts), None
    if min(counts) < longest:
        own = torch.arange(longest, device=device) < torch.tensor(counts, device=device)[:, None]
    if mask is None:
        return own
    mask = as_tensor(mask, "mask")
    if mask.ndim != 2:
        raise InputError(
            f"mask must have shape [batch, patches] = [{len(counts)}, {longest}], patches in raster order; got {list(mask.shape)}."
        )
    mask = check_mask(mask, len(counts), longest).to(device)
    mask = mask if own is None else mask & own
    _check_every_image(mask, "mask leaves")
    return mask


def _check_every_image(mask: Tensor, what: str) -> None:
    """Raises InputError for a row [T] that is False everywhere. Forces a device sync."""
    rows = mask.any(dim=1)
    if read_value(rows.all()) is False:
        raise InputError(
            f"{what} no patch of image {int((~rows).nonzero()[0])}. True = keep; leave such an image out of the batch."
        )


def _indices(kept: Any, counts: list[int], device: torch.device) -> Tensor:
    """[B K] int64. Raises InputError."""
    kept = as_tensor(kept, "kept")
    if kept.dtype not in INTEGERS or kept.ndim != 2 or len(kept) != len(counts) or 0 in kept.shape:
        hint = " A mask of patches is passed as mask=." if kept.dtype == torch.bool else ""
        raise InputError(
            f"kept must be integers [batch={len(counts)}, patches to keep], at least one; got {kept.dtype} of shape "
            f"{list(kept.shape)}.{hint}"
        )
    kept = kept.long().to(device)
    low, high = read_bounds(kept) or (0, 0)
    room = torch.tensor(counts, device=device)[:, None]
    if low < 0 or read_value((kept < room).all()) is False:
        raise InputError(
            f"kept holds {low if low < 0 else high}, but patches are numbered 0 to {min(counts) - 1}"
            f"{' in the smallest image' if min(counts) < max(counts) else ''}, row by row."
        )
    ordered = kept.sort(dim=1).values
    if kept.shape[1] > 1 and read_value((ordered[:, 1:] == ordered[:, :-1]).any()) is True:
        raise InputError("kept names a patch of an image twice. Name each once.")
    return kept


def _random_share(shown: Tensor | None, counts: list[int], dropout: float, device: torch.device) -> PatchChoice:
    """A random choice of 1 - dropout of each image's visible patches, at least one, in raster order."""
    longest = max(counts)
    size = max(1, round((1 - dropout) * longest))
    order = torch.rand(len(counts), longest, device=device)
    if shown is None:
        return PatchChoice(order.topk(size, sorted=False).indices.sort(dim=1).values, None)
    order = order.masked_fill(~shown, -1.0)  # hidden patches last
    index = order.topk(size).indices
    own = ((1 - dropout) * shown.sum(dim=1, keepdim=True)).round().clamp(min=1)
    mask = torch.arange(size, device=device) < own
    index, back = index.masked_fill(~mask, longest - 1).sort(dim=1)
    return PatchChoice(index, mask.gather(1, back))
