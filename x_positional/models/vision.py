"""Images through an encoder: patches with positions, and a cls token and registers without.

B batch, C channels, H W pixels, T patches in raster order (row by row), K of them that enter the layers, E tokens that are no
patch, M model dim.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from x_positional.attention.maps import Maps, WithMaps
from x_positional.config.flags import vision_from_flags
from x_positional.config.flags.answers import answers
from x_positional.config.validate import model_report, require
from x_positional.config.validate.rules_vision import position_axes
from x_positional.config.vision import VisionConfig
from x_positional.models.build import build_feedforward, build_norm
from x_positional.models.describe import describe_image
from x_positional.models.saving import Saveable
from x_positional.models.stacks import ConfiguredLayers, config_of, layers_of_model
from x_positional.modules.dropout import Dropout
from x_positional.modules.norms import Norm
from x_positional.modules.patch_choice import PatchChoice, choose_patches
from x_positional.modules.patches import INIT_STD, PatchEmbedding, PatchTable, patch_positions
from x_positional.modules.pooling import AttentionPooling

Images: TypeAlias = Tensor | Sequence[Tensor]
"""[B C H W], or a list of [C H W], which may differ in size."""


class EncodedImage(NamedTuple):
    """The encoder's output, by kind of token."""

    patches: Tensor
    """[B K M], 0 where `mask` is False."""
    cls: Tensor | None
    """[B M]."""
    registers: Tensor
    """[B R M]."""
    grids: list[tuple[int, int]]
    """Rows and columns of each image. With all patches of equal images, patches.unflatten(1, grids[0]) is [B rows columns M]."""
    kept: Tensor | None = None
    """[B K] the numbers of the patches in raster order; None where all patches entered, in order."""
    mask: Tensor | None = None
    """[B K] bool, False where there is no patch; None where each slot holds one."""
    maps: Maps | None = None
    """[B H E+K E+K] the attention map of each layer, of the cls token, the registers and the patches; None unless requested."""


class ViTransformerWrapper(Saveable):
    """Images [B C H W] -> logits [B, num_classes], at any resolution that patch_size divides.

    A batch is a tensor [B C H W], or a list of images [C H W] of different sizes; each image gives what it gives alone.

    Schemes with two axes ("axial", "mixed") get (row, column), see `patch_positions`; schemes with one axis number the
    patches in raster order. "absolute" is a learned table of the trained grid, and the default where no scheme is chosen. The cls
    token and the registers come before the patches, at position 0 on every axis, so rotation leaves them unchanged. Nothing is
    added to them, except their own rows of the table with cls_position and register_position. Schemes of distances place them
    at the first patch.

    Args:
        image_size: trained height and width in pixels; one number is both.
        patch_size: likewise.
        attn_layers: an Encoder.
        channels: C.
        num_classes: None returns the pooled embedding [B M].
        flags: post_emb_norm, num_register_tokens, emb_dropout as in x-transformers; pool ("mean", "cls", "cls_mean",
            "attention"), coordinates ("index", "rescaled", "centered"), interpolation ("bicubic", "bilinear"), antialias,
            cls_position, register_position, register_heads, tokens_norm, norm_pooled, patch_dropout, patch_norms, patch_bias and
            logits_bias as in `VisionConfig`.

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
        self.patch_embedding = PatchEmbedding(
            config.channels, config.patch_size, dim, config.patch_norms, config.patch_bias
        )
        self.patch_table = _table(config)
        self.emb_norm = Norm(dim, unit_offset=False) if config.post_emb_norm else None
        self.emb_dropout = Dropout(config.emb_dropout)
        self.cls_token = nn.Parameter(torch.randn(1, dim) * INIT_STD) if config.has_cls else None
        registers = config.num_register_tokens
        self.register_tokens = nn.Parameter(torch.randn(registers, dim) * INIT_STD) if registers else None
        self.tokens_norm = None if config.tokens_norm is None else build_norm(config.layers, config.tokens_norm)
        self.attn_layers = layers
        self._build_head(config)
        self.axes = position_axes(layers.position_schemes)

    def _build_head(self, config: VisionConfig) -> None:
        """What turns hidden states into logits."""
        layers, classes = config.layers, config.num_classes
        width = layers.dim * (2 if config.pool == "cls_mean" else 1)
        self.pooling = None
        if config.pool == "attention":
            ff = build_feedforward(layers, layers.ff)
            self.pooling = AttentionPooling(layers.dim, layers.heads, layers.head_dim, build_norm(layers), ff)
        self.pooled_norm = build_norm(layers, dim=width) if config.norm_pooled else None
        self.to_logits = None if classes is None else nn.Linear(width, classes, bias=config.logits_bias)
        heads = config.num_register_tokens if config.register_heads and classes is not None else 0
        self.register_logits = nn.ModuleList(
            nn.Linear(layers.dim, classes or 0, bias=config.logits_bias) for _ in range(heads)
        )

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

    def encode(
        self,
        pixel_values: Images,
        *,
        mask: Tensor | None = None,
        kept: Tensor | None = None,
        return_attention: bool = False,
    ) -> EncodedImage:
        """Images -> every token after the last layer, by kind.

        Args:
            pixel_values: [B C H W], or a list of [C H W] of any sizes.
            mask: [B T] bool, True = keep: hidden patches are neither attended to nor pooled. T is that of the largest image;
                patches that an image lacks are hidden anyway.
            kept: [B K] the only patches to encode, by their number in raster order, such as those that are not masked in a masked
                autoencoder (He et al. 2022, arXiv:2111.06377). They keep their positions. A window counts them in this order.
            return_attention: fill `maps`.

        Raises:
            InputError: before any kernel runs.
        """
        embedding, layers, extra = self.patch_embedding, self.attn_layers, self.extra_tokens
        grids = embedding.grids(pixel_values)
        pixels = pixel_values if isinstance(pixel_values, Tensor) else pixel_values[0]
        dropout = self.config.patch_dropout if self.training else 0.0
        chosen = choose_patches(grids, mask, kept, dropout, pixels.device)
        count = max(rows * columns for rows, columns in grids) if chosen.index is None else chosen.index.shape[1]
        shown = None if chosen.mask is None else F.pad(chosen.mask, (extra, 0), value=True)
        positions = self._positions(grids, chosen, pixels.device)
        layout = layers.layout(len(grids), extra + count, pixels.device, mask=shown, positions=positions)
        x = chosen.take(self._embed(pixel_values, grids))
        for scheme in layers.position_schemes:  # of patches alone: the other tokens have no position
            x = scheme.embed(x, layout.positions[:, extra:])
        x = self.emb_dropout(x if self.emb_norm is None else self.emb_norm(x))
        beside = [t.to(x.dtype).expand(len(x), -1, -1) for t in self._tokens_before()]
        maps = layers.map_collector() if return_attention else None
        x = torch.cat([*beside, x], dim=1)
        x = layers.run(x if self.tokens_norm is None else self.tokens_norm(x), layout, maps=maps)
        first = extra - self.config.num_register_tokens
        patches = x[:, extra:] if chosen.mask is None else x[:, extra:].masked_fill(~chosen.mask[..., None], 0)
        return EncodedImage(
            patches,
            x[:, 0] if first else None,
            x[:, first:extra],
            grids,
            kept=chosen.index,
            mask=chosen.mask,
            maps=None if maps is None else maps.of_self,
        )

    def _positions(self, grids: list[tuple[int, int]], chosen: PatchChoice, device: torch.device) -> Tensor | None:
        """[1|B E+K] or [1|B E+K 2]: positions of the tokens before the patches, and of the patches that enter."""
        distinct, extra = dict.fromkeys(grids), self.extra_tokens
        if self.axes == 0 or (chosen.is_all and len(distinct) == 1):
            return self.positions(grids[0], device)
        of_grid = {grid: self._numbered(grid, device) for grid in distinct}
        rows = [of_grid[grid] for grid in (grids if len(distinct) > 1 else grids[:1])]
        every = pad_sequence(rows, batch_first=True)
        patches = chosen.take(every[:, extra:])
        return torch.cat([every[:1, :extra].expand(len(patches), *every[:1, :extra].shape[1:]), patches], dim=1)

    def _numbered(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """[E+T] or [E+T 2]: `positions`, also where they equal the place in the sequence."""
        positions = self.positions(grid, device)
        return torch.arange(grid[0] * grid[1], device=device) if positions is None else positions[0]

    def _embed(self, images: Images, grids: list[tuple[int, int]]) -> Tensor:
        """[B T M]: all patches with their rows of the learned table, 0 where an image has fewer."""
        table = self.patch_table
        rows = {} if table is None else {grid: table(grid) for grid in dict.fromkeys(grids)}
        if isinstance(images, Tensor):
            x = self.patch_embedding(images)
            return x + rows[grids[0]] if rows else x
        each = [self.patch_embedding(image[None])[0] for image in images]
        return pad_sequence(
            [x + rows[grid] if rows else x for x, grid in zip(each, grids, strict=True)], batch_first=True
        )

    def _tokens_before(self) -> list[Tensor]:
        """[1 M] the cls token and [R M] the registers as they enter the layers, those that there are."""
        cls, registers, config = self.cls_token, self.register_tokens, self.config
        if self.patch_table is not None and config.table_extra:
            rows = self.patch_table.extra_rows()
            cls = cls + rows[:1] if cls is not None and config.cls_position else cls
            registers = (
                registers + rows[-len(registers) :] if registers is not None and config.register_position else registers
            )
        return [tokens for tokens in (cls, registers) if tokens is not None]

    def pooled(self, encoded: EncodedImage) -> Tensor:
        """What the head reads: [B M], or [B 2M] with pool="cls_mean"."""
        pooled = self._pool(encoded)
        return pooled if self.pooled_norm is None else self.pooled_norm(pooled)

    def _pool(self, encoded: EncodedImage) -> Tensor:
        patches, mask = encoded.patches, encoded.mask
        if self.pooling is not None:
            return self.pooling(patches, mask)
        mean = patches.mean(dim=1) if mask is None else patches.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        if encoded.cls is None:
            return mean
        return encoded.cls if self.config.pool == "cls" else torch.cat([encoded.cls, mean], dim=-1)

    @answers("ViTransformerWrapper.forward")
    def forward(
        self,
        pixel_values: Images,
        return_embeddings: bool = False,
        *,
        mask: Tensor | None = None,
        kept: Tensor | None = None,
        return_attention: bool = False,
    ) -> Tensor | WithMaps:
        """Images -> logits [B, num_classes], or the patches' hidden states [B K M] with return_embeddings.

        Args:
            pixel_values: [B C H W], or a list of [C H W]; H and W are any multiples of patch_size.
            return_embeddings: return hidden states, 0 where an image has no patch. `encode` returns every token.
            mask, kept: which patches enter the layers, as in `encode`.
            return_attention: return the attention maps too, see `EncodedImage.maps`.

        Raises:
            InputError: before any kernel runs.
        """
        encoded = self.encode(pixel_values, mask=mask, kept=kept, return_attention=return_attention)
        out = encoded.patches if return_embeddings else self._logits(encoded)
        return out if encoded.maps is None else (out, encoded.maps)

    def _logits(self, encoded: EncodedImage) -> Tensor:
        """[B, num_classes], or what the head would read."""
        pooled = self.pooled(encoded)
        if self.to_logits is None:
            return pooled
        logits = self.to_logits(pooled)
        for i, head in enumerate(self.register_logits):
            logits = logits + head(encoded.registers[:, i])
        return logits / (1 + len(self.register_logits)) if len(self.register_logits) else logits


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
        extra=config.table_extra,
    )
