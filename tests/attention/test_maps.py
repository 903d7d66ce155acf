"""Attention maps: on every backend they are the attention that ran, and each of their rows, columns and zeros is where it is
documented to be."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.rounding import assert_same
from tests.support.small_models import close, decoder, ids
from x_positional import (
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    set_activation_checkpointing,
)
from x_positional.attention import plan
from x_positional.attention.backends.sdpa import Sdpa
from x_positional.attention.maps import by_token
from x_positional.models.language import TokenEncoder
from x_positional.testing import Sizes
from x_positional.testing.checks_maps import Replaced, replace_attention
from x_positional.testing.subject import Subject
from x_positional.testing.suite import run_check

MLA = {"mla": {"kv_rank": 5, "rope_dim": 4, "value_dim": 3}}
FUSED = {
    "rope": {},
    "grouped": {"kv_heads": 1},
    "window": {"window": 6},
    "chunk": {"chunk": 7},
    "kept first": {"window": 6, "keep_first": 2},
    "latent": {"position": {"kind": "rope", "dim": 4}, "attn": MLA},
    "biases": {"position": ["rope", "alibi"]},
    "t5": {"position": "t5"},
    "deberta": {"position": "deberta"},
    "gates": {"position": "forgetting"},
    "wide queries": {"position": "polar"},
    "encoder": {"kind": Encoder, "window": 6},
}
CAPPED = {"soft cap": {"attn": {"softcap": 3.0}}}
WHOLE = {"cope": {"position": ["rope", "cope"]}, "sinks": {"attn": {"sinks": True}, "kv_heads": 1}}
CASES = [
    *((name, backend) for backend in ("sdpa", "blockwise") for name in FUSED),
    *((name, "flex") for name in ("rope", "biases", "kept first")),
    *((name, backend) for backend in ("eager", "blockwise") for name in (*CAPPED, *WHOLE)),
    ("soft cap", "flex"),
]


def maps_of(net: TransformerWrapper, tokens: Tensor, **call) -> list[Tensor]:
    return net(tokens, return_attention=True, **call)[1]


@torch.no_grad()
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_maps_times_values_is_the_output_of_the_backend(name: str, backend: str) -> None:
    """In more than one block of queries, with padding, and with packed documents."""
    net = decoder(**{"backend": backend, **{**FUSED, **CAPPED, **WHOLE}[name]})
    long, short, mask = ids(1, 149), ids(2, 12), torch.arange(12) >= torch.tensor([[0], [5]])
    calls = [(long, {}), (short, {"mask": mask})]
    if "keep_first" not in net.config.layers.model_fields_set:
        calls.append((short, {"document_ids": torch.arange(12) // 5}))
    for tokens, call in calls[1:] if backend == "flex" else calls:  # uncompiled FlexAttention is slow
        out, maps = net(tokens, return_attention=True, **call)
        kinds, real = net.attn_layers.kinds, call.get("mask", torch.ones_like(tokens, dtype=torch.bool))
        assert torch.equal(out, net(tokens, **call))
        replace_attention(net, maps)
        close(net(tokens, **call)[real], out[real])
        net.attn_layers.kinds = kinds
        sums = torch.stack(maps).sum(-1)[:, real[:, None].expand(-1, 3, -1)]
        if name == "sinks":
            assert (sums < 1).all()
        else:
            close(sums, torch.ones_like(sums))


@torch.no_grad()
def test_the_maps_of_latent_attention() -> None:
    """Both ways of computing it have one map; it gives the values of each head their weights."""
    net = decoder(**FUSED["latent"])
    tokens = ids(2, 40)
    want, cache = torch.stack(maps_of(net, tokens)), net.new_cache(2)
    net(tokens[:, :38], cache=cache)
    assert net.attn_layers.blocks[0].attn._absorbs(2, 40)
    close(torch.stack(maps_of(net, tokens[:, 38:], cache=cache)), want[..., 38:, :])
    given: list[Tensor] = []
    joined: list[Tensor] = []

    class Spy(Sdpa):
        def attend(self, q, k, v, prepared, ops):
            given.append(v)
            return super().attend(q, k, v, prepared, ops)

    for block in net.attn_layers.blocks:
        block.attn.to_out.register_forward_pre_hook(lambda module, args: joined.append(args[0]))
    chosen = Replaced("sdpa", "it records the values", Spy())
    net.attn_layers.kinds = [replace(kind, choice=chosen) for kind in net.attn_layers.kinds]
    for found, values, out in zip(maps_of(net, tokens), given, joined, strict=True):
        close((found @ values).transpose(1, 2).flatten(-2), out)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "blockwise"])
def test_rows_with_sinks_sum_to_one_less_the_share_of_the_sink(backend: str) -> None:
    """A row that sums to r leaves 1 - r to the sink, whose odds double with each ln 2 of its logit."""
    net = decoder(attn={"sinks": True}, depth=1, backend=backend)
    tokens, sinks = ids(2, 9), net.attn_layers.blocks[0].attn.sinks
    before = maps_of(net, tokens)[0]
    sinks.add_(math.log(2))
    after = maps_of(net, tokens)[0]
    odds = [(1 - m.double().sum(-1)) / m.double().sum(-1) for m in (before, after)]
    assert_same(odds[1].float(), 2 * odds[0].float())
    sinks.fill_(-torch.inf)
    close(maps_of(net, tokens)[0], before / before.sum(-1, keepdim=True))
    assert (after.triu(1) == 0).all()


CACHED = {
    "grown": ({}, {}),
    "fixed": ({}, {"max_len": 25}),
    "ring": ({"window": 5}, {}),
    "narrowed": ({}, {"window": 5}),
    "kept first": ({"window": 5, "keep_first": 2}, {}),
    "chunks": ({"chunk": 6}, {}),
    "gates": ({"position": "forgetting", "window": 5}, {}),
    "rows": ({"position": ["rope", "cope"], "window": 5}, {}),
    "sinks": ({"attn": {"sinks": True}, "kv_heads": 1}, {}),
}


@torch.no_grad()
@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("name", CACHED)
def test_a_cached_map_has_a_column_for_every_token_of_the_row(name: str, side: str | None) -> None:
    """Chunks and single tokens, after prompts of three lengths that are padded: column j is token j, whatever slot it has,
    and those that a ring has dropped are zeros."""
    flags, options = CACHED[name]
    net = decoder(**flags)
    whole = decoder(**{**flags, **({"window": 5} if name == "narrowed" else {})})
    lengths, tokens, width = torch.tensor([9, 4, 7]), ids(3, 20), 9 if side is None else 11
    lengths = torch.full((3,), 9) if side is None else lengths
    place = torch.arange(width)
    mask = place < lengths[:, None] if side != "left" else place >= width - lengths[:, None]
    prompt = torch.zeros(3, width, dtype=torch.long)
    for row, n in enumerate(lengths.tolist()):
        prompt[row, mask[row]] = tokens[row, :n]
    cache = net.new_cache(3, **options)
    pieces = [(prompt, None if side is None else mask)]
    for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9)):
        pieces.append((torch.stack([tokens[r, n + start : n + stop] for r, n in enumerate(lengths.tolist())]), None))
    found = [maps_of(net, piece, mask=kept, cache=cache) for piece, kept in pieces]
    for row, n in enumerate(lengths.tolist()):
        for layer, want in enumerate(maps_of(whole, tokens[row : row + 1, : n + 9])):
            parts = [found[0][layer][row, :, mask[row]], *(maps[layer][row] for maps in found[1:])]
            assert all((part[..., n + 9 :] == 0).all() for part in parts)
            wide = [torch.nn.functional.pad(p, (0, max(0, n + 9 - p.shape[-1])))[..., : n + 9] for p in parts]
            close(torch.cat(wide, 1), want[0])
        assert (found[0][0][row, :, ~mask[row]] == 0).all()


@torch.no_grad()
def test_the_maps_of_an_int8_cache_are_those_of_its_rounded_keys() -> None:
    net = decoder(kv_heads=1)
    cache = net.new_cache(2, dtype=torch.int8)
    net(ids(2, 9), cache=cache)
    beside = cache.copy()
    out, maps = net(ids(2, 3), cache=cache, return_attention=True)
    replace_attention(net, maps)
    close(net(ids(2, 3), cache=beside), out)


@torch.no_grad()
def test_hidden_keys_and_padding_are_exactly_zero() -> None:
    mask, documents = torch.arange(10) >= torch.tensor([[0], [4]]), torch.arange(10) // torch.tensor([[3], [6]])
    for kind in (Decoder, Encoder):
        seen = (documents[:, :, None] == documents[:, None]) & mask[:, :, None] & mask[:, None]
        seen = seen.tril() if kind is Decoder else seen
        for found in maps_of(decoder(kind=kind), ids(2, 10), mask=mask, document_ids=documents):
            assert torch.equal(found > 0, seen[:, None].expand_as(found))


@torch.no_grad()
def test_cross_attention_has_maps_of_its_own() -> None:
    net, context = decoder(cross_attend=True, kv_heads=1), torch.randn(3, 6, 24)
    shown, mask = torch.arange(6) < torch.tensor([[6], [2], [0]]), torch.arange(7) >= torch.tensor([[0], [3], [0]])
    logits, maps, cross = net(ids(3, 7), mask=mask, context=context, context_mask=shown, return_attention=True)
    assert torch.equal(logits, net(ids(3, 7), mask=mask, context=context, context_mask=shown))
    want = shown[:, None, None] & mask[:, None, :, None]
    for found, own in zip(cross, maps, strict=True):
        assert (found.shape, own.shape) == ((3, 3, 7, 6), (3, 3, 7, 7))
        assert torch.equal(found > 0, want.expand_as(found))
        close(found.sum(-1), want.any(-1).float().expand(-1, 3, -1))
    cache = net.new_cache(3)
    net(ids(3, 7), mask=mask, context=context, context_mask=shown, cache=cache)
    more = ids(3, 2)
    _, cached, crossed = net(more, cache=cache, return_attention=True)
    whole = torch.cat([ids(3, 7), more], 1)
    full = net(whole[:1], context=context[:1], context_mask=shown[:1], return_attention=True)
    close(cached[1][:1], full[1][1][..., 7:, :])
    close(crossed[1][:1], full[2][1][..., 7:, :])


@torch.no_grad()
def test_every_model_gives_its_output_and_maps() -> None:
    layers = {"dim": 24, "depth": 2, "heads": 3, "attn_dim_head": 8, "position": "rope"}
    x, tokens, context = torch.randn(2, 7, 24), ids(2, 7), torch.randn(2, 5, 24)
    net = decoder()
    embeddings, maps = net(tokens, return_embeddings=True, return_attention=True)
    assert torch.equal(embeddings, net(tokens, return_embeddings=True))
    loss, same = net(tokens, targets=tokens, return_attention=True)
    assert torch.equal(loss, net(tokens, targets=tokens))
    assert torch.equal(torch.stack(maps), torch.stack(same))
    stack = Decoder(**layers)
    found = [
        TokenEncoder(num_tokens=13, max_seq_len=30, attn_layers=Encoder(**layers))(tokens, return_attention=True),
        ContinuousTransformerWrapper(attn_layers=Encoder(**layers), max_seq_len=30)(x, return_attention=True),
        stack(x, return_attention=True),
    ]
    for out, maps in found:
        assert (out.shape, [m.shape for m in maps]) == (x.shape, [(2, 3, 7, 7)] * 2)
    images = ViTransformerWrapper(image_size=12, patch_size=4, attn_layers=Encoder(**layers), num_register_tokens=2)
    pixels, shown = torch.randn(2, 3, 12, 12), torch.arange(9) < torch.tensor([[9], [4]])
    pooled, maps = images(pixels, mask=shown, return_attention=True)
    assert torch.equal(pooled, images(pixels, mask=shown))
    seen = torch.nn.functional.pad(shown, (2, 0), value=True)
    for found in maps:
        assert torch.equal(found > 0, (seen[:, None, :, None] & seen[:, None, None]).expand(2, 3, 11, 11))
    crossing = CrossAttender(dim=24, depth=2, heads=3, attn_dim_head=8)
    out, maps, cross = crossing(x, context=context, return_attention=True)
    assert (out.shape, maps, [m.shape for m in cross]) == (x.shape, [None, None], [(2, 3, 7, 5)] * 2)


def test_gradients_flow_through_maps_and_are_those_of_eager() -> None:
    """With checkpoints too, which compute the layers twice, and beside a fused pass."""

    def gradients(net: TransformerWrapper) -> tuple[list[Tensor], list[Tensor]]:
        out, maps = net(ids(2, 140)[:1], return_attention=True)
        loss = out.square().mean() + sum((m * m.detach().cos()).square().sum() for m in maps)
        named = dict(net.named_parameters())
        return list(torch.autograd.grad(loss, list(named.values()))), maps

    want, maps = gradients(decoder(backend="eager"))
    fused = decoder(backend="sdpa")
    for net in (fused, set_activation_checkpointing(copy.deepcopy(fused), "blocks").train()):
        got, again = gradients(net)
        for a, b in zip([*got, *again], [*want, *maps], strict=True):
            assert_same(a, b, terms=16 * 1024)


def test_maps_are_before_dropout() -> None:
    net = decoder(depth=1, attn_dropout=0.5)
    want = maps_of(net, ids(2, 9))
    close(torch.stack(maps_of(net.train(), ids(2, 9))), torch.stack(want))


def test_half_precision_is_widened() -> None:
    """Scores are computed in float32, from the same rounded queries and keys as the kernel's: the output differs by what one
    rounding of its values, and one of the weights, explains."""
    net = decoder(depth=1).bfloat16()
    with torch.no_grad():
        out, maps = net(ids(2, 40), return_attention=True)
        assert maps[0].dtype == torch.float32
        close(maps[0].sum(-1), torch.ones(2, 3, 40))
        replace_attention(net, maps)
        again = net(ids(2, 40))
    assert (again.float() - out.float()).abs().max() <= 16 * 2**-8 * out.float().abs().max()


def test_nothing_is_computed_or_kept_unless_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    net = decoder(cross_attend=True)
    before = [dict(vars(module)) for module in net.modules()]
    net(ids(2, 5), context=torch.randn(2, 3, 24), return_attention=True)
    assert [vars(module).keys() for module in net.modules()] == [state.keys() for state in before]
    monkeypatch.setattr(plan, "attention_map", None)
    net(ids(2, 5), context=torch.randn(2, 3, 24))
    with pytest.raises(TypeError):
        net(ids(2, 5), context=torch.randn(2, 3, 24), return_attention=True)


@torch.no_grad()
@pytest.mark.parametrize("cached", [False, True])
def test_the_forward_pass_is_one_graph(cached: bool) -> None:
    torch._dynamo.reset()
    net, context = decoder(depth=1, window=5, cross_attend=True), torch.randn(2, 3, 24)
    run = torch.compile(net, fullgraph=True, backend="eager")
    caches = [net.new_cache(2) if cached else None for _ in range(2)]
    for cache in filter(None, caches):
        net(ids(2, 7), mask=torch.arange(7) >= torch.tensor([[0], [4]]), context=context, cache=cache)
    call = {"context": context, "checked": True, "return_attention": True}
    if not cached:
        call["mask"] = torch.arange(6) >= torch.tensor([[0], [4]])
    got, want = (f(ids(2, 6), cache=cache, **call) for f, cache in zip((run, net), caches, strict=True))
    for a, b in zip(got[1:], want[1:], strict=True):
        close(torch.stack(a), torch.stack(b))


Wrong = Callable[..., Tensor]


def off_by_one(right: Wrong) -> Wrong:
    return lambda q, k, prepared, ops: right(q, k, prepared, ops).roll(1, -1)


def one_head_for_all(right: Wrong) -> Wrong:
    return lambda q, k, prepared, ops: right(q, k, prepared, ops).mean(1, keepdim=True).expand(-1, q.shape[1], -1, -1)


def unnormalized(right: Wrong) -> Wrong:
    return lambda q, k, prepared, ops: right(q, k, prepared, ops) * 0.999


def padding_attends(right: Wrong) -> Wrong:
    return lambda q, k, prepared, ops: right(q, k, prepared, ops).clamp_min(1e-12)


def without_bias(right: Wrong) -> Wrong:
    return lambda q, k, prepared, ops: right(q, k, plan.Prepared(ctx=prepared.ctx, bias=None), ops)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (off_by_one, "hidden key"),
        (one_head_for_all, "maps @ values"),
        (unnormalized, "sums of rows"),
        (padding_attends, "hidden key"),
        (without_bias, "maps @ values"),
    ],
)
def test_the_contract_rejects_wrong_maps(
    wrong: Callable[[Wrong], Wrong], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "attention_map", wrong(plan.attention_map))
    assert_rejected(message)


def test_the_contract_rejects_columns_in_the_order_of_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_slot(found: Tensor, ctx) -> Tensor:
        return by_token(found, ctx).zero_() + torch.nn.functional.pad(found, (0, ctx.span - ctx.S))

    monkeypatch.setattr(plan, "by_token", by_slot)
    assert_rejected("cached pass")


def assert_rejected(message: str) -> None:
    result = run_check("attention_maps", Subject("alibi", Sizes(), torch.device("cpu")))
    assert result.verdict == "fail"
    assert message in result.detail
