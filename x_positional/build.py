"""From a config to modules: the only place that knows both."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from x_positional.attention import Attention, CrossAttention
from x_positional.backends import choose
from x_positional.block import Block
from x_positional.config import LayerConfig, LayersConfig
from x_positional.feedforward import FeedForward
from x_positional.norms import Norm
from x_positional.registry import SchemeConfig
from x_positional.scheme import Dims, PositionScheme
from x_positional.schemes.compose import Chain
from x_positional.transformer import LayerKind
from x_positional.validate import features, layers_report, require, resolve_kinds


@dataclass(frozen=True)
class Positions:
    """parts: the distinct schemes, which own parameters. layers: one scheme (or Chain of parts) per layer."""

    parts: list[PositionScheme]
    layers: list[PositionScheme]


def build_positions(kinds: tuple[LayerConfig, ...], dims: Dims, depth: int) -> Positions:
    """Shared schemes once, per-layer schemes once per layer, combined by Chain where there are several. Layers share a
    scheme where their configs are equal and stand in the same place of the list."""
    shared: list[tuple[int, SchemeConfig, PositionScheme]] = []
    chained: dict[tuple[int, ...], PositionScheme] = {}
    owned: list[PositionScheme] = []
    layers: list[PositionScheme] = []
    for layer in range(depth):
        row: list[PositionScheme] = []
        for place, part in enumerate(kinds[layer % len(kinds)].parts):
            scheme = next((s for at, known, s in shared if at == place and known == part), None)
            if scheme is None:
                scheme = part.build(dims)
                owned.append(scheme)
                if not scheme.per_layer:
                    shared.append((place, part, scheme))
            row.append(scheme)
        key = tuple(map(id, row))
        if key not in chained:
            chained[key] = row[0] if len(row) == 1 else Chain(*row)
        layers.append(chained[key])
    return Positions(owned, layers)


def build_norm(config: LayersConfig) -> Norm:
    """One norm of the model's width."""
    norm = config.norm
    return Norm(config.dim, norm.kind, norm.eps, norm.bias, norm.unit_offset)


def build_blocks(config: LayersConfig) -> list[Block]:
    """The blocks, without positions."""
    attn, ff, dims = config.attn, config.ff, config.dims()
    scale = attn.qk_norm_scale if attn.qk_norm == "l2" else attn.scale
    shared: dict[str, Any] = {
        "bias": attn.bias, "dropout": attn.dropout, "qk_norm": attn.qk_norm, "scale": scale, "softcap": attn.softcap,
        "sinks": attn.sinks,
    }  # fmt: skip
    sizes = (dims.dim, dims.heads, dims.kv_heads, dims.head_dim)
    crosses = config.cross_attend or config.kind == "cross_attender"
    blocks = []
    for _ in range(config.depth):
        blocks.append(Block(
            Attention(*sizes, **shared) if config.kind != "cross_attender" else None,
            CrossAttention(*sizes, context_dim=config.context_dim or config.dim, **shared) if crosses else None,
            FeedForward(
                config.dim, ff.dim or int(config.dim * ff.mult), ff.activation, ff.glu, ff.bias, ff.gate_bias, ff.dropout
            ),
            config.norm_place, partial(build_norm, config),
        ))  # fmt: skip
    return blocks


def build_kinds(config: LayersConfig, positions: Positions) -> list[LayerKind]:
    """Scheme, reach and backend of every layer."""
    kinds = config.layer_kinds()
    return [
        LayerKind(
            scheme=scheme, reach=kinds[layer % len(kinds)].reach,
            choice=choose(config.backend, config.flash, scheme.capabilities().kernel, features(config)),
        )
        for layer, scheme in enumerate(positions.layers)
    ]  # fmt: skip


def positions_of(config: LayersConfig, max_seq_len: int | None, embed_dim: int | None) -> Positions:
    """The schemes of a stack. Raises IncompatibleConfig with every problem of the config."""
    require(layers_report(config, max_seq_len, embed_dim))
    return build_positions(resolve_kinds(config, max_seq_len), config.dims(max_seq_len, embed_dim), config.depth)
