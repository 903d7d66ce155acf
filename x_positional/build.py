"""From a config to modules: the only place that knows both."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from x_positional.attention import Attention, CrossAttention
from x_positional.backends import choose
from x_positional.block import Around, Block
from x_positional.config import AttentionConfig, FeedForwardConfig, LayerConfig, LayersConfig, NormConfig
from x_positional.feedforward import FeedForward
from x_positional.head_norm import HeadNorm
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


def build_norm(config: LayersConfig, norm: NormConfig | None = None, dim: int | None = None) -> Norm:
    """One norm of the model's width, or another norm or width."""
    norm = config.norm if norm is None else norm
    return Norm(dim or config.dim, norm.kind, norm.eps, norm.bias, norm.unit_offset, norm.gain)


def build_head_norm(attn: AttentionConfig, heads: int, head_dim: int) -> HeadNorm | None:
    """The norm of queries or keys, None where there is none."""
    if attn.qk_norm is None:
        return None
    return HeadNorm(
        attn.qk_norm, heads, head_dim, attn.qk_norm_eps, attn.qk_norm_bias, attn.qk_norm_unit_offset
    )  # fmt: skip


def build_feedforward(config: LayersConfig, ff: FeedForwardConfig) -> FeedForward:
    """The feedforward of one layer."""
    inner = ff.dim or int(config.dim * ff.mult)
    return FeedForward(config.dim, inner, ff.activation, ff.glu, ff.bias, ff.gate_bias, ff.dropout)


def attention_settings(attn: AttentionConfig, dims: Dims) -> dict[str, Any]:
    """What self- and cross-attention of one layer are built with; norms are made anew each time."""
    return {
        "bias": attn.bias, "out_bias": attn.out_bias, "dropout": attn.dropout, "softcap": attn.softcap,
        "scale": attn.qk_norm_scale if attn.qk_norm == "l2" else attn.scale, "sinks": attn.sinks, "clip": attn.clip,
        "q_norm": build_head_norm(attn, dims.heads, dims.head_dim), "norm_after": attn.qk_norm_after,
        "k_norm": build_head_norm(attn, dims.kv_heads, dims.head_dim),
    }  # fmt: skip


def build_block(config: LayersConfig, attn: AttentionConfig, ff: FeedForwardConfig) -> Block:
    """One block, without positions."""
    dims = config.dims()
    sizes = (dims.dim, dims.heads, dims.kv_heads, dims.head_dim)
    around = Around(
        norm=partial(build_norm, config), place=config.norm_place, scale=config.residual_scale,
        layer_scale=config.layer_scale, dim=config.dim,
    )  # fmt: skip
    crosses, context_dim = config.cross_attend or config.kind == "cross_attender", config.context_dim or config.dim
    return Block(
        Attention(*sizes, **attention_settings(attn, dims)) if config.kind != "cross_attender" else None,
        CrossAttention(*sizes, context_dim=context_dim, **attention_settings(attn, dims)) if crosses else None,
        build_feedforward(config, ff), around,
    )  # fmt: skip


def build_blocks(config: LayersConfig) -> list[Block]:
    """The blocks, without positions."""
    kinds = config.layer_kinds()
    of_layer = [kinds[layer % len(kinds)] for layer in range(config.depth)]
    return [build_block(config, kind.attn or config.attn, kind.ff or config.ff) for kind in of_layer]


def build_kinds(config: LayersConfig, positions: Positions) -> list[LayerKind]:
    """Scheme, reach and backend of every layer."""
    kinds = config.layer_kinds()
    of_layer = [kinds[layer % len(kinds)] for layer in range(config.depth)]
    return [
        LayerKind(
            scheme=scheme, reach=kind.reach,
            choice=choose(config.backend, config.flash, scheme.capabilities().kernel,
                          features(kind.attn or config.attn, kind.reach)),
        )
        for kind, scheme in zip(of_layer, positions.layers, strict=True)
    ]  # fmt: skip


def positions_of(config: LayersConfig, max_seq_len: int | None, embed_dim: int | None) -> Positions:
    """The schemes of a stack. Raises IncompatibleConfig with every problem of the config."""
    require(layers_report(config, max_seq_len, embed_dim))
    return build_positions(resolve_kinds(config, max_seq_len), config.dims(max_seq_len, embed_dim), config.depth)
