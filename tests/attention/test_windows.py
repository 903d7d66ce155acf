"""What layers see: windows, chunks, first tokens that are kept, and patterns of them, against plain models and masks."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.draws import draws, in_turns
from tests.support.small_models import close, decoder, ids
from x_positional import Decoder, Encoder, ModelConfig, TransformerWrapper, build_model, check
from x_positional.config.layers import LayerConfig
from x_positional.errors import IncompatibleConfig, InputError, PositionError
from x_positional.schemes.base import AttentionContext, Bias, PositionScheme


class QuerySlopes(PositionScheme):
    """ALiBi with a slope that each query decides: a content bias that reads positions, without states of tokens."""

    uses_positions = True

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        slopes = q[..., 0].sigmoid()
        at, of = ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)
        return Bias(lambda b, h, i, j: -slopes[b, h, i] * (at[b, i] - of[b, j]).abs(), ctx.batch, ctx.heads)


class RowsByPosition(PositionScheme):
    """Whole rows of scores, changed by position."""

    uses_positions = True

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        return scores / (1 + (ctx.q_positions[..., None] - ctx.kv_positions[:, None]).abs())[:, None]


OWN = QuerySlopes()
RELATIVE = ["none", "rope", "xpos", "polar", "alibi", "t5", "dynamic", ["rope", "alibi"]]
SCHEMES = [*RELATIVE, "cope", ["rope", "cope"]]
GATED = ["forgetting", ["rope", "forgetting"]]


model = partial(decoder, max_seq_len=1200, noise=0.2)


def like(net: TransformerWrapper, **changes) -> TransformerWrapper:
    """The same weights in layers that see something else."""
    layers = net.config.layers.model_copy(update=changes)
    twin = build_model(net.config.model_copy(update={"layers": layers})).eval()
    twin.load_state_dict(net.state_dict())
    return twin


def by_chunks(net: TransformerWrapper, tokens: torch.Tensor, cache, chunk: int, mask=None) -> torch.Tensor:
    out = []
    for i in range(0, tokens.shape[1], chunk):
        piece = None if mask is None else mask[:, i : i + chunk]
        out.append(net(tokens[:, i : i + chunk], mask=piece, cache=cache))
    return torch.cat(out, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("position", [*RELATIVE, OWN], ids=str)
def test_kept_first_tokens_stand_where_the_cache_puts_them(position) -> None:
    """In one layer, a query sees exactly what a plain model sees of the text that the cache holds."""
    plain, tokens = model(depth=1, position=position), ids(2, 19)
    net = like(plain, window=5, keep_first=3)
    full = net(tokens)
    for t in range(19):
        kept = list(range(min(3, t + 1))) + list(range(max(3, t - 4), t + 1))
        close(full[:, t], plain(tokens[:, kept])[:, -1])
    assert not torch.allclose(full[:, -1], like(plain, window=5)(tokens)[:, -1], atol=1e-3)


STREAMED = [
    *((backend, position) for backend in ("auto", "eager", "blockwise") for position in [*SCHEMES, OWN]),
    *(("flex", position) for position in draws(["rope", "alibi", "t5", ["rope", "alibi"]], [*RELATIVE, OWN])),
]
"""FlexAttention knows no rows of scores. By default it streams one rotation, both kinds of bias, and a chain of the two."""


@torch.no_grad()
@pytest.mark.parametrize(("backend", "position"), STREAMED, ids=str)
def test_a_streaming_cache_equals_the_full_pass(backend: str, position) -> None:
    net = model(position=position, backend=backend)
    tokens, kept = ids(2, 23), like(net, window=6, keep_first=2)
    full = kept(tokens)
    # Uncompiled FlexAttention takes some 20 ms a call, and a chunk of one token has the most calls.
    for chunk in draws((3, 7, 23), (1, 3, 7, 23)) if backend == "flex" else (1, 3, 7, 23):
        close(by_chunks(kept, tokens, kept.new_cache(2), chunk), full)
        close(by_chunks(kept, tokens, kept.new_cache(2, max_len=23), chunk), full)
        close(by_chunks(net, tokens, net.new_cache(2, window=6, keep_first=2), chunk), full)


@torch.no_grad()
@pytest.mark.parametrize("flags", [{"window": 6, "keep_first": 2}, {"chunk": 5}, {"chunk": 7, "window": 4}], ids=str)
@pytest.mark.parametrize("position", ["rope", "alibi", "cope", "forgetting"])
def test_padding_changes_nothing(position: str, flags: dict) -> None:
    if position == "forgetting" and "keep_first" in flags:
        flags = {"window": 6}  # the first tokens are refused: see below
    net, tokens, pads = model(position=position, **flags), ids(2, 23), torch.tensor([[4], [0]])
    mask = torch.arange(23) >= pads
    full = net(tokens, mask=mask)
    close(full[0, 4:], net(tokens[:1, 4:])[0])
    for chunk in (1, 3, 8):
        close(by_chunks(net, tokens, net.new_cache(2), chunk, mask)[mask], full[mask])


@torch.no_grad()
@pytest.mark.parametrize("kind", [Decoder, Encoder])
@pytest.mark.parametrize("position", ["rope", "alibi", "t5"])
def test_a_chunk_is_a_text_of_its_own(kind, position: str) -> None:
    plain, tokens = model(kind=kind, position=position), ids(2, 17)
    net = like(plain, chunk=5)
    full = net(tokens)
    for start in range(0, 17, 5):  # only distances count, so each chunk alone is the same
        close(full[:, start : start + 5], plain(tokens[:, start : start + 5]))


@torch.no_grad()
@pytest.mark.parametrize("position", ["rope", "cope", "forgetting"])
def test_chunks_start_with_their_document(position: str) -> None:
    net, tokens = model(position=position, chunk=4), ids(2, 19)
    documents = torch.tensor([[0] * 7 + [1] * 12, [0] * 13 + [1] * 6])
    packed = net(tokens, document_ids=documents)
    for row, cut in ((0, 7), (1, 13)):
        close(packed[row, :cut], net(tokens[row : row + 1, :cut])[0])
        close(packed[row, cut:], net(tokens[row : row + 1, cut:])[0])
    cache, out = net.new_cache(2), []
    for i in range(0, 19, 3):
        out.append(net(tokens[:, i : i + 3], document_ids=documents[:, i : i + 3], cache=cache))
    close(torch.cat(out, dim=1), packed)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3, 7, 23])
def test_a_cache_of_chunks_equals_the_full_pass(chunk: int) -> None:
    net, tokens = model(chunk=5), ids(2, 23)
    cache = net.new_cache(2)
    close(by_chunks(net, tokens, cache, chunk), net(tokens))
    assert all(window.kept == 5 for window in cache.windows)


PATTERNS = {
    "gemma 3": [{"window": 5, "position": {"kind": "rope", "theta": 1e4}}] * 2
    + [{"position": {"kind": "rope", "theta": 1e6}}],
    "smollm 3": [{"position": "rope"}] * 3 + [{"position": "none"}],
    "llama 4": [{"position": "rope", "chunk": 6}] * 3 + [{"position": {"kind": "temperature", "floor_scale": 6}}],
    "mixed": [{"position": "alibi", "window": 7}, {"position": ["rope", "cope"]}, {"position": "forgetting"}],
}


@torch.no_grad()
@pytest.mark.parametrize("name", PATTERNS)
def test_layers_follow_the_pattern(name: str) -> None:
    pattern = PATTERNS[name]
    net, tokens = model(depth=5, pattern=pattern, position=None), ids(2, 21)
    full = net(tokens)
    for layer, kind in enumerate(net.attn_layers.kinds):
        entry = LayerConfig.model_validate(pattern[layer % len(pattern)])
        assert kind.window == entry.attention_window
        alone = model(position=entry.position).attn_layers.kinds[0].scheme
        assert (type(alone), alone.extra_repr()) == (type(kind.scheme), kind.scheme.extra_repr())
    for chunk in (1, 4, 21):
        close(by_chunks(net, tokens, net.new_cache(2), chunk), full)
    mask = torch.arange(21) >= torch.tensor([[3], [0]])
    close(net(tokens, mask=mask)[0, 3:], net(tokens[:1, 3:])[0])
    again = build_model(ModelConfig.model_validate({**net.config.model_dump()}))
    again.load_state_dict(net.state_dict())
    close(again.eval()(tokens), full)


@torch.no_grad()
def test_every_entry_of_a_pattern_counts() -> None:
    rope = {"kind": "rope", "theta": 100.0}
    base, tokens = model(depth=3, position=rope), ids(1, 16)
    want = base(tokens)
    same = like(base, position=None, pattern=tuple(LayerConfig(position=base.config.layers.position) for _ in range(3)))
    close(same(tokens), want)
    for place in range(3):
        for change in ({"window": 3}, {"chunk": 4}, {"position": "none"}, {"position": {**rope, "theta": 7.0}}):
            entries = [{"position": rope} for _ in range(3)]
            entries[place] = {**entries[place], **change}
            changed = like(base, position=None, pattern=tuple(LayerConfig.model_validate(e) for e in entries))
            assert (changed(tokens) - want).abs().max() > 1e-3, (place, change)


def test_layers_that_slide_keep_little() -> None:
    net = model(depth=6, pattern=[{"window": 4}] * 2 + [{}])
    cache = net.new_cache(1, max_len=1000)
    net(ids(1, 300), cache=cache)
    net(ids(1, 1), cache=cache)
    per_token = 2 * 3 * 8 * 4
    assert cache.nbytes() == per_token * (4 * (4 + 1) + 2 * (1000 + 1))


WIDE = [{}, {"window": 90}]
NARROW = [{"chunk": 200}, {"window": 40, "keep_first": 3}]


@pytest.mark.parametrize(
    ("position", "flags"), in_turns([*SCHEMES, *GATED, OWN], WIDE) + in_turns([*SCHEMES, *GATED, OWN], NARROW), ids=str
)
def test_blocks_of_rows_change_nothing(position, flags: dict) -> None:
    """600 tokens are more than one block of scaled_dot_product_attention: values and gradients equal the reference.

    Blocks recompute probabilities from a log-sum-exp below 8, rounded by 2^-22, twice that with the row's delta. So the gradient of
    a bias is off by 5e-7 of its terms, and the MLP of `dynamic` multiplies that by distances up to 600.
    """
    if "cope" in str(position):
        pytest.skip("CoPE needs whole rows: it does not run through scaled_dot_product_attention")
    if position in GATED and "keep_first" in flags:
        pytest.skip("refused: forget gates add up over tokens that are dropped")
    net = model(position=position, backend="sdpa", **flags)
    reference, tokens = like(net, backend="eager"), ids(1, 600)
    documents = torch.arange(600)[None] // 350
    for given in ({}, {} if flags.get("keep_first") else {"document_ids": documents}):
        got, want = net(tokens, **given), reference(tokens, **given)
        close(got, want)
        weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)) / 600
        for module, out in ((net, got), (reference, want)):
            module.zero_grad()
            (out * weights).sum().backward()
        for (name, p), r in zip(net.named_parameters(), reference.parameters(), strict=True):
            atol = 600 * 5e-7 if position == "dynamic" and "mlp" in name else 2e-5
            torch.testing.assert_close(p.grad, r.grad, atol=atol, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(IncompatibleConfig, match=r"keep_first=4 keeps tokens that a window would drop.*Set window="):
        model(keep_first=4)
    with pytest.raises(IncompatibleConfig, match=r"keep_first is unsupported with LearnedAbsolute"):
        model(position=["rope", "absolute"], window=8, keep_first=4)
    with pytest.raises(IncompatibleConfig, match="keep_first=4 needs causal attention"):
        model(kind=Encoder, window=8, keep_first=4)
    with pytest.raises(
        IncompatibleConfig, match=r"keep_first is unsupported with ForgettingBias, which sums over every token"
    ):
        model(position="forgetting", window=8, keep_first=4)
    with pytest.raises(IncompatibleConfig, match=r"keep_first is unsupported with RelativeBias, which cannot move"):
        model(position="relative_logits", window=8, keep_first=4)
    with pytest.raises(
        IncompatibleConfig, match=r"keep_first is unsupported with RowsByPosition, which transforms whole"
    ):
        model(position=RowsByPosition(), window=8, keep_first=4)
    with pytest.raises(IncompatibleConfig, match="beside pattern: entries of a pattern do not inherit it"):
        model(window=8, pattern=[{"window": 4}, {}])
    with pytest.raises(IncompatibleConfig, match="position=rope is ignored: every entry of pattern sets its own"):
        model(pattern=[{"position": "alibi"}])
    with pytest.raises(IncompatibleConfig, match="pattern has 3 entries, and depth=2"):
        model(pattern=[{"window": 4}] * 3)
    net = model(window=4, keep_first=2)
    with pytest.raises(InputError, match="keep_first uses the place in the cache as the position"):
        net(ids(1, 9), positions=torch.arange(9) * 2)
    with pytest.raises(InputError, match="keep_first=2 keeps tokens that a window would drop"):
        model().new_cache(1, keep_first=2)
    with pytest.raises(PositionError, match="adds positions to the embeddings"):
        model(position="sinusoidal").new_cache(1, window=8, keep_first=2)


@torch.no_grad()
def test_forget_gates_are_supported_in_layers_without_keep_first() -> None:
    """They sum over every token, so only a layer that drops tokens between the first and the window refuses them."""
    kept = {"position": "rope", "window": 4, "keep_first": 2}
    net, tokens = model(depth=2, pattern=[{"position": "forgetting"}, kept], position=None), ids(2, 23)
    full = net(tokens)
    for chunk in (1, 5):
        close(by_chunks(net, tokens, net.new_cache(2), chunk), full)
    with pytest.raises(PositionError, match="keep_first is unsupported with ForgettingBias"):
        net.new_cache(2, window=4, keep_first=2)
    with pytest.raises(IncompatibleConfig, match="keep_first is unsupported with LearnedAbsolute"):
        model(depth=2, pattern=[{"position": "absolute"}, kept], position=None)


def test_check_warns_of_a_window_that_hides_nothing() -> None:
    sizes = {"dim": 64, "depth": 2, "heads": 2, "position": "rope", "window": 5, "keep_first": 1}
    assert any("hide nothing up to max_seq_len=6" in text for text in check(**sizes, max_seq_len=6).warnings)
    assert not any("hide" in text for text in check(**sizes, max_seq_len=7).warnings)


def test_the_report_offers_no_positions_with_keep_first() -> None:
    kept = {"window": 8, "keep_first": 2, "position": "rope"}
    for pattern in ([kept], [{"position": "t5"}, kept]):
        report = check(dim=64, depth=2, heads=2, max_seq_len=256, pattern=pattern)
        assert report.ok, report
        assert "no positions=" in str(report)
    assert "float positions" in str(check(dim=64, depth=2, heads=2, position="rope", window=8))


def test_the_report_names_every_kind_of_layer() -> None:
    report = check(dim=64, depth=6, heads=2, max_seq_len=256, pattern=PATTERNS["gemma 3"], position=None)
    assert report.ok, report
    assert "sliding (the last 5, all tokens)" in str(report)
    text = model(depth=6, pattern=PATTERNS["gemma 3"], position=None).describe()
    assert "window 5 in layers 0, 1, 3, 4" in text
    assert "theta=1000000.0) in layers 2, 5" in text
