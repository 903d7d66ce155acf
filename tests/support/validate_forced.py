"""Models built with every gate open, and configs with one setting changed: what the oracles of the validator work on."""

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from pydantic import BaseModel
from torch import Tensor

from x_positional.attention.backends import Choice, choose
from x_positional.attention.tokens import TokenLayout
from x_positional.config.models import ModelConfig
from x_positional.errors import BackendError
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.schemes import Absolute, Alibi, Axial, Mixed, Rope
from x_positional.schemes.base import AttentionWindow

BATCH, CONTEXT = 2, 5
FORCED = "forced"
"""The reason of a backend that does not support the layer."""
CLOSE = 1e-4


class Gates(ExitStack):
    """Inside it nothing is refused: not by the validator, not by the flags, not by `choose`, not by Chain."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        fields = {name: getattr(config, name) for name in ModelConfig.model_fields}
        for name, value in {
            "models.language.require": lambda report: None,
            "models.stacks.require": lambda report: None,
            "models.language.model_from_flags": lambda num_tokens, max_seq_len, flags: {
                **fields,
                "layers": flags["attn_layers"],
            },
            "models.build.choose": open_choose,
            "schemes.compose.chain_problems": lambda parts: [],
        }.items():
            self.enter_context(patch(f"x_positional.{name}", value))


def open_choose(requested: str, *rest) -> Choice:
    """What was asked for, whether or not it can run it."""
    try:
        return choose(requested, *rest)
    except BackendError:
        return Choice(requested, FORCED)


def forced(config: ModelConfig) -> TransformerWrapper:
    """The model with every parameter set by its name alone, so that equal names are equal numbers."""
    with Gates(config):
        model = build_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                raise ValueError(f"{name} starts at {parameter}")
            noise = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=noise) * 1.5 / fan_in**0.5)
            if name.endswith("delta"):  # polar phases live in [-2 pi, 0]
                parameter.copy_(-parameter.abs())
    return model.eval()


def caches_of_kept_tokens() -> AbstractContextManager[Any]:
    """Inside it, `new_cache` accepts keep_first beside every scheme."""
    return patch("x_positional.modules.stack.keep_first_problem", lambda layers: None)


def at_positions(model: TransformerWrapper, tokens: Tensor, positions: Tensor, context: dict[str, Tensor]) -> Tensor:
    """The output at these positions, also for layers with keep_first, which refuse positions."""
    with patch("x_positional.attention.planner._moved", moved_as_given):
        return model(tokens, positions=positions, **context)


def moved_as_given(layout: TokenLayout, window: AttentionWindow) -> TokenLayout | None:
    """With keep_first, positions stop growing at those of the farthest query that is not moved."""
    if window.farthest_query is None or layout.span <= window.farthest_query + 1:
        return None
    return replace(layout, positions=layout.positions[:, layout.index[0].clamp(max=window.farthest_query)])


def tokens_of(config: ModelConfig, length: int) -> Tensor:
    return torch.randint(config.num_tokens, (BATCH, length), generator=torch.Generator().manual_seed(length))


def context_of(config: ModelConfig) -> dict[str, Tensor]:
    layers = config.layers
    if not (layers.cross_attend or layers.kind == "cross_attender"):
        return {}
    noise = torch.Generator().manual_seed(5)
    given = {"context": torch.randn(BATCH, CONTEXT, layers.context_dim or layers.dim, generator=noise)}
    positions = layers.kind == "cross_attender" and any(part.kind != "none" for part in layers.position or ())
    return given | ({"context_positions": torch.arange(CONTEXT)} if positions else {})


def far(a: Tensor, b: Tensor, close: float = CLOSE) -> bool:
    """Different by more than `close` of the larger one's scale, or not finite."""
    a, b = a.detach(), b.detach()
    scale = 1 + max(float(a.abs().max()), float(b.abs().max()))
    return not float((a - b).abs().max()) <= close * scale


Path = tuple[str | int, ...]
MEANT_FOR_KERNELS = {"backend", "flash"}
MEANT_FOR_THE_START = {"bias_init", "init", "scale_init", "threshold_init", "uniform_init"}
CANCELS = {"center"}  # xPos: the same in queries and keys


def has_no_effect_by_design(config: ModelConfig, path: Path) -> bool:
    """Settings that say how, not what; that only set initial values; and those that repeat what the default means."""
    layers, leaf = config.layers, path[-1]
    if leaf in MEANT_FOR_KERNELS | MEANT_FOR_THE_START | CANCELS:
        return True
    if (
        leaf == "pattern" and len(layers.pattern or ()) <= layers.depth
    ):  # its entries may be equal, or those of the stack
        return True
    value, natural = at(config, path), {"decoder": ("causal", "symmetric")}.get(layers.kind, ("symmetric",))
    meant = {
        "kv_heads": (layers.heads,),
        "heads": (layers.heads,),
        "context_dim": (layers.dim,),
        "emb_dim": (layers.dim,),
        "position": ((Absolute(),),),
        "final_norm": (layers.norm_place != "post",) if layers.norm.kind != "none" else (),
        "variant": natural,
        "gate_bias": (layers.ff.bias,) if layers.ff.glu else (),
        "cross_attend": (layers.kind == "cross_attender",),
    }
    own: Any = at(config, path[:3]) if path[1:2] == ("pattern",) and len(path) > 3 else layers
    hidden = leaf == "window" and own.window + own.keep_first >= config.max_seq_len  # `check` warns
    part = at(config, path[:-1])
    if isinstance(part, Rope | Axial | Mixed):
        meant["dim"] = (layers.head_dim,)
    if isinstance(part, Mixed):  # theta is where its frequencies start
        meant["theta"] = (part.theta,)
    if (
        isinstance(part, Rope) and part.kind == "rope" and len(part.sections or ()) > 1
    ):  # text is the same on every axis
        meant |= {"sections": (part.sections,), "section_order": (part.section_order,)}
    if isinstance(part, Alibi):  # learned slopes are a start; as many heads as slopes are said twice
        meant["slopes"] = (part.slopes,) if part.learned and part.slopes else ()
        meant["heads"] = (len(part.slopes),) if part.slopes else meant["heads"]
    return hidden or value in meant.get(str(leaf), ())


def at(config, path: Path):
    for step in path:
        config = config[step] if isinstance(step, int) else getattr(config, step)
    return config


def at_default(config: ModelConfig, path: Path) -> ModelConfig:
    """The config with the setting at its default. Entries of a pattern with equal schemes share one, and go on to share it."""
    default = type(at(config, path[:-1])).model_fields[str(path[-1])].default
    if path[1:2] != ("pattern",) or path[3:4] != ("position",) or len(path) < 6:
        return replaced(config, path, default)
    old, inside = at(config, path[:5]), path[5:]
    for i, entry in enumerate(config.layers.pattern):
        for j, part in enumerate(entry.position or ()):
            if part == old:
                config = replaced(config, ("layers", "pattern", i, "position", j, *inside), default)
    return config


def changed(config, before: Path = ()) -> Iterator[Path]:
    """Paths of the settings that have a default and are not at it."""
    for name, field in type(config).model_fields.items():
        value, path = getattr(config, name), (*before, name)
        if name in ("kind", "head_dim") or (not field.is_required() and value == field.default):
            continue
        if name == "position":
            yield from [path] if getattr(config, "pattern", ()) and not field.is_required() else []
            for i, part in enumerate(value):
                yield from changed(part, (*path, i))
        elif isinstance(value, BaseModel):
            yield from [] if field.is_required() else [path]
            yield from changed(value, path)
        elif name == "pattern":
            yield path
            for i, entry in enumerate(value):
                yield from changed(entry, (*path, i))
        elif not field.is_required():
            yield path


def unwindowed(config: ModelConfig) -> ModelConfig:
    """The same model, whose layers see every earlier token."""
    everything = {"window": None, "chunk": None, "keep_first": 0}
    layers = config.layers.model_copy(update=everything)
    entries = tuple(entry.model_copy(update=everything) for entry in layers.pattern or ())
    return replaced(config, ("layers",), layers.model_copy(update={"pattern": entries}))


def replaced(config: Any, path: Path, value: Any) -> Any:
    """The config with another value at a path."""
    step: Any = path[0]
    rest = path[1:]
    if isinstance(config, tuple):
        return tuple(replaced(item, rest, value) if i == step else item for i, item in enumerate(config))
    old = getattr(config, step)
    return config.model_copy(update={step: replaced(old, rest, value) if rest else value})
