"""What an image model is, as data: sizes in pixels, patches, how positions are given, and the layers."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from x_positional.config.layers import FileConfig, LayersConfig
from x_positional.modules.patches import Coordinates, Interpolation
from x_positional.schemes.absolute import Absolute
from x_positional.schemes.none import NoPE
from x_positional.schemes.registry import SchemeConfig


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _encoder(value: Any) -> Any:
    """Layers of an image model are an encoder unless they say otherwise."""
    return {"kind": "encoder", **value} if isinstance(value, Mapping) else value


Size = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_pair)]
"""(height, width); one number is both."""


class VisionConfig(FileConfig):
    """Patches of an image, tokens beside them, layers, head.

    image_size: trained height and width in pixels; other sizes run too. patch_norms: norms over the pixels of a patch and
    after their projection; False is a projection alone (ViT). num_classes: None is no head. pool: what the head reads, the
    mean of the patches, a cls token, which then exists, or both side by side (DINOv2). cls_position: the learned table has a
    row for the cls token, its first. coordinates: what schemes with two axes are told of a patch (`patch_positions`).
    interpolation, antialias: how a learned table is resized to a grid that was not trained.
    layers.position: "absolute" is a table of the trained grid, and so is leaving it out.
    """

    image_size: Size
    patch_size: Size
    layers: Annotated[LayersConfig, BeforeValidator(_encoder)]
    channels: int = Field(default=3, gt=0)
    patch_norms: bool = True
    num_classes: int | None = Field(default=None, gt=0)
    pool: Literal["mean", "cls", "cls_mean"] = "mean"
    cls_position: bool = False
    num_register_tokens: int = Field(default=0, ge=0)
    post_emb_norm: bool = False
    emb_dropout: float = Field(default=0.0, ge=0, lt=1)
    coordinates: Coordinates = "index"
    interpolation: Interpolation = "bicubic"
    antialias: bool = False

    @property
    def has_cls(self) -> bool:
        """Whether there is a cls token."""
        return self.pool != "mean"

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
        """What asks for a learned table: at most one in a model that can be built."""
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
