"""From a config to modules: the only place that knows both."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from x_positional.attention.backends import choose
from x_positional.config.layers import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    LayersConfig,
    MLAConfig,
    MoEConfig,
    NormConfig,
)
from x_positional.config.validate import layers_report, require
from x_positional.modules.attention import Attention, CrossAttention
from x_positional.modules.block import Around, Block
from x_positional.modules.experts import Experts, MixtureOfExperts, Router, Routing
from x_positional.modules.feedforward import FeedForward, Inner
from x_positional.modules.latent_attention import LatentAttention
from x_positional.modules.norms import Norm
from x_positional.modules.qk_norm import HeadNorm
from x_positional.modules.stack import LayerKind
from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.compose import Chain
from x_positional.schemes.registry import SchemeConfig


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
    return HeadNorm(attn.qk_norm, heads, head_dim, attn.qk_norm_eps, attn.qk_norm_bias, attn.qk_norm_unit_offset)


def build_feedforward(config: LayersConfig, ff: FeedForwardConfig) -> FeedForward | MixtureOfExperts:
    """The feedforward of one layer."""
    width = ff.dim or int(config.dim * ff.mult)
    inner = Inner(activation=ff.activation, glu=ff.glu, beta=ff.swish_beta, clamp=ff.glu_clamp, shift=ff.glu_shift)
    gate_bias = ff.gate_bias if ff.glu else None
    if ff.moe is None:
        return FeedForward(config.dim, width, inner, ff.bias, gate_bias, ff.dropout)
    moe = ff.moe
    experts = Experts(moe.experts, config.dim, width, inner, bias=ff.bias, up_bias=gate_bias, dropout=ff.dropout)
    shared = None if moe.shared is None else FeedForward(config.dim, moe.shared, inner, ff.bias, gate_bias, ff.dropout)
    gate = nn.Linear(config.dim, 1, bias=False) if moe.shared_gate else None
    return MixtureOfExperts(build_router(config.dim, moe), experts, weigh=moe.weigh, shared=shared, shared_gate=gate)


def build_router(dim: int, moe: MoEConfig) -> Router:
    """What chooses the experts of a token."""
    routing = Routing(
        top_k=moe.top_k,
        score=moe.score,
        renorm=moe.renorm,
        scale=moe.scale,
        groups=moe.groups,
        top_groups=moe.top_groups,
    )
    return Router(dim, moe.experts, routing, bias=moe.router_bias, correction=moe.correction)


def attention_settings(attn: AttentionConfig, dims: Dims) -> dict[str, Any]:
    """What self- and cross-attention of one layer are built with; norms are made anew each time."""
    return {
        "bias": attn.bias,
        "out_bias": attn.out_bias,
        "dropout": attn.dropout,
        "softcap": attn.softcap,
        "scale": attn.qk_norm_scale if attn.qk_norm == "l2" else attn.scale,
        "sinks": attn.sinks,
        "clip": attn.clip,
        "q_norm": build_head_norm(attn, dims.heads, dims.head_dim),
        "norm_after": attn.qk_norm_after,
        "k_norm": build_head_norm(attn, dims.kv_heads, dims.head_dim),
    }


def build_latent(config: LayersConfig, attn: AttentionConfig, mla: MLAConfig) -> LatentAttention:
    """Self-attention whose keys and values come from a latent."""
    dims, own = config.dims(), attn.model_copy(update={"qk_norm": None, "qk_norm_after": False, "clip": None})
    return LatentAttention(
        dims.dim,
        dims.heads,
        dims.head_dim,
        kv_rank=mla.kv_rank,
        rope_dim=mla.rope_dim,
        q_rank=mla.q_rank,
        eps=mla.eps,
        value_dim=mla.value_dim or dims.head_dim - mla.rope_dim,
        unit_offset=config.norm.unit_offset,
        **attention_settings(own, dims),
    )


def build_attention(config: LayersConfig, attn: AttentionConfig) -> Attention | LatentAttention:
    """The self-attention of one layer."""
    if attn.mla is not None:
        return build_latent(config, attn, attn.mla)
    dims = config.dims()
    return Attention(
        dims.dim,
        dims.heads,
        dims.kv_heads,
        dims.head_dim,
        position_projections=attn.position_projections,
        **attention_settings(attn, dims),
    )


def build_block(config: LayersConfig, attn: AttentionConfig, ff: FeedForwardConfig, first: bool = False) -> Block:
    """One block, without positions. first: the first of its stack."""
    dims = config.dims()
    sizes = (dims.dim, dims.heads, dims.kv_heads, dims.head_dim)
    around = Around(
        norm=partial(build_norm, config),
        place=config.norm_place,
        scale=config.residual_scale,
        layer_scale=config.layer_scale,
        dim=config.dim,
        attn_normed=config.first_norm or not first,
    )
    crosses, context_dim = config.cross_attend or config.kind == "cross_attender", config.context_dim or config.dim
    return Block(
        build_attention(config, attn) if config.kind != "cross_attender" else None,
        CrossAttention(*sizes, context_dim=context_dim, **attention_settings(attn, dims)) if crosses else None,
        build_feedforward(config, ff),
        around,
    )


def build_blocks(config: LayersConfig) -> list[Block]:
    """The blocks, without positions."""
    kinds = config.layer_kinds()
    of_layer = [kinds[layer % len(kinds)] for layer in range(config.depth)]
    return [
        build_block(config, kind.attn or config.attn, kind.ff or config.ff, first=layer == 0)
        for layer, kind in enumerate(of_layer)
    ]


def build_kinds(config: LayersConfig, positions: Positions) -> list[LayerKind]:
    """Scheme, reach and backend of every layer."""
    kinds = config.layer_kinds()
    of_layer = [kinds[layer % len(kinds)] for layer in range(config.depth)]
    return [
        LayerKind(
            scheme=scheme,
            window=kind.attention_window,
            choice=choose(
                config.backend,
                config.flash,
                scheme.capabilities().kernel,
                (kind.attn or config.attn).features(kind.attention_window),
            ),
        )
        for kind, scheme in zip(of_layer, positions.layers, strict=True)
    ]


def positions_of(config: LayersConfig, max_seq_len: int | None, embed_dim: int | None) -> Positions:
    """The schemes of a stack. Raises IncompatibleConfig with every problem of the config."""
    require(layers_report(config, max_seq_len, embed_dim))
    return build_positions(config.resolved_layers(max_seq_len), config.dims(max_seq_len, embed_dim), config.depth)
