"""From a config to modules: the only place that knows both."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from x_positional.attention.backends import choose
from x_positional.attention.cross import CrossAttentionKind
from x_positional.attention.plan import LayerKind
from x_positional.config.layers import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    LayersConfig,
    MLAConfig,
    MoEConfig,
    NormConfig,
)
from x_positional.modules.attention import Attention, CrossAttention
from x_positional.modules.block import Block
from x_positional.modules.experts import Experts, MixtureOfExperts, Router
from x_positional.modules.feedforward import FeedForward, GatedActivation
from x_positional.modules.latent_attention import LatentAttention
from x_positional.modules.norms import Norm
from x_positional.modules.qk_norm import HeadNorm
from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.compose import Chain
from x_positional.schemes.registry import SchemeConfig


@dataclass(frozen=True)
class Positions:
    """The position schemes of a stack."""

    parts: list[PositionScheme]
    """The distinct schemes, which own parameters."""
    layers: list[PositionScheme]
    """One a layer: a part, or a Chain of parts."""


def build_positions(kinds: tuple[LayerConfig, ...], dims: Dims, depth: int) -> Positions:
    """Schemes that layers share are built once, schemes per layer once per layer; a Chain combines them where a layer has
    several. Layers share a scheme if their configs are equal and stand at the same place of the list."""
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
    """A norm of the model, unless another config or width is given."""
    norm = config.norm if norm is None else norm
    return Norm(dim or config.dim, norm.kind, norm.eps, norm.bias, norm.unit_offset, norm.gain)


def build_head_norm(attn: AttentionConfig, heads: int, head_dim: int) -> HeadNorm | None:
    """The norm of queries or keys, None where there is none."""
    if attn.qk_norm is None:
        return None
    return HeadNorm(attn.qk_norm, heads, head_dim, attn.qk_norm_eps, attn.qk_norm_bias, attn.qk_norm_unit_offset)


def build_feedforward(config: LayersConfig, ff: FeedForwardConfig) -> FeedForward | MixtureOfExperts:
    """The feedforward of one layer."""
    dim, width = config.dim, ff.dim or int(config.dim * ff.mult)
    activation = GatedActivation(
        activation=ff.activation, glu=ff.glu, beta=ff.swish_beta, clamp=ff.glu_clamp, shift=ff.glu_shift
    )
    gate_bias = ff.gate_bias if ff.glu else None
    if ff.moe is None:
        return FeedForward(dim, width, activation, ff.bias, gate_bias, ff.dropout)
    moe = ff.moe
    experts = Experts(moe.experts, dim, width, activation, bias=ff.bias, up_bias=gate_bias, dropout=ff.dropout)
    shared = None if moe.shared is None else FeedForward(dim, moe.shared, activation, ff.bias, gate_bias, ff.dropout)
    gate = nn.Linear(dim, 1, bias=False) if moe.shared_gate else None
    return MixtureOfExperts(build_router(dim, moe), experts, weigh=moe.weigh, shared=shared, shared_gate=gate)


def build_router(dim: int, moe: MoEConfig) -> Router:
    """What selects the experts of a token."""
    return Router(
        dim,
        moe.experts,
        top_k=moe.top_k,
        score=moe.score,
        renorm=moe.renorm,
        scale=moe.scale,
        groups=moe.groups,
        top_groups=moe.top_groups,
        group_best=moe.group_best,
        bias=moe.router_bias,
        correction=moe.correction,
    )


def attention_settings(attn: AttentionConfig, dims: Dims) -> dict[str, Any]:
    """Keyword arguments that self- and cross-attention of a layer have in common, with new norms at each call."""
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
    dims, self_attention = config.dims(), config.kind != "cross_attender"
    sizes = (dims.dim, dims.heads, dims.kv_heads, dims.head_dim)
    width, settings = context_width(config), attention_settings(attn, dims)
    return Block(
        build_attention(config, attn) if self_attention else None,
        CrossAttention(*sizes, context_dim=width, **settings) if width is not None else None,
        build_feedforward(config, ff),
        norm=partial(build_norm, config),
        norm_place=config.norm_place,
        residual_scale=config.residual_scale,
        layer_scale=config.layer_scale,
        dim=config.dim,
        first_norm=config.first_norm or not first,
    )


def context_width(config: LayersConfig) -> int | None:
    """Channels that cross-attention reads; None without cross-attention."""
    return (config.context_dim or config.dim) if config.cross_attend or config.kind == "cross_attender" else None


def build_blocks(config: LayersConfig) -> list[Block]:
    """The blocks, without positions."""
    return [
        build_block(config, kind.attn or config.attn, kind.ff or config.ff, first=layer == 0)
        for layer, kind in enumerate(of_layers(config))
    ]


def build_final_norm(config: LayersConfig) -> Norm | None:
    """The norm after the last block, None where there is none."""
    return build_norm(config) if config.ends_normed else None


def build_cross(config: LayersConfig) -> CrossAttentionKind | None:
    """What cross-attention reads and its backend; None without it."""
    width = context_width(config)
    if width is None:
        return None
    return CrossAttentionKind(width, choose(config.backend, config.flash, "fused", config.attn.features()))


def of_layers(config: LayersConfig) -> list[LayerConfig]:
    """The config of every layer."""
    kinds = config.layer_kinds()
    return [kinds[layer % len(kinds)] for layer in range(config.depth)]


def build_kinds(config: LayersConfig, positions: Positions) -> list[LayerKind]:
    """Scheme, window and backend of every layer."""
    kinds = []
    for kind, scheme in zip(of_layers(config), positions.layers, strict=True):
        needed = (kind.attn or config.attn).features(kind.attention_window)
        choice = choose(config.backend, config.flash, scheme.capabilities().kernel, needed)
        kinds.append(LayerKind(scheme=scheme, window=kind.attention_window, choice=choice))
    return kinds


def positions_of(config: LayersConfig, max_seq_len: int | None, embed_dim: int | None) -> Positions:
    """The schemes of a stack, each built once. max_seq_len, embed_dim: those of the model around it, None where there is none."""
    return build_positions(config.resolved_layers(max_seq_len), config.dims(max_seq_len, embed_dim), config.depth)
