"""What is judged: a stack of layers, its schemes, the model around it, and the use it is meant for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from x_positional.config.layers import AttentionConfig, ContinuousConfig, LayerConfig, LayersConfig, ModelConfig
from x_positional.config.vision import VisionConfig
from x_positional.schemes.absolute import Absolute
from x_positional.schemes.base import AttentionWindow, Dims, PositionScheme
from x_positional.schemes.none import NoPE
from x_positional.schemes.registry import Custom, SchemeConfig

CacheName = Literal["static", "growing", "sliding"]


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a model is meant to do; None is not asked.

    cache: the kind to decode with; cache_window: `new_cache(window=)`. decode_to: prompt and new tokens together.
    device: "cpu", "cuda". train: gradients are wanted.
    """

    cache: CacheName | None = None
    cache_window: int | None = None
    decode_to: int | None = None
    device: str | None = None
    dtype: torch.dtype | None = None
    train: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of layer of a stack. stack: every kind; blind: an encoder none of which tells one order of tokens from
    another. layers: the config, with what this kind says. schemes: by name, one of each part that can be built, without
    memory for parameters. model: None for layers alone."""

    layers: LayersConfig
    parts: tuple[SchemeConfig, ...]
    stack: tuple[LayerConfig, ...]
    blind: bool = False
    named: tuple[tuple[str, PositionScheme], ...] = ()
    max_seq_len: int | None = None
    embed_dim: int | None = None
    model: ModelConfig | ContinuousConfig | VisionConfig | None = None
    use: Use = Use()

    @property
    def dims(self) -> Dims:
        return self.layers.dims(self.max_seq_len, self.embed_dim)

    @property
    def value_dim(self) -> int:
        """Width of a head's values."""
        mla, head_dim = self.layers.attn.mla, self.layers.head_dim
        return head_dim if mla is None else mla.value_dim or head_dim - mla.rope_dim

    @property
    def attention_window(self) -> AttentionWindow:
        """What this kind of layer sees."""
        return AttentionWindow(size=self.layers.window, chunk=self.layers.chunk, keep_first=self.layers.keep_first)

    @property
    def schemes(self) -> list[PositionScheme]:
        return [scheme for _, scheme in self.named]

    def names(self, which: Callable[[PositionScheme], bool]) -> list[str]:
        """The names of some of the schemes."""
        return [name for name, scheme in self.named if which(scheme)]

    @property
    def kinds(self) -> list[str]:
        """The names of the schemes, a class name for an instance."""
        return [part_name(part) for part in self.parts]


def part_name(part: SchemeConfig) -> str:
    """The name in `position=`, or the class of an instance."""
    return type(part.scheme).__name__ if isinstance(part, Custom) else part.kind


def resolve_kinds(config: LayersConfig, max_seq_len: int | None) -> tuple[LayerConfig, ...]:
    """The kinds of layers with the schemes that apply: those chosen; otherwise a learned table where a length is known, and
    nothing elsewhere."""
    default: tuple[SchemeConfig, ...] = (NoPE(),) if max_seq_len is None else (Absolute(),)
    kinds = config.layer_kinds()
    return tuple(k.model_copy(update={"position": default}) if k.position is None else k for k in kinds)


def features(attn: AttentionConfig, window: AttentionWindow | None = None) -> frozenset[str]:
    """What a layer has that some backends lack. reach: of self-attention."""
    on = {
        "softcap": attn.softcap is not None,
        "sinks": attn.sinks,
        "dropout": attn.dropout > 0,
        "chunk": window is not None and window.chunk is not None,
        "keep_first": window is not None and window.keep_first > 0,
    }
    return frozenset(name for name, is_on in on.items() if is_on)
