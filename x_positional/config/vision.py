"""An image model as data: sizes in pixels, patches, positions and layers."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from x_positional.config.layers import LayersConfig, NormConfig
from x_positional.config.models import FileConfig
from x_positional.modules.patches import Coordinates, Interpolation
from x_positional.schemes.absolute import Absolute
from x_positional.schemes.none import NoPE
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.values import MAX_LENGTH, MAX_PIXELS, MAX_ROWS, MAX_WIDTH


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _encoder(value: Any) -> Any:
    """Layers of an image model are an encoder by default."""
    return {"kind": "encoder", **value} if isinstance(value, Mapping) else value


Pixels = Annotated[int, Field(gt=0, le=MAX_PIXELS)]
Size = Annotated[tuple[Pixels, Pixels], BeforeValidator(_pair)]
"""(height, width); one number is both."""


class VisionConfig(FileConfig):
    """An image model: patches, cls and register tokens, layers, head."""

    image_size: Size
    """Trained height and width in pixels. Other sizes run too."""
    patch_size: Size
    """Height and width of a patch in pixels."""
    layers: Annotated[LayersConfig, BeforeValidator(_encoder)]
    """The stack, an encoder. layers.position: "absolute", the default, is a learned table of the trained grid."""
    channels: int = Field(default=3, gt=0, le=MAX_WIDTH)
    """Channels of a pixel."""
    patch_norms: bool = True
    """Norms over the pixels of a patch and after their projection. False is a projection alone (ViT)."""
    patch_bias: bool = True
    """A bias of the patch projection."""
    num_classes: int | None = Field(default=None, gt=0, le=MAX_LENGTH)
    """Width of the head's logits. None is no head."""
    logits_bias: bool = True
    """A bias of the logits."""
    register_heads: bool = False
    """Each register has a head of its own, and the logits are the mean of all heads (DeiT's distillation token)."""
    pool: Literal["mean", "cls", "cls_mean", "attention"] = "mean"
    """What the head reads: the mean of the patches; a cls token, which is then added; both concatenated (DINOv2); or what a
    learned query attends to, see `AttentionPooling` (SigLIP)."""
    norm_pooled: bool = False
    """A norm of what the head reads, as those of the layers. With layers.final_norm=False it is the only one (CLIP)."""
    cls_position: bool = False
    """The learned table has a row for the cls token, its first."""
    num_register_tokens: int = Field(default=0, ge=0, le=MAX_ROWS)
    """Learned tokens before the patches."""
    register_position: bool = False
    """The learned table has a row for each register, before those of the patches (DeiT's distillation token)."""
    tokens_norm: NormConfig | None = None
    """A norm of every token before the first layer, cls token and registers included (CLIP). None is none."""
    post_emb_norm: bool = False
    """A LayerNorm without bias after the embedding of the patches."""
    emb_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the embedded patches."""
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    """In training, this share of each image's patches is left out at random, another one each time (FLIP: Li et al. 2023,
    arXiv:2212.00794). At least one patch stays."""
    coordinates: Coordinates = "index"
    """The row and column that schemes with two axes get for a patch, see `patch_positions`."""
    interpolation: Interpolation = "bicubic"
    """How a learned table is resized to a grid of another size."""
    antialias: bool = False
    """The table is resized with antialiasing."""

    @property
    def has_cls(self) -> bool:
        """Whether there is a cls token."""
        return self.pool in ("cls", "cls_mean")

    @property
    def table_extra(self) -> int:
        """Rows of the table before those of the patches."""
        return self.cls_position + (self.num_register_tokens if self.register_position else 0)

    @property
    def resizing(self) -> str:
        """How a learned table is resized, in words."""
        return f"{self.interpolation}, antialiased" if self.antialias else self.interpolation

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of the trained size."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def tables(self) -> list[Absolute]:
        """The learned tables asked for: at most one in a valid model."""
        chosen = self.layers.position
        return [Absolute()] if chosen is None else [part for part in chosen if isinstance(part, Absolute)]

    @property
    def stack(self) -> LayersConfig:
        """The layers without the table, which belongs to the patches: other tokens have no row in it."""
        parts: list[SchemeConfig] = [p for p in self.layers.position or () if not isinstance(p, Absolute)]
        if not parts and self.tables:
            parts = [NoPE()]
        return self.layers.model_copy(update={"position": tuple(parts)})

    @property
    def trained_patches(self) -> int:
        """Patches in an image of the trained size."""
        return self.grid[0] * self.grid[1]
