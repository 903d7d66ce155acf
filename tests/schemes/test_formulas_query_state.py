"""Biases that read the input of the query: relative logits (Thinking Machines Lab 2026, Inkling) and T5's bias behind gates (Chi
et al. 2021, arXiv:2106.16138), pair by pair in plain floats, and against the layers of transformers with the same weights."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.naive_attention import Row, attended, dot, joined, naive, one_layer, random_qkv, worst
from x_positional.attention.backends import choose
from x_positional.attention.plan import LayerKind
from x_positional.modules.attention import Attention
from x_positional.modules.block import Block
from x_positional.modules.norms import Norm
from x_positional.modules.qk_norm import HeadNorm
from x_positional.modules.stack import AttentionLayers
from x_positional.schemes import GatedT5, GatedT5Bias, RelativeLogits, t5_buckets
from x_positional.schemes.base import AttentionWindow, Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.relative_logits import RelativeBias

HEADS, HEAD_DIM = 3, 5
TIGHT = 1e-12
ROUNDED = 1e-6
"""The factors of `log_floor` are kept in float32."""
UNEVEN = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 3, 70, 71, 9, 300, 2, 1]])


def relative(scheme: RelativeBias, x: Row, h: int) -> tuple[list[float], Any]:
    """The mixture of head h at a query with this input, and the bias at each distance."""
    C = scheme.profiles.shape[0]
    r = [dot(w, x) for w in scheme.to_states.weight.tolist()[h * C : (h + 1) * C]]
    if scheme.state_scale is not None and scheme.clip is not None:
        r = [a * b for a, b in zip(r, scheme.state_scale.tolist()[h], strict=True)]
        shorter = min(1.0, scheme.clip / (math.hypot(*r) + 1e-6))
        r = [a * shorter for a in r]
    columns = scheme.profiles.t().tolist()
    lowest = 0 if scheme.causal_only else 1 - scheme.extent

    def bias(distance: int) -> float:
        inside = lowest <= distance < scheme.extent
        return dot(r, columns[distance - lowest]) if inside else 0.0

    return r, bias


def gated(scheme: GatedT5Bias, x: Row, h: int) -> tuple[list[float], Any]:
    """The two gates of head h at a query with this input, and the bias at each distance."""
    share = x[h * scheme.share : (h + 1) * scheme.share]
    parameters = zip(scheme.to_gates.weight.tolist(), scheme.to_gates.bias.tolist(), strict=True)
    a, b = (1 / (1 + math.exp(-dot(w, share) - c)) for w, c in parameters)
    update, table = 1 - a, scheme.table.tolist()
    factor = 1 + update + (1 - update) * b * scheme.reset.tolist()[h]  # as the paper of WavLM writes it
    buckets, furthest, causal = scheme.buckets.num_buckets, scheme.buckets.max_distance, scheme.causal_only

    def bias(distance: int) -> float:
        return factor * table[int(t5_buckets(torch.tensor(distance), buckets, furthest, causal))][h]

    return [a, b], bias


def formula(config: SchemeConfig, layers: AttentionLayers, qkv: Any, positions: Tensor | None = None) -> Any:
    """tau_m (scale * q.k + bias), tau_m 1 without log_floor."""
    scheme, x = layers.kinds[0].scheme, joined(*qkv).tolist()
    floor = getattr(config, "log_floor", None)
    at = None if positions is None else positions.tolist()

    def logits(q: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        read = relative if isinstance(config, RelativeLogits) else gated
        place = range(len(x[b])) if at is None else at[b]
        bias = read(scheme, x[b][m], h)[1]  # type: ignore[arg-type]
        tau = 1.0 if floor is None else 1 + config.log_scale * math.log(max(1.0, (place[m] + 1) / floor))  # type: ignore[attr-defined]
        return [
            tau * (dot(q, k) / math.sqrt(len(q)) + bias(place[m] - place[n])) for k, n in zip(keys, seen, strict=True)
        ]

    return logits


CONFIGS = {
    "relative_logits": RelativeLogits(),
    "relative_logits, 4 distances": RelativeLogits(width=3, extent=4),
    "relative_logits, clipped": RelativeLogits(width=3, extent=6, clip=0.7),
    "relative_logits, scaled": RelativeLogits(width=3, extent=6, log_floor=2, log_scale=0.4),
    "gated_t5": GatedT5(),
    "gated_t5, 8 buckets to 6": GatedT5(num_buckets=8, max_distance=6),
}


def bound(config: SchemeConfig) -> float:
    return TIGHT if getattr(config, "log_floor", None) is None else ROUNDED


by_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@by_config
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", [None, UNEVEN], ids=["index", "uneven"])
def test_the_formula(config: SchemeConfig, causal: bool, positions: Tensor | None) -> None:
    layers, qkv = one_layer(config, HEADS, HEAD_DIM, causal=causal), random_qkv(HEADS, HEAD_DIM)
    expected = naive(qkv, formula(config, layers, qkv, positions), causal)
    assert worst(attended(layers, qkv, positions), expected) < bound(config)


@by_config
@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (1,) * 9, (2, 7)])
def test_in_chunks(config: SchemeConfig, chunks: tuple[int, ...]) -> None:
    layers, qkv = one_layer(config, HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    assert worst(attended(layers, qkv, chunks=chunks), naive(qkv, formula(config, layers, qkv))) < bound(config)


@by_config
@pytest.mark.parametrize("backend", ["blockwise", "sdpa", "flex"])
@pytest.mark.parametrize("causal", [True, False])
def test_every_backend_with_grouped_heads(config: SchemeConfig, backend: str, causal: bool) -> None:
    layers = one_layer(config, 4, HEAD_DIM, kv_heads=2, backend=backend, causal=causal)
    qkv = random_qkv(4, HEAD_DIM, kv_heads=2)
    assert worst(attended(layers, qkv), naive(qkv, formula(config, layers, qkv), causal)) < bound(config)


def test_clipping_shortens_some_queries_and_not_others() -> None:
    layers, qkv = one_layer(CONFIGS["relative_logits, clipped"], HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    norms = layers.kinds[0].scheme.query_state(joined(*qkv)).norm(dim=-1)
    assert (norms - 0.7).abs().min() < 1e-5
    assert norms.min() < 0.6


def two_layers(
    schemes: list[PositionScheme], windows: list[int | None], dim: int, kv_heads: int, causal: bool, **attn: Any
) -> AttentionLayers:
    """Two layers of attention alone, x + attention(x), in float64."""
    dims = Dims(dim=dim, heads=4, kv_heads=kv_heads, head_dim=HEAD_DIM, causal=causal, embed_dim=dim, max_seq_len=None)
    norm = partial(HeadNorm, "rms", 4, HEAD_DIM, unit_offset=False)

    def block() -> Block:
        norms = {"q_norm": norm(), "k_norm": norm()} if causal else {}
        attention = Attention(dim, 4, kv_heads, HEAD_DIM, **norms, **attn)
        return Block(attention, None, None, norm=partial(Norm, dim, "none"))

    blocks = [block() for _ in schemes]
    kinds = [
        LayerKind(scheme=s, window=AttentionWindow(size=w), choice=choose("auto", False, "bias"))
        for s, w in zip(schemes, windows, strict=True)
    ]
    return AttentionLayers(dims=dims, blocks=blocks, schemes=schemes, kinds=kinds, final_norm=None).double()


def perturbed(module: nn.Module, seed: int = 7) -> nn.Module:
    """In float64 and eval mode, every parameter random."""
    draw = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return module


@torch.no_grad()
def test_two_layers_of_inkling() -> None:
    """Its attention without the short convolutions: a layer with all tokens and scaled queries, and one with a window."""
    inkling = pytest.importorskip("transformers.models.inkling.modeling_inkling", reason="transformers before 5.24")
    from transformers.models.inkling.configuration_inkling import InklingTextConfig

    T, dim, window = 13, 22, 4
    config = InklingTextConfig(
        hidden_size=dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=HEAD_DIM,
        sliding_window_size=window,
        d_rel=3,
        rel_extent=6,
        log_scaling_n_floor=5,
        layer_types=["hybrid", "hybrid_sliding"],
        attn_implementation="eager",
    )
    theirs = [perturbed(inkling.InklingAttention(config, layer), layer) for layer in range(2)]
    made = Dims(dim=dim, heads=4, kv_heads=2, head_dim=HEAD_DIM, causal=True, embed_dim=dim)
    schemes: list[PositionScheme] = [
        RelativeLogits(width=3, extent=6, log_floor=5).build(made),
        RelativeLogits(width=3, extent=window).build(made),
    ]
    ours = two_layers(schemes, [None, window], dim, 2, True, scale=1 / HEAD_DIM)
    for block, scheme, layer in zip(ours.blocks, schemes, theirs, strict=True):
        for conv in (layer.k_sconv, layer.v_sconv):
            conv.conv1d.weight.zero_()
        block.attn.to_qkv.weight.copy_(torch.cat([layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight]))
        block.attn.to_out.weight.copy_(layer.o_proj.weight)
        block.attn.q_norm.gain.copy_(layer.q_norm.weight)
        block.attn.k_norm.gain.copy_(layer.k_norm.weight)
        scheme.to_states.weight.copy_(layer.r_proj.weight)
        scheme.profiles.copy_(layer.rel_logits_proj.proj)
    x = torch.randn(2, T, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    want = x
    for layer, size in zip(theirs, (T, window), strict=True):
        hidden = (distance < 0) | (distance >= size)
        mask = torch.zeros(T, T, dtype=torch.float64).masked_fill(hidden, float("-inf"))[None, None]
        want = want + layer(want, mask)[0]
    assert worst(ours(x), want) < 1e-5  # their norms, softmax and factors are computed in float32
    cache = ours.new_cache(2)
    assert worst(torch.cat([ours(part, cache=cache) for part in x.split([5, 1, 1, 6], 1)], 1), ours(x)) < TIGHT


@torch.no_grad()
def test_two_layers_of_wavlm() -> None:
    wavlm = pytest.importorskip("transformers.models.wavlm.modeling_wavlm")
    T, dim = 13, 4 * HEAD_DIM
    theirs = [perturbed(wavlm.WavLMAttention(dim, 4, num_buckets=8, max_distance=6), layer) for layer in range(2)]
    made = Dims(dim=dim, heads=4, kv_heads=4, head_dim=HEAD_DIM, causal=False, embed_dim=dim)
    schemes: list[PositionScheme] = [GatedT5(num_buckets=8, max_distance=6).build(made) for _ in theirs]
    ours = two_layers(schemes, [None, None], dim, 4, False, bias=True)
    for block, scheme, layer in zip(ours.blocks, schemes, theirs, strict=True):
        for name in ("weight", "bias"):
            parts = [getattr(p, name) for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
            getattr(block.attn.to_qkv, name).copy_(torch.cat(parts))
            getattr(block.attn.to_out, name).copy_(getattr(layer.out_proj, name))
            summed = getattr(layer.gru_rel_pos_linear, name).unflatten(0, (2, 4)).sum(1)  # they add up four and four
            getattr(scheme.to_gates, name).copy_(summed)
        scheme.table.copy_(theirs[0].rel_attn_embed.weight)  # the first layer's, for all
        scheme.reset.copy_(layer.gru_rel_pos_const.flatten())
    x = torch.randn(2, T, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want, shared = x, None
    for layer in theirs:
        out, _, shared = layer(want, position_bias=shared)
        want = want + out
    assert worst(ours(x), want) < TIGHT
