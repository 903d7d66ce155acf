"""Images through an encoder: patches with positions, and a cls token and registers without.

B batch, C channels, H W pixels, T patches in raster order (row by row), E tokens that are no patch, M model dim.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.config.flags import vision_from_flags
from x_positional.config.flags.answers import answers
from x_positional.config.validate import model_report, require
from x_positional.config.validate.rules_vision import position_axes
from x_positional.config.vision import VisionConfig
from x_positional.models.describe import describe_image
from x_positional.models.saving import Saveable
from x_positional.models.stacks import ConfiguredLayers, config_of, layers_of_model
from x_positional.modules.dropout import Dropout
from x_positional.modules.norms import Norm
from x_positional.modules.patches import INIT_STD, PatchEmbedding, PatchTable, patch_positions


class EncodedImage(NamedTuple):
    """The encoder's output, by kind of token."""

    patches: Tensor  # [B T M]
    cls: Tensor | None  # [B M]
    registers: Tensor  # [B R M]
    grid: tuple[int, int]  # rows, columns: patches.unflatten(1, grid) is [B rows columns M]


class ViTransformerWrapper(Saveable):
    """Images [B C H W] -> logits [B, num_classes], at any resolution that patch_size divides.

    Schemes with two axes ("axial", "mixed") get (row, column), see `patch_positions`; schemes with one axis number the
    patches in raster order. "absolute" is a learned table of the trained grid, and the default where no scheme is chosen. The cls
    token and the registers come before the patches, at position 0 on every axis, so rotation leaves them unchanged. Nothing is
    added to them, except to the cls token its own row of the table with cls_position. Schemes of distances place them at the
    first patch.

    Args:
        image_size: trained height and width in pixels; one number is both.
        patch_size: likewise.
        attn_layers: an Encoder.
        channels: C.
        num_classes: None returns the pooled embedding [B M].
        flags: post_emb_norm, num_register_tokens, emb_dropout as in x-transformers; pool ("mean", "cls", "cls_mean"), coordinates
            ("index", "rescaled", "centered"), interpolation ("bicubic", "bilinear"), antialias, cls_position and patch_norms as in
            `VisionConfig`.

    Raises:
        IncompatibleConfig, FlagError, ConfigError: for what cannot be built.
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
        own = {"image_size": image_size, "patch_size": patch_size, "channels": channels, "num_classes": num_classes}
        fields = vision_from_flags({**own, **flags, "attn_layers": config_of(attn_layers, "ViTransformerWrapper")})
        self._build(VisionConfig.model_validate(fields), attn_layers)

    @classmethod
    def from_config(cls, config: VisionConfig | Mapping[str, Any]) -> Self:
        """The model of a `VisionConfig` (or of its fields as a dict). Raises IncompatibleConfig with every problem."""
        model = cls.__new__(cls)
        model._build(VisionConfig.model_validate(config))
        return model

    def _build(self, config: VisionConfig, attn_layers: ConfiguredLayers | None = None) -> None:
        """Validate the config, then build what it describes. attn_layers: its layers, where they exist already."""
        require(model_report(config))
        super().__init__()
        self.config, dim = config, config.layers.dim
        layers = layers_of_model(config.stack, config.trained_patches, dim, attn_layers)
        self.patch_embedding = PatchEmbedding(config.channels, config.patch_size, dim, config.patch_norms)
        self.patch_table = _table(config)
        self.emb_norm = Norm(dim, unit_offset=False) if config.post_emb_norm else None
        self.emb_dropout = Dropout(config.emb_dropout)
        self.cls_token = nn.Parameter(torch.randn(1, dim) * INIT_STD) if config.has_cls else None
        registers = config.num_register_tokens
        self.register_tokens = nn.Parameter(torch.randn(registers, dim) * INIT_STD) if registers else None
        self.attn_layers = layers
        width = dim * (2 if config.pool == "cls_mean" else 1)
        self.to_logits = None if config.num_classes is None else nn.Linear(width, config.num_classes)
        self.axes = position_axes(layers.position_schemes)

    @property
    def extra_tokens(self) -> int:
        """E: the cls token and the registers, in this order before the patches."""
        return self.config.num_register_tokens + (self.cls_token is not None)

    def describe(self) -> str:
        """A summary: which schemes apply where, which backend runs and why, dtype, parameters, trained size."""
        return describe_image(self, self.config, self.axes)

    def positions(self, grid: tuple[int, int], device: torch.device | None = None) -> Tensor | None:
        """[1 E+T 2] positions for schemes with two axes, [1 E+T] with one; None where no scheme reads positions or they
        equal the place in the sequence."""
        extra = self.extra_tokens
        if self.axes == 0 or (self.axes == 1 and extra == 0):
            return None
        if self.axes == 1:
            patches = torch.arange(grid[0] * grid[1], device=device)
        else:
            patches = patch_positions(grid, self.config.grid, self.config.coordinates, device)
        return torch.cat([patches.new_zeros(extra, *patches.shape[1:]), patches])[None]

    def encode(self, pixel_values: Tensor) -> EncodedImage:
        """[B C H W] -> every token after the last layer, by kind. Raises InputError before any kernel runs."""
        grid, layers, extra = self.patch_embedding.grid(pixel_values), self.attn_layers, self.extra_tokens
        B, T = pixel_values.shape[0], grid[0] * grid[1]
        positions = self.positions(grid, pixel_values.device)
        layout = layers.layout(B, extra + T, pixel_values.device, positions=positions)
        x = self.patch_embedding(pixel_values)
        if self.patch_table is not None:
            x = x + self.patch_table(grid)
        for scheme in layers.position_schemes:  # of patches alone: the other tokens have no position
            x = scheme.embed(x, layout.positions[:, extra:])
        x = self.emb_dropout(x if self.emb_norm is None else self.emb_norm(x))
        beside = [t.to(x.dtype).expand(B, -1, -1) for t in (self._cls(), self.register_tokens) if t is not None]
        x = torch.cat([*beside, x], dim=1)
        x = layers.run(x, layout)
        first = extra - self.config.num_register_tokens
        return EncodedImage(x[:, extra:], x[:, 0] if first else None, x[:, first:extra], grid)

    def _cls(self) -> Tensor | None:
        """[1 M] the cls token as it enters the layers."""
        row = None if self.patch_table is None else self.patch_table.cls_row()
        return self.cls_token if self.cls_token is None or row is None else self.cls_token + row

    def pooled(self, encoded: EncodedImage) -> Tensor:
        """What the head reads: [B M], or [B 2M] with pool="cls_mean"."""
        mean = encoded.patches.mean(dim=1)
        if encoded.cls is None:
            return mean
        return encoded.cls if self.config.pool == "cls" else torch.cat([encoded.cls, mean], dim=-1)

    @answers("ViTransformerWrapper.forward")
    def forward(self, pixel_values: Tensor, return_embeddings: bool = False) -> Tensor:
        """Images [B C H W] -> logits [B, num_classes], or the patches' hidden states [B T M] with return_embeddings.

        H and W are any multiples of patch_size. `encode` returns every token. Raises InputError before any kernel runs.
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
