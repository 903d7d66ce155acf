"""Length policy "fixed" without a length: generation chooses frequencies once, for the length that each row will have in the
end; an explicit length wins; a pass without generation takes max_seq_len."""

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import GREEDY, Script, equal, ids, language_model, naive, ragged
from tests.support.length_scalings import KINDS, LENGTHS, TRAINED
from x_positional import AutoregressiveWrapper, ContinuousTransformerWrapper, Decoder, TransformerWrapper
from x_positional.errors import InputError, PositionError
from x_positional.schemes import Chain, DynamicNtk, Rope, RopeEmbedding
from x_positional.schemes.base import PositionScheme

MAX = 40
each_kind = pytest.mark.parametrize("kind", KINDS)


def model(kind: str, length: int | None = None, **flags: object) -> TransformerWrapper:
    return language_model(Rope(scaling=KINDS[kind](length=length)), **{"max_seq_len": MAX, **flags})


@torch.no_grad()
def expected(kind: str, prompt: Tensor, more: Tensor, **flags: object) -> Tensor:
    """The logits [N V] of one row alone: one full pass, its length said by name."""
    net = model(kind, len(prompt) + len(more), **flags)
    return net(torch.cat([prompt, more])[None])[0, -len(more) - 1 : -1]


@each_kind
@pytest.mark.parametrize("final", [*LENGTHS, 20])
@pytest.mark.parametrize("cache_kv", [True, False])
def test_the_final_length_counts_from_the_first_token_on(kind: str, final: int, cache_kv: bool) -> None:
    net, more = model(kind), ids(4, seed=4)
    prompt, seen = ids(final - 4), Script(more[None])
    AutoregressiveWrapper(net).generate(prompt, 4, filter_logits_fn=seen, cache_kv=cache_kv)
    equal(seen.logits[0], expected(kind, prompt, more))
    if kind == "dynamic" or final <= TRAINED:  # otherwise max_seq_len gives the same
        with torch.no_grad():
            longest = net(torch.cat([prompt, more])[None])[0, -5:-1]
        assert (seen.logits[0] - longest).abs().max() > 1e-6


@each_kind
@pytest.mark.parametrize("cache_kv", [True, False])
def test_each_row_has_a_final_length_of_its_own(kind: str, cache_kv: bool) -> None:
    """Final lengths below, at and above the trained one, side by side."""
    net, prompts = model(kind), ragged(1, TRAINED - 5, TRAINED - 4, TRAINED - 3, TRAINED + 6)
    more = ids(len(prompts), 4, seed=5)
    seen = Script(more)
    AutoregressiveWrapper(net).generate(prompts, 4, filter_logits_fn=seen, cache_kv=cache_kv)
    for row, prompt in enumerate(prompts):
        equal(seen.logits[row], expected(kind, prompt, more[row]))


@each_kind
@pytest.mark.parametrize("eos", [None, 3])
def test_greedy_with_and_without_a_cache_and_row_by_row(kind: str, eos: int | None) -> None:
    wrapper, prompts = AutoregressiveWrapper(model(kind)), ragged(3, TRAINED + 2, 5)
    options = {**GREEDY, "eos_token": eos}
    found = wrapper.generate(prompts, 7, **options)
    assert torch.equal(found, wrapper.generate(prompts, 7, cache_kv=False, **options))
    assert torch.equal(found, torch.stack(list(wrapper.stream(prompts, 7, **options)), 1))
    for row, prompt in enumerate(prompts):
        alone = wrapper.generate(prompt, 7, **options)
        assert torch.equal(found[row, : len(alone)], alone)
        if eos is None:
            assert torch.equal(alone, naive(model(kind, len(prompt) + 7), prompt, 7))


@each_kind
def test_calls_do_not_influence_each_other(kind: str) -> None:
    net, prompt, more = model(kind), ids(5), ids(12, seed=6)
    before, wrapper = net(prompt[None]), AutoregressiveWrapper(net)

    def logits(steps: int) -> Tensor:
        seen = Script(more[None, :steps])
        wrapper.generate(prompt, steps, filter_logits_fn=seen)
        return seen.logits

    first = {steps: logits(steps) for steps in (2, 3, 4, 12)}
    for steps in (12, 3, 4, 2, 12, 2):
        assert torch.equal(logits(steps), first[steps])
        assert torch.equal(net(prompt[None]), before)
    assert not torch.equal(first[2][0, 0], first[12][0, 0])


@each_kind
@pytest.mark.parametrize("cache_kv", [True, False])
def test_an_explicit_length_wins(kind: str, cache_kv: bool) -> None:
    net, prompt, more = model(kind, 30), ids(3), ids(9, seed=7)
    seen = Script(more[None])
    AutoregressiveWrapper(net).generate(prompt, 9, filter_logits_fn=seen, cache_kv=cache_kv)
    with torch.no_grad():
        equal(seen.logits[0], net(torch.cat([prompt, more])[None])[0, -10:-1])
    with pytest.raises(InputError, match="RopeEmbedding does not depend on the final length"):
        net.new_cache(1, final_lengths=torch.tensor([12]))


@each_kind
@pytest.mark.parametrize("chunk", [1, 3, 20])
@torch.no_grad()
def test_a_cache_of_ones_own_in_chunks(kind: str, chunk: int) -> None:
    net, tokens, lengths = model(kind), ids(4, 7), torch.tensor([*LENGTHS, 20])
    cache = net.new_cache(4, final_lengths=lengths)
    found = torch.cat([net(part, cache=cache) for part in tokens.split(chunk, 1)], 1)
    for row, length in enumerate(lengths.tolist()):
        equal(found[row], model(kind, length)(tokens[row : row + 1])[0])
    order = torch.tensor([3, 0, 0])
    cache.reorder(order)
    new = net(tokens[order, :1], cache=cache)
    for row, kept in enumerate(order.tolist()):
        text = torch.cat([tokens[kept], tokens[kept, :1]])
        equal(new[row, 0], model(kind, int(lengths[kept]))(text[None])[0, -1])
    cache, plain = net.new_cache(4), net(tokens)
    equal(torch.cat([net(part, cache=cache) for part in tokens.split(chunk, 1)], 1), plain)


@each_kind
def test_a_cache_keeps_the_length_that_it_was_made_for(kind: str) -> None:
    """Keys in it stay right, so a later call goes on with the length of the first, or the one that the caller named."""
    net, prompt, more = model(kind), ids(3), ids(8, seed=8)
    wrapper, text = AutoregressiveWrapper(net), torch.cat([prompt, more])

    def in_two(**first: object) -> Tensor:
        one, two = Script(more[None, :3]), Script(more[None, 3:])
        _, cache = wrapper.generate(prompt, 3, filter_logits_fn=one, return_cache=True, **first)
        wrapper.generate(None, 5, filter_logits_fn=two, cache=cache)
        return torch.cat([one.logits, two.logits], 1)[0]

    with torch.no_grad():
        equal(in_two(), model(kind, 6)(text[None])[0, -9:-1])
        named = net.new_cache(1, final_lengths=torch.tensor([TRAINED + 3]))
        equal(in_two(cache=named), model(kind, TRAINED + 3)(text[None])[0, -9:-1])
        equal(in_two(cache=net.new_cache(1)), net(text[None])[0, -9:-1])


@each_kind
@pytest.mark.parametrize("cache_kv", [True, False])
def test_past_max_seq_len_the_whole_text_counts(kind: str, cache_kv: bool) -> None:
    net, prompt, more = model(kind, max_seq_len=11), ids(6), ids(14, seed=9)
    seen = Script(more[None])
    AutoregressiveWrapper(net).generate(prompt, 14, filter_logits_fn=seen, cache_kv=cache_kv)
    twin = model(kind, 20, window=11)
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        equal(seen.logits[0], twin(torch.cat([prompt, more])[None])[0, -15:-1])


@each_kind
@pytest.mark.parametrize("cache_kv", [True, False])
def test_given_positions_end_where_they_end(kind: str, cache_kv: bool) -> None:
    net, prompt, more = model(kind), ids(2, 3), ids(2, 4, seed=9)
    positions, seen = torch.tensor([[0, 1, 2], [0, 2, 5]]), Script(more)
    AutoregressiveWrapper(net).generate(prompt, 4, filter_logits_fn=seen, positions=positions, cache_kv=cache_kv)
    for row, last in enumerate((2, 5)):
        places = torch.cat([positions[row], last + 1 + torch.arange(4)])
        with torch.no_grad():
            whole = model(kind, last + 5)(torch.cat([prompt[row], more[row]])[None], positions=places)
        equal(seen.logits[row], whole[0, -5:-1])


class Uneven(PositionScheme):
    """Embeddings that depend on nothing, and a claim that texts of two lengths differ."""

    prefix_consistent = False


def test_in_a_chain() -> None:
    """Lengths reach the part that asks for them, and a part that does not keeps its own."""
    rope = Rope(scaling=DynamicNtk(original_max_position_embeddings=TRAINED, factor=3.0))
    prompt, more = ids(4), ids(6, seed=3)
    seen = Script(more[None])
    AutoregressiveWrapper(language_model([rope, "alibi"])).generate(prompt, 6, filter_logits_fn=seen)
    named = rope.model_copy(update={"scaling": rope.scaling.model_copy(update={"length": 10})})
    with torch.no_grad():
        equal(seen.logits[0], language_model([named, "alibi"])(torch.cat([prompt, more])[None])[0, -7:-1])
    part = RopeEmbedding(10, scaling=rope.scaling.bound(MAX))
    chain, positions = Chain(part, Uneven()), torch.arange(5)[None]
    assert part.takes_final_length
    assert not chain.takes_final_length
    tables = chain.length_tables(positions, torch.tensor([[5]]))
    assert torch.equal(tables[0].q_sin, part.tables(positions).q_sin)
    assert not torch.equal(tables[0].q_sin, part.length_tables(positions, torch.tensor([[5]])).q_sin)


@torch.no_grad()
def test_what_is_refused() -> None:
    net = model("dynamic", cross_attend=True)
    for lengths in (torch.tensor([3, 4, 5]), torch.tensor([3.0, 4.0]), torch.tensor([[3, 4]])):
        with pytest.raises(InputError, match="final_lengths must be 2 integers"):
            net.new_cache(2, final_lengths=lengths)
    for lengths, value in (([0], 0), (torch.tensor([5, -3]), -3), (torch.tensor([-(2**62), 1]), -(2**62))):
        with pytest.raises(InputError, match=f"final_lengths contains {value}, .* at least 1"):
            net.new_cache(2, final_lengths=lengths)
    with pytest.raises(InputError, match="final_lengths"):
        net.new_cache(2, final_lengths="12")
    assert torch.equal(net.new_cache(2, final_lengths=[1, 7]).final_lengths, torch.tensor([1, 7]))
    context = torch.randn(1, 4, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cache = net.new_cache(1, final_lengths=torch.tensor([9]))
    with pytest.raises(PositionError, match="context keys those for max_seq_len"):
        net(ids(1, 3), context=context, context_positions=torch.arange(4), cache=cache)
    assert net(ids(1, 3), context=context, cache=cache).isfinite().all()


@torch.no_grad()
def test_continuous_inputs() -> None:
    layers = Decoder(dim=12, depth=2, heads=2, attn_dim_head=10, position=Rope(scaling=KINDS["longrope"]()))
    net = ContinuousTransformerWrapper(dim_in=3, dim_out=2, max_seq_len=MAX, attn_layers=layers).double().eval()
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = net(x, cache=net.new_cache(2, final_lengths=torch.tensor([5, MAX])))
    equal(found[1], net(x)[1])
    assert (found[0] - net(x)[0]).abs().max() > 1e-6
