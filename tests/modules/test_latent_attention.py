"""Latent attention against the formula head by head, its two ways of computing against each other, every scheme and backend."""

import math
import re
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.support.small_models import close, decoder, ids
from x_positional import TransformerWrapper, build_model, check
from x_positional.modules.latent_attention import LatentAttention
from x_positional.schemes import RopeEmbedding

MLA = {"kv_rank": 5, "rope_dim": 4, "value_dim": 3}
ROPE = {"kind": "rope", "dim": 4}
model = partial(decoder, attn={"mla": MLA})

SCHEMES = {
    "none": "none",
    "rope": ROPE,
    "interleaved": {**ROPE, "interleaved": True},
    "less than shared": {"kind": "rope", "dim": 2},
    "xpos": {"kind": "xpos", "dim": 4},
    "alibi": "alibi",
    "t5": "t5",
    "dynamic": "dynamic",
    "cope": "cope",
    "forgetting": "forgetting",
    "absolute": "absolute",
    "rope and alibi": [ROPE, "alibi"],
    "rope and temperature": [ROPE, {"kind": "temperature", "floor_scale": 3.0, "scale": 0.7}],
    "turned for each head": {"kind": "mixed", "dim": 4, "axes": 1},
    "rope and cope": [ROPE, "cope"],
    "learned": {**ROPE, "learned": True},
}


RUNS = [(name, backend) for backend in ("eager", "blockwise", "sdpa") for name in SCHEMES]
RUNS += [("rope", "flex"), ("rope and alibi", "flex"), ("cope", "flex")]  # slow where it is not compiled


def everywhere(absorbs: bool):
    """Both ways are there whatever is less work."""
    return patch.object(LatentAttention, "_absorbs", lambda self, queries, keys: absorbs)


@torch.no_grad()
@pytest.mark.parametrize("q_rank", [None, 7])
@pytest.mark.parametrize("unit_offset", [True, False])
def test_the_formula(q_rank: int | None, unit_offset: bool) -> None:
    """Head h: softmax((q_h . [rotated shared key ; W_h c]) / sqrt(D)) (V_h c), c the normed latent, in float64."""
    net = decoder(
        ROPE,
        depth=1,
        attn={"mla": {**MLA, "q_rank": q_rank, "eps": 0.3}, "bias": True},
        norm={"unit_offset": unit_offset},
    ).double()
    attn, rope = net.attn_layers.blocks[0].attn, net.attn_layers.schemes[0]
    assert isinstance(attn, LatentAttention)
    assert isinstance(rope, RopeEmbedding)
    T, H, D, R, N, E = 6, 3, 8, 4, 4, 3
    seen = {}
    attn.register_forward_hook(lambda module, args, out: seen.update(x=args[0][0], out=out[0]))
    net(ids(1, T))
    x = seen["x"]

    def normed(z, norm):
        return z / (z.square().mean(-1, keepdim=True) + 0.3).sqrt() * (norm.gain + (1 if unit_offset else 0))

    def turned(z):
        out = z.clone()
        for t in range(T):
            for i in range(R // 2):
                a = t * 10_000.0 ** (-2 * i / R)
                p, q = z[t, i], z[t, i + R // 2]
                out[t, i], out[t, i + R // 2] = p * math.cos(a) - q * math.sin(a), p * math.sin(a) + q * math.cos(a)
        return out

    source = x if q_rank is None else normed(x @ attn.to_q_latent.weight.T + attn.to_q_latent.bias, attn.q_latent_norm)
    down = x @ attn.to_kv_latent.weight.T + attn.to_kv_latent.bias
    c, shared = normed(down[:, :5], attn.kv_latent_norm), turned(down[:, 5:])
    heads = []
    for h in range(H):
        q = source @ attn.to_q.weight[h * D : (h + 1) * D].T
        q = torch.cat([turned(q[:, :R]), q[:, R:]], 1)
        rows = attn.to_kv.weight[h * (N + E) : (h + 1) * (N + E)]
        k, v = torch.cat([shared, c @ rows[:N].T], 1), c @ rows[N:].T
        scores = (q @ k.T / math.sqrt(D)).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(-1) @ v)
    expected = torch.cat(heads, 1) @ attn.to_out.weight.T + attn.to_out.bias
    for absorbs in (False, True):
        with everywhere(absorbs):
            net(ids(1, T))
        torch.testing.assert_close(seen["out"], expected, atol=1e-6, rtol=1e-6)  # tables are float32


@torch.no_grad()
@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_both_ways_in_every_scheme_and_backend(name: str, backend: str) -> None:
    position = SCHEMES[name]
    if backend in ("sdpa", "flex") and "cope" in str(position):
        assert not check(dim=24, depth=2, heads=3, head_dim=8, position=position, attn={"mla": MLA}, backend=backend).ok
        pytest.skip("cope needs whole rows of scores, so these backends refuse it")
    net, plain, tokens = model(position, backend=backend), model(position, backend="eager"), ids(2, 11)
    mask = torch.tensor([[False] * 3 + [True] * 8, [True] * 11])
    for absorbs in (False, True):
        with everywhere(absorbs):
            close(net(tokens), plain(tokens))
            close(net(tokens, mask=mask)[mask], plain(tokens, mask=mask)[mask])
    with everywhere(False):
        full = net(tokens)
    for absorbs in (False, True):
        cache = net.new_cache(2)
        with everywhere(absorbs):
            steps = [net(piece, cache=cache) for piece in tokens.split([4, 1, 1, 3, 2], dim=1)]
        close(torch.cat(steps, dim=1), full)


@torch.no_grad()
@pytest.mark.parametrize("reach", [{"window": 4}, {"chunk": 5}, {"window": 4, "keep_first": 2}], ids=str)
@pytest.mark.parametrize("absorbs", [False, True])
def test_windows_chunks_and_kept_tokens(reach: dict, absorbs: bool) -> None:
    net, tokens = model(ROPE, **reach), ids(2, 15)
    with everywhere(False):
        full = net(tokens)
    for cache in (net.new_cache(2), net.new_cache(2, max_len=15)):
        with everywhere(absorbs):
            steps = [net(piece, cache=cache) for piece in tokens.split([6, 1, 1, 1, 4, 2], dim=1)]
        close(torch.cat(steps, dim=1), full)


@torch.no_grad()
def test_a_cache_holds_latents() -> None:
    """rope_dim + kv_rank channels a token and layer, however many heads there are."""
    held = {}
    for name, net in {"latents": model(ROPE), "keys and values": decoder(ROPE)}.items():
        cache = net.new_cache(2, max_len=10)
        net(ids(2, 10), cache=cache)
        held[name] = cache.nbytes()
    assert held["latents"] * 2 * 3 * 8 == held["keys and values"] * (4 + 5)


def test_the_way_is_chosen_by_its_work() -> None:
    """Few queries into a long cache go into the latent space; a text that is read for the first time does not."""
    attn = LatentAttention(64, 16, 48, kv_rank=64, rope_dim=16, value_dim=32)
    assert attn._absorbs(1, 1000)
    assert not attn._absorbs(1000, 1000)
    assert not attn._absorbs(1, 1)
    assert not attn._absorbs(900, 1000)


def test_gradients_are_those_of_the_other_way() -> None:
    nets = [model(ROPE).double() for _ in range(2)]
    for net, absorbs in zip(nets, (False, True), strict=True):
        with everywhere(absorbs):
            net(ids(2, 9)).square().mean().backward()
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert a.grad is not None, name
        assert a.grad.abs().max() > 0, name
        torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=1e-6)


@torch.no_grad()
def test_sinks_and_soft_cap_and_scale() -> None:
    for extra in ({"sinks": True}, {"softcap": 2.0}, {"scale": 0.7}, {"out_bias": True}):
        net = decoder(ROPE, attn={"mla": MLA, **extra})
        tokens = ids(2, 8)
        full, cache = net(tokens), net.new_cache(2)
        with everywhere(True):
            close(torch.cat([net(piece, cache=cache) for piece in tokens.split(1, dim=1)], 1), full)


@torch.no_grad()
def test_beside_cross_attention() -> None:
    """Self-attention has latents, cross-attention has keys."""
    net, context = model(ROPE, cross_attend=True, kv_heads=1), torch.randn(2, 5, 24)
    tokens, cache = ids(2, 8), None
    full = net(tokens, context=context)
    cache = net.new_cache(2)
    steps = [net(piece, cache=cache, context=context) for piece in tokens.split([3, 1, 4], dim=1)]
    close(torch.cat(steps, dim=1), full)
    assert (full - net(tokens, context=context + 1)).abs().max() > 1e-3


@torch.no_grad()
def test_in_some_layers() -> None:
    """Layers with latents and layers with keys share one cache and one plan."""
    config = {
        "num_tokens": 13,
        "max_seq_len": 64,
        "layers": {
            "dim": 24,
            "depth": 4,
            "heads": 3,
            "head_dim": 8,
            "position": ROPE,
            "pattern": [{"attn": {"mla": MLA}, "window": 4}, {"attn": {"bias": True}}],
        },
    }
    net = build_model(config).eval()
    assert isinstance(net, TransformerWrapper)
    tokens, cache = ids(2, 12), net.new_cache(2)
    close(torch.cat([net(piece, cache=cache) for piece in tokens.split([5, 1, 1, 5], dim=1)], 1), net(tokens))
    assert type(net).from_config(net.config).config == net.config


@torch.no_grad()
def test_compiled_decoding() -> None:
    net, tokens = model(ROPE, depth=1), ids(2, 13)
    torch._dynamo.reset()
    compiled, cache = torch.compile(net, fullgraph=True, backend="eager"), net.new_cache(2)
    steps = [net(tokens[:, :6], cache=cache), *(compiled(t, cache=cache) for t in tokens[:, 6:].split(1, 1))]
    close(torch.cat(steps, 1), net(tokens))
    torch._dynamo.reset()


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Its numbers too: parameters that a token uses, and what a cache holds."""
    page = (Path(__file__).parents[2] / "docs" / "experts.md").read_text()
    known: dict = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, known)
    said = capsys.readouterr().out
    expert = 3 * 64 * 96
    total = int(re.search(r"parameters +([\d,]+),", said)[1].replace(",", ""))
    assert f"{total - 3 * 6 * expert:,} of them for one token" in said
    assert int(said.split()[-1]) == 2 * 101 * (24 + 8) * 4  # one slot more than tokens: padding goes there
