"""Frequencies that depend on the text's length: rows, documents and calls do not influence each other, and generation is
exact on both sides of the trained length and across it, under either policy."""

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import (
    GREEDY,
    NUM_TOKENS,
    Script,
    equal,
    ids,
    language_model,
    naive,
    perturbed,
    ragged,
)
from tests.support.length_scalings import KINDS, LENGTHS, LONG, SHORT, TRAINED, dynamic
from x_positional import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper, XTransformer, check
from x_positional.errors import InputError, PositionError
from x_positional.schemes import Alibi, Chain, Rope, RopeEmbedding, RopeScaling

EACH = {name: make(length_policy="recompute") for name, make in KINDS.items()}
FIXED = {f"{name}, for {length}": make(length=length) for name, make in KINDS.items() for length in (TRAINED, 30)}


def model_of(scaling: RopeScaling, **flags: object) -> TransformerWrapper:
    return language_model(Rope(scaling=scaling), **flags)


@torch.no_grad()
def step_by_step(net: TransformerWrapper, prompt: Tensor, more: Tensor) -> Tensor:
    """The logits [N V] that predict `more` [N], each from a full pass over what comes before it."""
    text = torch.cat([prompt, more])
    return torch.stack([net(text[None, : len(prompt) + i])[0, -1] for i in range(len(more))])


def theirs(length: int) -> list[float]:
    """emozilla's formula, written out: theta times (s l/L - (s - 1))^(R/(R-2))."""
    grown = 3.0 * max(length, TRAINED) / TRAINED - 2.0
    return [(10_000.0 * grown ** (10 / 8)) ** (-2 * i / 10) for i in range(5)]


@pytest.mark.parametrize("length", [1, *LENGTHS, 20])
def test_which_frequencies_a_length_has(length: int) -> None:
    at = torch.tensor([[length]])
    for found in (EACH["dynamic"].frequencies(10, 1e4, length=length), EACH["dynamic"].frequencies(10, 1e4, length=at)):
        assert found.inv_freq.flatten().tolist() == pytest.approx(theirs(length), rel=1e-14)
    for name, scales in (("longrope", (1.29099444873580564,) * 2), ("longrope, two scales", (1.1, 1.4))):
        expected = [10_000.0 ** (-2 * i / 10) / f for i, f in enumerate(LONG if length > TRAINED else SHORT)]
        for given in (length, at):
            found = EACH[name].frequencies(10, 1e4, length=given)
            assert found.inv_freq.flatten().tolist() == pytest.approx(expected, rel=1e-14)
            assert float(found.attention_factor) == pytest.approx(scales[length > TRAINED], rel=1e-14)


@pytest.mark.parametrize("scaling", FIXED.values(), ids=FIXED)
@pytest.mark.parametrize("chunk", [1, 3, 20])
@torch.no_grad()
def test_fixed_decodes_in_chunks(scaling: RopeScaling, chunk: int) -> None:
    net, tokens = model_of(scaling), ids(3, 20)
    cache = net.new_cache(3)
    found = torch.cat([net(part, cache=cache) for part in tokens.split(chunk, 1)], 1)
    equal(found, net(tokens))
    for length in LENGTHS:
        equal(net(tokens[:, :length]), found[:, :length])


@pytest.mark.parametrize("scaling", [*EACH.values(), *FIXED.values()], ids=[*EACH, *FIXED])
@pytest.mark.parametrize("start", [3, *LENGTHS])
@pytest.mark.parametrize("cache_kv", [True, False])
def test_generation_across_the_trained_length(scaling: RopeScaling, start: int, cache_kv: bool) -> None:
    """Every token is predicted as by a model that reads all before it anew."""
    net, prompt, more = model_of(scaling), ids(start), ids(12, seed=4)
    seen = Script(more[None])
    AutoregressiveWrapper(net).generate(prompt, 12, filter_logits_fn=seen, cache_kv=cache_kv)
    equal(seen.logits[0], step_by_step(net, prompt, more))


@pytest.mark.parametrize("scaling", [*EACH.values(), *FIXED.values()], ids=[*EACH, *FIXED])
@pytest.mark.parametrize("cache_kv", [True, False])
def test_ragged_rows_cross_each_by_itself(scaling: RopeScaling, cache_kv: bool) -> None:
    net, prompts = model_of(scaling), ragged(2, TRAINED - 1, TRAINED, TRAINED + 1, TRAINED + 5)
    more = ids(len(prompts), 9, seed=5)
    seen = Script(more)
    AutoregressiveWrapper(net).generate(prompts, 9, filter_logits_fn=seen, cache_kv=cache_kv)
    for row, prompt in enumerate(prompts):
        equal(seen.logits[row], step_by_step(net, prompt, more[row]))


@pytest.mark.parametrize("scaling", EACH.values(), ids=EACH)
def test_rows_that_end_leave_the_others_alone(scaling: RopeScaling) -> None:
    net, prompts = model_of(scaling), ragged(3, TRAINED + 2, 6)
    alone = [naive(net, prompt, 14) for prompt in prompts]
    eos = int(alone[0][2])
    found = AutoregressiveWrapper(net).generate(prompts, 14, eos_token=eos, **GREEDY)
    for row, expected in zip(found, alone, strict=True):
        end = expected.tolist().index(eos) + 1 if eos in expected.tolist() else len(row)
        assert row[:end].tolist() == expected[: len(row)][:end].tolist()


@pytest.mark.parametrize("scaling", EACH.values(), ids=EACH)
@pytest.mark.parametrize("window", [None, 5])
def test_past_max_seq_len(scaling: RopeScaling, window: int | None) -> None:
    """Each token sees the last max_seq_len ones, and turns by its place in the whole text."""
    net, prompt, more = model_of(scaling, max_seq_len=11, window=window), ids(6), ids(14, seed=6)
    cached, uncached = Script(more[None]), Script(more[None])
    AutoregressiveWrapper(net).generate(prompt, 14, filter_logits_fn=cached)
    AutoregressiveWrapper(net).generate(prompt, 14, filter_logits_fn=uncached, cache_kv=False)
    equal(cached.logits, uncached.logits)
    layers = net.config.layers.model_copy(update={"window": window or 11})
    twin = TransformerWrapper.from_config(net.config.model_copy(update={"layers": layers})).double().eval()
    twin.load_state_dict(net.state_dict())
    equal(cached.logits[0], step_by_step(twin, prompt, more))


@pytest.mark.parametrize(("name", "reads"), [("longrope", [5, 9]), ("dynamic", [5, 9, 10, 11, 12])])
def test_the_text_is_read_again_only_where_keys_change(
    name: str, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes over a prompt and its continuation for LongRoPE; for dynamic NTK one per token past the trained length."""
    net = model_of(EACH[name])
    scheme, lengths = net.attn_layers.position_schemes[0], []
    rotate_k = scheme.rotate_k
    monkeypatch.setattr(scheme, "rotate_k", lambda k, t: lengths.append(k.shape[2]) or rotate_k(k, t))
    AutoregressiveWrapper(net).generate(ids(5), 8, **GREEDY)
    assert [n for n in lengths[::2] if n > 1] == reads
    assert len(lengths[::2]) == 8


@pytest.mark.parametrize("scaling", EACH.values(), ids=EACH)
@torch.no_grad()
def test_rows_documents_and_padding_are_texts_of_their_own(scaling: RopeScaling) -> None:
    net, tokens = model_of(scaling), ids(3, 14)
    lengths = torch.tensor([14, TRAINED, TRAINED + 1])
    right = torch.arange(14) < lengths[:, None]
    for mask in (right, right.flip(1)):
        found = net(tokens, mask=mask)
        for row in range(3):
            equal(found[row][mask[row]], net(tokens[row][mask[row]][None])[0])
    cuts = torch.tensor([[3] * 5 + [7] * 9, [2] * 8 + [-4] * 6, [0] * 9 + [1] * 5])  # ids are names, not numbers
    found = net(tokens, document_ids=cuts)
    for row in range(3):
        for name in cuts[row].unique():
            equal(found[row][cuts[row] == name], net(tokens[row][cuts[row] == name][None])[0])


@pytest.mark.parametrize("scaling", EACH.values(), ids=EACH)
@torch.no_grad()
def test_nothing_depends_on_earlier_calls(scaling: RopeScaling) -> None:
    net, tokens = model_of(scaling), ids(2, 40)
    first = {length: net(tokens[:, :length]) for length in (*LENGTHS, 40)}
    for length in (40, TRAINED, TRAINED + 1, TRAINED - 1, 40, TRAINED - 1, TRAINED):
        assert torch.equal(net(tokens[:, :length]), first[length])
        assert torch.equal(model_of(scaling)(tokens[:, :length]), first[length])


@torch.no_grad()
def test_custom_positions_count_and_not_tokens() -> None:
    """The length is the last position + 1: of a row, of a document, of fractions."""
    net, tokens = model_of(EACH["dynamic"]), ids(2, 6)
    far = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 2, 5, 9, 14, 15]])
    found, scheme = net(tokens, positions=far), net.attn_layers.position_schemes[0]
    for row in range(2):
        equal(found[row], net(tokens[row : row + 1], positions=far[row : row + 1])[0])
    assert isinstance(scheme, RopeEmbedding)
    table = scheme.tables(far)
    for row, length in ((0, TRAINED), (1, 16)):
        angle = far[row, :, None].double() * torch.tensor(theirs(length))
        torch.testing.assert_close(table.q_cos[row, 0, :, :5].double(), angle.cos(), atol=1e-6, rtol=0)
    halves = torch.tensor([[0.0, 0.5, 8.5]])
    assert torch.equal(scheme.tables(halves).q_sin, scheme.length_tables(halves, torch.tensor([[9.5]])).q_sin)


@pytest.mark.parametrize("scaling", EACH.values(), ids=EACH)
@torch.no_grad()
def test_generation_counts_the_positions_that_were_given(scaling: RopeScaling) -> None:
    """Positions beyond the number of tokens cross the trained length earlier, each row by itself."""
    net, prompts, script = model_of(scaling), ids(2, 3), ids(2, 6, seed=3)
    positions = torch.tensor([[0, 1, 2], [0, 4, 6]])
    seen = Script(script)
    AutoregressiveWrapper(net).generate(prompts, 6, filter_logits_fn=seen, positions=positions)
    tokens = torch.cat([prompts, script], dim=1)
    places = torch.cat([positions, positions[:, -1:] + torch.arange(1, 7)], dim=1)
    for n in range(6):
        equal(seen.logits[:, n], net(tokens[:, : 3 + n], positions=places[:, : 3 + n])[:, -1])


@torch.no_grad()
def test_fixed_takes_the_length_of_the_wrapper() -> None:
    tokens, bound, named = ids(2, 12), model_of(dynamic(), max_seq_len=30), model_of(dynamic(length=30), max_seq_len=30)
    assert torch.equal(bound(tokens), named(tokens))
    assert not torch.equal(bound(tokens), model_of(dynamic(), max_seq_len=31)(tokens))
    alone = Decoder(dim=12, depth=1, heads=2, attn_dim_head=10, position=Rope(scaling=dynamic()))
    with pytest.raises(PositionError, match="needs to know the final length"):
        alone(torch.zeros(1, 3, 12))
    wrapped = TransformerWrapper(num_tokens=5, max_seq_len=30, attn_layers=alone)
    assert wrapped(ids(1, 3) % 5).isfinite().all()


def test_what_is_declared() -> None:
    for scaling in EACH.values():
        caps = RopeEmbedding(10, scaling=scaling).capabilities()
        assert (caps.kv_cacheable, caps.prefix_consistent, caps.absolute) == (False, False, True)
    for scaling in FIXED.values():
        caps = RopeEmbedding(10, scaling=scaling).capabilities()
        assert (caps.kv_cacheable, caps.prefix_consistent, caps.absolute) == (True, True, False)
    chain = Chain(RopeEmbedding(10, scaling=EACH["longrope"]), Alibi().build(model_of(dynamic()).attn_layers.dims))
    assert not chain.capabilities().prefix_consistent
    assert chain.cache_key(TRAINED) == chain.cache_key(1) != chain.cache_key(TRAINED + 1) == chain.cache_key(99)
    cache_keys = [EACH["dynamic"].cache_key(length) for length in (1, TRAINED, 9, 10, 11)]
    assert cache_keys == [None, None, 9, 10, 11]


@pytest.mark.parametrize("scaling", EACH.values(), ids=EACH)
def test_in_a_chain(scaling: RopeScaling) -> None:
    net = language_model([Rope(scaling=scaling), "alibi"])
    prompts = ragged(3, TRAINED + 1)
    found = AutoregressiveWrapper(net).generate(prompts, 10, **GREEDY)
    assert [row.tolist() for row in found] == [naive(net, prompt, 10).tolist() for prompt in prompts]


def test_a_cache_of_ones_own_is_refused() -> None:
    net = model_of(EACH["longrope"])
    with pytest.raises(PositionError, match="length_policy='fixed'"):
        net.new_cache(2)
    with pytest.raises(PositionError, match="go stale"):
        AutoregressiveWrapper(net).generate(ids(4), 2, return_cache=True)
    report = check(net, cache="growing")
    assert len(report.errors) == 1
    assert "changes earlier keys" in report.errors[0]
    assert any("follows the length" in text for text in check(net).warnings)
    assert "prefix" in str(check(net))
    assert check(model_of(dynamic()), cache="growing").ok


@torch.no_grad()
def test_rotated_cross_attention_is_refused_and_plain_is_exact() -> None:
    """Queries and context would turn at different speeds where their lengths differ."""
    net = language_model(Rope(scaling=EACH["dynamic"]), cross_attend=True)
    context = torch.randn(1, 4, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(PositionError, match="sequences of different lengths"):
        net(ids(1, 12), context=context, context_positions=torch.arange(4))
    prompt, more = ids(6), ids(6, seed=3)
    seen = Script(more[None])
    AutoregressiveWrapper(net).generate(prompt, 6, filter_logits_fn=seen, context=context)
    text = torch.cat([prompt, more])
    expected = [net(text[None, : 6 + i], context=context)[0, -1] for i in range(6)]
    equal(seen.logits[0], torch.stack(expected))


def test_encoder_decoder() -> None:
    sizes = {"depth": 2, "heads": 2, "attn_dim_head": 10, "num_tokens": NUM_TOKENS, "max_seq_len": 40}
    position = Rope(scaling=EACH["longrope"])
    model = XTransformer(
        dim=16,
        **{f"{side}_{key}": value for side in ("enc", "dec") for key, value in sizes.items()},
        enc_position=position,
        dec_position=position,
    )
    perturbed(model)
    source, start = ids(2, 11), ids(2, 1)
    free, again = (model.generate(source, start, 14, cache_kv=kv, **GREEDY) for kv in (True, False))
    assert torch.equal(free, again)


@torch.no_grad()
def test_an_encoder_and_the_loss_read_whole_texts() -> None:
    net = model_of(EACH["dynamic"])
    tokens = ids(2, 12)
    loss = AutoregressiveWrapper(net)(tokens)
    logits = net(tokens[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    layers = Encoder(dim=12, depth=2, heads=2, attn_dim_head=10, position=Rope(scaling=EACH["dynamic"]))
    encoder = perturbed(TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=40, attn_layers=layers))
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    equal(encoder(tokens, mask=mask)[1, :7], encoder(tokens[1:, :7])[0])
    with pytest.raises(InputError, match="a cache cannot be exact"):
        encoder.attn_layers.new_cache(2, rereads=True)
