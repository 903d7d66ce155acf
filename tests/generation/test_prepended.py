"""`prepend_embeds` in `generate`, `stream` and `prefill`: each row equals the row alone, and looked-up tokens equal the tokens."""

from typing import Any

import pytest
import torch

from tests.support.draws import draws
from tests.support.generation_models import GREEDY, UNLIMITED, ids, language_model, ragged
from x_positional import AutoregressiveWrapper, Decoder, DraftModel, PromptLookup, Rope, TransformerWrapper
from x_positional.errors import CacheError, InputError
from x_positional.generation.step.graph import GRAPHS
from x_positional.schemes.rotary.scaling.length import DynamicNtk

SCHEMES = draws(["rope", "cope", "forgetting", "absolute"], [*UNLIMITED, "absolute"])
WIDTH, NEW = 26, 6


def soft(*lengths: int) -> list[torch.Tensor]:
    """Random embeddings, one a row."""
    random = torch.Generator().manual_seed(3)
    return [torch.randn(n, WIDTH, dtype=torch.float64, generator=random) for n in lengths]


def wrapper(position: Any = "rope", **flags: Any) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model(position, **flags))


def ways(net: TransformerWrapper, rows: int) -> list[dict[str, Any]]:
    """Options of which none may change a token."""
    windowed = net.new_cache(rows, window=net.max_seq_len)
    return [{}, {"prefill_chunk_size": 2}, {"prefill_chunk_size": 5}, {"cache_kv": False}, {"cache": windowed}]


@pytest.mark.parametrize("position", SCHEMES)
def test_looked_up_tokens_equal_the_tokens(position: str) -> None:
    model, prompt = wrapper(position), ids(2, 9)
    x, want = model.net.embed_tokens(prompt), model.generate(prompt, NEW, **GREEDY)
    for first, rest in ((x[:, :4], prompt[:, 4:]), (x, None)):
        for way in ways(model.net, 2):
            assert torch.equal(model.generate(rest, NEW, prepend_embeds=first, **GREEDY, **way), want)
    single = model.generate(prompt[0, 4:], NEW, prepend_embeds=x[:1, :4], **GREEDY)
    assert torch.equal(single, want[0])
    streamed = torch.stack(list(model.stream(prompt[:, 4:], NEW, prepend_embeds=x[:, :4], **GREEDY)), 1)
    assert torch.equal(streamed, want)


@pytest.mark.parametrize("position", SCHEMES)
def test_ragged_prompts_and_ragged_prefixes_equal_each_row_alone(position: str) -> None:
    model, rows, before = wrapper(position), ragged(7, 3, 5), soft(2, 5, 3)
    alone = [model.generate(row, NEW, prepend_embeds=x[None], **GREEDY) for row, x in zip(rows, before, strict=True)]
    for way in ways(model.net, 3):
        assert torch.equal(model.generate(rows, NEW, prepend_embeds=before, **GREEDY, **way), torch.stack(alone))
    shared = torch.stack(soft(4)).expand(3, -1, -1)
    got = model.generate(rows, NEW, prepend_embeds=shared, **GREEDY)
    for i, row in enumerate(rows):
        assert torch.equal(got[i], model.generate(row, NEW, prepend_embeds=shared[:1], **GREEDY))
    alone = [model.generate(None, NEW, prepend_embeds=x[None], **GREEDY)[0] for x in before]
    assert torch.equal(model.generate(None, NEW, prepend_embeds=before, **GREEDY), torch.stack(alone))


def test_the_window_of_max_seq_len_counts_prepended_places() -> None:
    model, prompt = wrapper(max_seq_len=12), ids(2, 9)
    x = model.net.embed_tokens(prompt[:, :4])
    assert torch.equal(
        model.generate(prompt[:, 4:], 9, prepend_embeds=x, **GREEDY), model.generate(prompt, 9, **GREEDY)
    )
    table = wrapper("absolute", max_seq_len=12)
    with pytest.raises(InputError, match="come to 13 tokens, but this model's positions end at 12"):
        table.generate(prompt[:, 4:], 5, prepend_embeds=x, **GREEDY)


@pytest.mark.parametrize("policy", ["fixed", "recompute"])
def test_schemes_that_depend_on_the_length(policy: str) -> None:
    scaling = DynamicNtk(original_max_position_embeddings=8, length_policy=policy)
    model, rows, before = wrapper(Rope(scaling=scaling)), ragged(4, 3), soft(3, 5)
    alone = [model.generate(row, NEW, prepend_embeds=x[None], **GREEDY) for row, x in zip(rows, before, strict=True)]
    assert torch.equal(model.generate(rows, NEW, prepend_embeds=before, **GREEDY), torch.stack(alone))
    prompt = ids(2, 9)
    x = model.net.embed_tokens(prompt)
    want = model.generate(prompt, NEW, **GREEDY)
    assert torch.equal(model.generate(prompt[:, 4:], NEW, prepend_embeds=x[:, :4], **GREEDY), want)


def test_positions_cover_all_places() -> None:
    model, prompt = wrapper(), ids(2, 9)
    x, positions = model.net.embed_tokens(prompt[:, :4]), torch.arange(9) * 3
    want = model.generate(prompt, NEW, positions=positions, **GREEDY)
    for size in (None, 3):
        got = model.generate(
            prompt[:, 4:], NEW, positions=positions, prepend_embeds=x, prefill_chunk_size=size, **GREEDY
        )
        assert torch.equal(got, want)
    with pytest.raises(InputError, match="positions covers the 5 tokens, but not the 4 places"):
        model.generate(prompt[:, 4:], NEW, positions=positions[:5], prepend_embeds=x)


def test_a_prefix_of_embeddings_is_read_once_and_continued() -> None:
    model, (x,), rows = wrapper(), soft(4), ragged(3, 5)
    prefix = model.prefill(None, prepend_embeds=x[None])
    want = [model.generate(row, NEW, prepend_embeds=x[None], **GREEDY) for row in rows]
    got = model.generate(rows, NEW, cache=prefix.copy().repeat(2), **GREEDY)
    assert torch.equal(got, torch.stack(want))
    sampled = model.generate(None, NEW, prepend_embeds=x[None].expand(3, -1, -1), seed=1)
    assert torch.equal(model.generate(None, NEW, cache=prefix.copy().repeat(3), seed=1), sampled)
    second = model.prefill(rows[0], prepend_embeds=x[None])  # an image in the middle of a conversation
    got = model.generate(rows[1], NEW, cache=second, prepend_embeds=x[None], **GREEDY)
    whole = torch.cat([x[None], model.net.embed_tokens(rows[0][None]), x[None]], 1)
    assert torch.equal(got, model.generate(rows[1], NEW, prepend_embeds=whole, **GREEDY))


def test_the_repetition_penalty_counts_tokens_alone() -> None:
    model, rows, before = wrapper(), ragged(7, 3), soft(2, 4)
    options = {**GREEDY, "repetition_penalty": 1.5}
    alone = [model.generate(row, NEW, prepend_embeds=x[None], **options) for row, x in zip(rows, before, strict=True)]
    assert torch.equal(model.generate(rows, NEW, prepend_embeds=before, **options), torch.stack(alone))


def test_speculation_copies_from_the_prompt_and_refuses_a_draft() -> None:
    model, prompt = wrapper(), ids(9)
    x, options = torch.stack(soft(4)), {"prepend_embeds": torch.stack(soft(4)), **GREEDY}
    got = model.generate(prompt, 12, speculate=PromptLookup(), **options)
    assert torch.equal(got, model.generate(prompt, 12, **options))
    with pytest.raises(InputError, match="its proposals would ignore prepend_embeds"):
        model.generate(prompt, 12, prepend_embeds=x, speculate=DraftModel(model.net))


def test_compiled_steps_follow_prepended_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRAPHS, "backend", "eager")  # generating code would take half a minute
    torch.manual_seed(0)
    layers = Decoder(dim=26, depth=1, heads=2, attn_dim_head=10, position="rope")
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=29, max_seq_len=48, attn_layers=layers).double().eval())
    rows, before = ragged(7, 3), soft(2, 4)
    want = model.generate(rows, NEW, prepend_embeds=before, compile=False, **GREEDY)
    assert torch.equal(model.generate(rows, NEW, prepend_embeds=before, compile=True, **GREEDY), want)


def test_what_does_not_fit_is_refused_before_anything_is_read() -> None:
    model, prompt, x = wrapper(), ids(2, 5), torch.stack(soft(3, 3))
    cache = model.net.new_cache(2)
    for given, reason in (
        (x[:1], r"shape \[batch, places, width\] = \[2, places, 26\]"),
        (x.float(), r"prepend_embeds must be torch.float64"),
        ([x[0]], r"= \[2, places, 26\]"),
        ([x[0], x[1, :, :4]], r"prepend_embeds\[1\] must have shape"),
        ([], "the list of prepend_embeds is empty"),
        (3, "prepend_embeds must be a float tensor"),
    ):
        with pytest.raises(InputError, match=reason):
            model.generate(prompt, NEW, prepend_embeds=given, cache=cache)
    with pytest.raises(InputError, match="prompt_lens was given without prompts"):
        model.generate(None, NEW, prepend_embeds=x, prompt_lens=[1, 2])
    with pytest.raises(CacheError, match="batch_size=2"):
        model.generate(None, NEW, prepend_embeds=torch.stack(soft(3, 3, 3)), cache=cache)
    assert cache.span == 0
