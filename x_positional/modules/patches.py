"""Image patches: from pixels to embeddings, their coordinates, and a learned table that is resized to other grids.

B batch, C channels, H W pixels, T patches in raster order (row by row), M model dim.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from x_positional.errors import InputError
from x_positional.schemes.precision import exact_dtype

Coordinates = Literal["index", "rescaled", "centered"]
Interpolation = Literal["bicubic", "bilinear"]

INIT_STD = 0.02
"""Standard deviation of a new table and of new tokens (Dosovitskiy et al. 2021, arXiv:2010.11929)."""


def multiples(size: int, patch: int) -> str:
    """The nearest sizes that are multiples of the patch, in words."""
    below = size // patch * patch
    return f"{below} or {below + patch}" if below else f"{patch}"


def patch_positions(
    grid: tuple[int, int],
    trained: tuple[int, int],
    coordinates: Coordinates = "index",
    device: torch.device | str | None = None,
) -> Tensor:
    """[T, 2] (row, column) of the patches of a grid, in raster order.

    Args:
        grid: rows and columns.
        trained: rows and columns of the trained grid.
        coordinates: index is 0, 1, 2, ..., int64. rescaled is index * trained / actual, floats, so that a grid of any size covers
            the trained range (EVA-02: Fang et al. 2023, arXiv:2303.11331). centered is the patches' centers, floats, where -1 and 1
            are the image's edges (DINOv3: Siméoni et al. 2025, arXiv:2508.10104).
        device: of the result.
    """
    axes = []
    for size, before in zip(grid, trained, strict=True):
        index = torch.arange(size, device=device)
        if coordinates == "rescaled":
            index = index.to(exact_dtype(index.device)) * before / size
        elif coordinates == "centered":
            index = (index.to(exact_dtype(index.device)) + 0.5) * 2 / size - 1
        axes.append(index)
    return torch.cartesian_prod(*axes)


def _kinds(images: Any) -> str:
    """What was given in place of images, in words."""
    if not isinstance(images, Sequence) or isinstance(images, str):
        return type(images).__name__
    return f"a {type(images).__name__} of {', '.join(sorted({type(image).__name__ for image in images})) or 'nothing'}"


class PatchEmbedding(nn.Module):
    """Pixels [B C H W] -> [B T M]: norm, linear, norm on the pixels of each patch, in the order row, column, channel. Without
    norms, a convolution whose stride is its width, which is a linear layer on each patch (Dosovitskiy et al. 2021)."""

    def __init__(self, channels: int, patch_size: tuple[int, int], dim: int, norms: bool = True, bias: bool = True):
        super().__init__()
        self.channels, self.patch_size = channels, patch_size
        pixels = channels * patch_size[0] * patch_size[1]
        self.pixel_norm = nn.LayerNorm(pixels, bias=False) if norms else None
        size = patch_size
        self.project = nn.Linear(pixels, dim, bias) if norms else nn.Conv2d(channels, dim, size, size, bias=bias)
        self.norm = nn.LayerNorm(dim, bias=False) if norms else None

    def grids(self, images: Any) -> list[tuple[int, int]]:
        """Rows and columns of patches of each image. Raises InputError where one cannot be cut into them.

        images: [B C H W], or a list of [C H W] of any sizes.
        """
        if isinstance(images, Tensor):
            self._check_kind(images, "pixel_values", "batch")
            return [self._grid(images, "")] * len(images)
        if not isinstance(images, Sequence) or not images or not all(isinstance(image, Tensor) for image in images):
            raise InputError(
                f"pixel_values must be a float tensor [batch, channels={self.channels}, height, width], or a list of tensors "
                f"[channels={self.channels}, height, width], one an image; got {_kinds(images)}."
            )
        first = images[0]
        for number, image in enumerate(images):
            self._check_kind(image, f"image {number}")
            if image.dtype != first.dtype or image.device != first.device:
                raise InputError(
                    f"image {number} is {image.dtype} on {image.device}, and image 0 {first.dtype} on {first.device}. Convert them "
                    "to one dtype and device."
                )
        return [self._grid(image, f"image {number}: ") for number, image in enumerate(images)]

    def _check_kind(self, pixels: Tensor, name: str, *before: str) -> None:
        """Raises InputError unless these are floats [*before C H W]."""
        if not pixels.is_floating_point():
            raise InputError(f"{name} must be floats; got {pixels.dtype}. For bytes use {name}.float() / 255.")
        own = next((p.dtype for p in self.parameters() if p.is_floating_point()), pixels.dtype)
        if pixels.dtype != own and not torch.is_autocast_enabled(pixels.device.type):
            raise InputError(f"{name} must be {own}, as the model is; got {pixels.dtype}. Use {name}.to({own}).")
        shape = ", ".join([*before, f"channels={self.channels}", "height", "width"])
        if pixels.ndim != 3 + len(before) or pixels.shape[-3] != self.channels or 0 in pixels.shape:
            raise InputError(f"{name} must have shape [{shape}], none of them 0; got {list(pixels.shape)}.")

    def _grid(self, pixels: Tensor, which: str) -> tuple[int, int]:
        """Rows and columns of [... H W]. Raises InputError."""
        height, width = pixels.shape[-2:]
        sides = {"height": (height, self.patch_size[0]), "width": (width, self.patch_size[1])}
        odd = {name: side for name, side in sides.items() if side[0] % side[1]}
        if odd:
            told = " and ".join(
                f"{name} {size} is not a multiple of the patch's {patch}" for name, (size, patch) in odd.items()
            )
            fit = "; ".join(f"{name} {multiples(size, patch)}" for name, (size, patch) in odd.items())
            raise InputError(f"{which}{told}. Resize or pad the image: {fit}.")
        return height // self.patch_size[0], width // self.patch_size[1]

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.pixel_norm is None or self.norm is None:
            return self.project(pixel_values).flatten(2).transpose(1, 2)
        height, width = self.patch_size
        pattern = "b c (rows height) (columns width) -> b (rows columns) (height width c)"
        patches = rearrange(pixel_values, pattern, height=height, width=width)
        return self.norm(self.project(self.pixel_norm(patches)))


class PatchTable(nn.Module):
    """A learned vector for each patch of the trained grid, resized to any other grid (Dosovitskiy et al. 2021,
    arXiv:2010.11929, section 3.2), as an image is, without aligned corners.

    Args:
        grid: rows and columns of the trained grid.
        dim: M.
        interpolation: how it is resized.
        scale: the vectors are multiplied by it.
        antialias: when it is made smaller.
        extra: E, tokens before the patches that have a row too: the table is [E + T M], and its first rows are never resized.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        interpolation: Interpolation = "bicubic",
        scale: float = 1.0,
        *,
        antialias: bool = False,
        extra: int = 0,
    ):
        super().__init__()
        self.grid, self.interpolation, self.scale, self.antialias, self.extra = (
            grid,
            interpolation,
            scale,
            antialias,
            extra,
        )
        self.table = nn.Parameter(torch.empty(extra + grid[0] * grid[1], dim) if extra else torch.empty(*grid, dim))
        nn.init.normal_(self.table, std=INIT_STD)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """[T M] for the patches of a grid, in raster order."""
        table = torch.unflatten(self.table[self.extra :], 0, self.grid) if self.extra else self.table
        if grid != self.grid:
            image = table.permute(2, 0, 1)[None]
            wide = image if image.dtype == torch.float64 else image.float()
            sized = F.interpolate(wide, grid, mode=self.interpolation, align_corners=False, antialias=self.antialias)
            table = sized[0].permute(1, 2, 0)
        return table.to(self.table.dtype).flatten(0, 1) * self.scale

    def extra_rows(self) -> Tensor:
        """[E M] for the tokens before the patches, where E > 0."""
        return self.table[: self.extra] * self.scale
