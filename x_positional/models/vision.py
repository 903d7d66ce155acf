"""Images through an encoder: patches, where they are, and tokens that are nowhere.

B batch, C channels, H W pixels, T patches in raster order (row by row), E tokens that are no patch, M model dim.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.config.flags import vision_from_flags
from x_positional.config.validate import model_report, require
from x_positional.config.validate.rules_vision import position_axes
from x_positional.config.vision import Coordinates, Interpolation, VisionConfig, multiples
from x_positional.errors import InputError
from x_positional.models.describe import describe_image
from x_positional.models.language import bound_config
from x_positional.models.saving import Saveable
from x_positional.models.stacks import ConfiguredLayers, layers_from_config
from x_positional.modules.norms import Norm
from x_positional.schemes.rotary.frequencies import wide_dtype

START = 0.02
"""Standard deviation of a new table and of new tokens (Dosovitskiy et al. 2021, arXiv:2010.11929)."""


class EncodedImage(NamedTuple):
    """What the encoder made of each token."""

    patches: Tensor  # [B T M]
    cls: Tensor | None  # [B M]
    registers: Tensor  # [B R M]
    grid: tuple[int, int]  # rows, columns: patches.unflatten(1, grid) is [B rows columns M]


def patch_positions(
    grid: tuple[int, int],
    trained: tuple[int, int],
    coordinates: Coordinates = "index",
    device: torch.device | str | None = None,
) -> Tensor:
    """[T, 2] (row, column) of the patches of a grid, row by row.

    index: 0, 1, 2, ..., int64. rescaled: index * trained / actual, so that a grid of any size covers the trained span
    (Fang et al. 2023, EVA-02, arXiv:2303.11331). centered: the patches' centres, where -1 and 1 are the image's edges
    (Siméoni et al. 2025, DINOv3, arXiv:2508.10104). The last two are floats, each axis by its own size.
    """
    axes = []
    for size, before in zip(grid, trained, strict=True):
        index = torch.arange(size, device=device)
        if coordinates == "rescaled":
            index = index.to(wide_dtype(index.device)) * before / size
        elif coordinates == "centered":
            index = (index.to(wide_dtype(index.device)) + 0.5) * 2 / size - 1
        axes.append(index)
    return torch.cartesian_prod(*axes)


class PatchEmbedding(nn.Module):
    """[B C H W] -> [B T M]: norm, linear, norm over the pixels of each patch, in the order row, column, channel; or without
    norms a convolution whose stride is its width, which is one linear layer over each patch (Dosovitskiy et al. 2021)."""

    def __init__(self, channels: int, patch_size: tuple[int, int], dim: int, norms: bool = True):
        super().__init__()
        self.channels, self.patch_size = channels, patch_size
        pixels = channels * patch_size[0] * patch_size[1]
        self.pixel_norm = nn.LayerNorm(pixels, bias=False) if norms else None
        self.project = nn.Linear(pixels, dim) if norms else nn.Conv2d(channels, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim, bias=False) if norms else None

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of patches. Raises InputError where the image cannot be cut into them."""
        if not pixel_values.is_floating_point():
            raise InputError(
                f"pixel_values must be floats; these are {pixel_values.dtype}. For bytes use pixel_values.float() / 255."
            )
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.channels or 0 in pixel_values.shape:
            raise InputError(
                f"pixel_values must have shape [batch, channels={self.channels}, height, width], nothing of it empty; "
                f"these are {list(pixel_values.shape)}."
            )
        sides = {
            "height": (pixel_values.shape[2], self.patch_size[0]),
            "width": (pixel_values.shape[3], self.patch_size[1]),
        }
        odd = {name: side for name, side in sides.items() if side[0] % side[1]}
        if odd:
            told = " and ".join(
                f"{name} {size} is no multiple of the patch's {patch}" for name, (size, patch) in odd.items()
            )
            fit = "; ".join(f"{name} {multiples(size, patch)}" for name, (size, patch) in odd.items())
            raise InputError(f"{told}, so a patch would be cut. Resize or pad the image: {fit}.")
        return sides["height"][0] // self.patch_size[0], sides["width"][0] // self.patch_size[1]

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.pixel_norm is None or self.norm is None:
            return self.project(pixel_values).flatten(2).transpose(1, 2)
        height, width = self.patch_size
        x = pixel_values.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B C rows height columns width]
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.norm(self.project(self.pixel_norm(x)))


class PatchTable(nn.Module):
    """One learned vector for each patch of the trained grid, resized to any other (Dosovitskiy et al. 2021,
    arXiv:2010.11929, section 3.2).

    Rows and columns are pixels of an image whose edges stay where they are (corners not aligned). cls: the table is [1 + T M],
    and its first row, which is never resized, is that of the cls token.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        interpolation: Interpolation = "bicubic",
        scale: float = 1.0,
        *,
        antialias: bool = False,
        cls: bool = False,
    ):
        super().__init__()
        self.grid, self.interpolation, self.scale, self.antialias, self.cls = grid, interpolation, scale, antialias, cls
        self.table = nn.Parameter(torch.empty(1 + grid[0] * grid[1], dim) if cls else torch.empty(*grid, dim))
        nn.init.normal_(self.table, std=START)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """[T M] for the patches of a grid, row by row."""
        table = self.table[1:].unflatten(0, self.grid) if self.cls else self.table
        if grid != self.grid:
            image = table.permute(2, 0, 1)[None]
            wide = image if image.dtype == torch.float64 else image.float()
            sized = F.interpolate(wide, grid, mode=self.interpolation, align_corners=False, antialias=self.antialias)
            table = sized[0].permute(1, 2, 0)
        return table.to(self.table.dtype).flatten(0, 1) * self.scale

    def cls_row(self) -> Tensor | None:
        """[1 M] for the cls token, None where it has no row."""
        return self.table[:1] * self.scale if self.cls else None


class ViTransformerWrapper(Saveable):
    """Images [B C H W] -> logits [B, num_classes], at any resolution that patch_size divides.

    image_size, patch_size: pixels, one number or (height, width). attn_layers: an Encoder. num_classes: None gives the
    pooled embedding [B M]. Flags: post_emb_norm, num_register_tokens, emb_dropout as in x-transformers; pool ("mean",
    "cls", "cls_mean"), coordinates ("index", "rescaled", "centered"), interpolation ("bicubic", "bilinear"), antialias,
    cls_position and patch_norms are ours: `VisionConfig`.

    Schemes with two axes ("axial", "mixed") get (row, column), see `patch_positions`; schemes with one axis number the
    patches in raster order. "absolute" is a learned table of the trained grid, on too where no scheme was chosen. The cls
    token and registers come before the patches at position 0 on every axis, so rotation leaves them as they are; nothing
    is added to them, but to the cls token its own row of the table where cls_position says that it has one. A scheme of
    distances sees them where the first patch is.

    Raises IncompatibleConfig, FlagError, ValidationError for what cannot be built.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        attn_layers: ConfiguredLayers,
        channels: int = 3,
        num_classes: int | None = None,
        **flags: Any,
    ):
        super().__init__()
        own = {"image_size": image_size, "patch_size": patch_size, "channels": channels, "num_classes": num_classes}
        self.config = config = VisionConfig.model_validate(
            vision_from_flags({**own, **flags, "attn_layers": bound_config(attn_layers)})
        )
        require(model_report(config))
        dim = config.layers.dim
        attn_layers.bind(config.stack, config.trained_patches, dim)
        self.patch_embedding = PatchEmbedding(config.channels, config.patch_size, dim, config.patch_norms)
        self.patch_table = _table(config)
        self.emb_norm = Norm(dim, unit_offset=False) if config.post_emb_norm else None
        self.emb_dropout = nn.Dropout(config.emb_dropout)
        self.cls_token = nn.Parameter(torch.randn(1, dim) * START) if config.has_cls else None
        registers = config.num_register_tokens
        self.register_tokens = nn.Parameter(torch.randn(registers, dim) * START) if registers else None
        self.attn_layers = attn_layers
        width = dim * (2 if config.pool == "cls_mean" else 1)
        self.to_logits = None if config.num_classes is None else nn.Linear(width, config.num_classes)
        self.axes = position_axes(attn_layers.position_schemes)

    @classmethod
    def from_config(cls, config: VisionConfig | Mapping[str, Any]) -> Self:
        """The model of a `VisionConfig` (or of its fields as a dict)."""
        config = VisionConfig.model_validate(config)
        own = {n: getattr(config, n) for n in VisionConfig.model_fields if n != "layers"}
        return cls(attn_layers=layers_from_config(config.layers), **own)

    @property
    def extra_tokens(self) -> int:
        """E, how many tokens are no patch: the cls token and the registers, in this order before the patches."""
        return self.config.num_register_tokens + (self.cls_token is not None)

    def describe(self) -> str:
        """What is applied where, which backend runs and why, dtype, parameters, trained size."""
        return describe_image(self, self.config, self.axes)

    def positions(self, grid: tuple[int, int], device: torch.device | None = None) -> Tensor | None:
        """[1 E+T 2] what schemes with two axes are told, [1 E+T] with one; None where nothing reads positions or the
        place in the sequence says it."""
        extra = self.extra_tokens
        if self.axes == 0 or (self.axes == 1 and extra == 0):
            return None
        if self.axes == 1:
            patches = torch.arange(grid[0] * grid[1], device=device)
        else:
            patches = patch_positions(grid, self.config.grid, self.config.coordinates, device)
        return torch.cat([patches.new_zeros(extra, *patches.shape[1:]), patches])[None]

    def encode(self, pixel_values: Tensor) -> EncodedImage:
        """[B C H W] -> every token after the last layer, by what it is. Raises InputError before any kernel runs."""
        grid, layers, extra = self.patch_embedding.grid(pixel_values), self.attn_layers, self.extra_tokens
        B, T = pixel_values.shape[0], grid[0] * grid[1]
        positions = self.positions(grid, pixel_values.device)
        placed = layers.place(B, extra + T, pixel_values.device, None, positions, None, None)
        x = self.patch_embedding(pixel_values)
        if self.patch_table is not None:
            x = x + self.patch_table(grid)
        for scheme in layers.position_schemes:  # only patches are somewhere
            x = scheme.embed(x, placed.positions[:, extra:])
        x = self.emb_dropout(x if self.emb_norm is None else self.emb_norm(x))
        beside = [t.to(x.dtype).expand(B, -1, -1) for t in (self._cls(), self.register_tokens) if t is not None]
        x = torch.cat([*beside, x], dim=1)
        x = layers.run(x, layers.plan(B, placed, x.dtype))
        first = extra - self.config.num_register_tokens
        return EncodedImage(x[:, extra:], x[:, 0] if first else None, x[:, first:extra], grid)

    def _cls(self) -> Tensor | None:
        """[1 M] the cls token where it enters the layers."""
        row = None if self.patch_table is None else self.patch_table.cls_row()
        return self.cls_token if self.cls_token is None or row is None else self.cls_token + row

    def pooled(self, encoded: EncodedImage) -> Tensor:
        """[B M], or [B 2M] with pool="cls_mean": what the head reads."""
        mean = encoded.patches.mean(dim=1)
        if encoded.cls is None:
            return mean
        return encoded.cls if self.config.pool == "cls" else torch.cat([encoded.cls, mean], dim=-1)

    def forward(self, pixel_values: Tensor, return_embeddings: bool = False) -> Tensor:
        """Images [B C H W] -> logits [B, num_classes], or the patches' embeddings [B T M] with return_embeddings.

        H and W: any multiples of patch_size. Raises InputError before any kernel runs. `encode` gives every token.
        """
        encoded = self.encode(pixel_values)
        if return_embeddings:
            return encoded.patches
        pooled = self.pooled(encoded)
        return pooled if self.to_logits is None else self.to_logits(pooled)


def _table(config: VisionConfig) -> PatchTable | None:
    if not config.tables:
        return None
    scale = config.tables[0].scale
    return PatchTable(
        config.grid,
        config.layers.dim,
        config.interpolation,
        1.0 if scale is None else scale,
        antialias=config.antialias,
        cls=config.cls_position,
    )
