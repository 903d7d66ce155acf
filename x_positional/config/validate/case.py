"""What is checked: one kind of layer of a stack, its schemes, the model around it, and the intended use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, ValidationError

from x_positional.config.layers import LayersConfig
from x_positional.config.models import ContinuousConfig, ModelConfig
from x_positional.config.vision import VisionConfig
from x_positional.schemes.base import AttentionWindow, Dims, PositionScheme
from x_positional.schemes.registry import Config, SchemeConfig
from x_positional.schemes.suggest import messages
from x_positional.schemes.values import bound_problems

CacheName = Literal["static", "growing", "sliding"]
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


def _device(value: Any) -> str | None:
    try:
        return None if value is None else torch.device(value).type
    except (RuntimeError, TypeError):
        raise ValueError("unknown device. Use 'cpu' or 'cuda'") from None


def _dtype(value: Any) -> torch.dtype | None:
    dtype = DTYPES.get(value.removeprefix("torch.")) if isinstance(value, str) else value
    if value is None or isinstance(dtype, torch.dtype):
        return dtype
    raise ValueError(f"unknown dtype. Use {', '.join(map(repr, DTYPES))}")


class Use(Config):
    """What a model is meant to do. Whatever is None is not checked."""

    cache: CacheName | None = None
    """The kind of cache to decode with."""
    cache_window: int | None = Field(default=None, gt=0, strict=True)
    """Tokens that a sliding cache keeps: `new_cache(window=)`."""
    decode_to: int | None = Field(default=None, gt=0, strict=True)
    """Prompt and new tokens together."""
    device: Annotated[str | None, BeforeValidator(_device)] = None
    """The type of device, as "cpu" or "cuda"."""
    dtype: Annotated[torch.dtype | None, BeforeValidator(_dtype)] = None
    """Of the parameters, a torch.dtype or its name."""
    train: bool = False
    """Gradients are needed."""


def read_use(given: Mapping[str, Any]) -> tuple[Use, list[str]]:
    """The requested use without its invalid values, and a message for each of those."""
    if problems := bound_problems(given):
        return Use(), problems
    try:
        return Use.parse(given), []
    except ValidationError as error:
        invalid = {problem["loc"][0] for problem in error.errors(include_url=False)}
        valid = {name: value for name, value in given.items() if name not in invalid}
        return Use.parse(valid), messages(Use, error, given)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of layer, and everything that decides whether it works."""

    whole: LayersConfig
    """The stack as written, with its pattern."""
    layers: LayersConfig
    """The stack as if all layers were of this kind."""
    parts: tuple[SchemeConfig, ...]
    """The schemes of this kind."""
    windows: tuple[AttentionWindow, ...]
    """The distinct windows of the whole stack, in order of the layers."""
    use: Use
    """What the model is meant to do."""
    blind: bool = False
    """An encoder none of whose layers can tell one order of tokens from another."""
    partly_embedded: tuple[str, ...] = ()
    """Names of the schemes that change the embeddings but do not belong to every layer of the stack."""
    named: tuple[tuple[str, PositionScheme], ...] = ()
    """The schemes that can be built, by name, without memory for parameters."""
    everywhere: tuple[tuple[str, PositionScheme], ...] = ()
    """The same of all kinds of layers in the stack, whose shortest table ends the model's positions."""
    unbuilt: tuple[str, ...] = ()
    """Why the others cannot."""
    backend: str | None = None
    """The backend that runs it. None where none can."""
    max_seq_len: int | None = None
    """Trained length. None for layers alone."""
    embed_dim: int | None = None
    """Width of the embeddings. None is the width of the layers."""
    model: ModelConfig | ContinuousConfig | VisionConfig | None = None
    """The model around the layers. None for layers alone."""

    @property
    def dims(self) -> Dims:
        """The sizes that schemes are built with."""
        return self.layers.dims(self.max_seq_len, self.embed_dim)

    @property
    def attention_window(self) -> AttentionWindow:
        """What a query of this kind of layer sees."""
        return AttentionWindow(size=self.layers.window, chunk=self.layers.chunk, keep_first=self.layers.keep_first)

    @property
    def crosses(self) -> bool:
        """Whether there is cross-attention."""
        return self.layers.cross_attend or self.layers.kind == "cross_attender"

    @property
    def schemes(self) -> list[PositionScheme]:
        """The schemes that can be built."""
        return [scheme for _, scheme in self.named]

    def names(self, which: Callable[[PositionScheme], bool]) -> list[str]:
        """The names of the schemes for which `which` is true."""
        return [name for name, scheme in self.named if which(scheme)]

    @property
    def kinds(self) -> list[str]:
        """The names of all schemes of this kind."""
        return [part.label for part in self.parts]
