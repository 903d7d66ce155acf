"""Decoders in transformers: the real library loads, calls and generates with them as x_positional does."""

import copy
from typing import Any

import pytest
import torch

from tests.support.hf_models import CAUSAL, causal
from tests.support.rounding import assert_same
from tests.support.small_models import ids
from x_positional import AutoregressiveWrapper, CacheError
from x_positional.hf import XPositionalCache
from x_positional.hf.caching import CACHE_NAME

TOKENS = ids(2, 7)
MASK = torch.ones_like(TOKENS)
MASK[0, :3] = 0
"""Left padding of the first row."""
TWICE = TOKENS[1:].repeat(1, 2)
"""A prompt that repeats itself, which prompt lookup proposes to continue."""
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.3, "top_k": 5, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "do_sample": False},
    "sampled beams": {"num_beams": 4, "num_return_sequences": 2, "do_sample": True},
}
MODELS = {name: causal(name) for name in CAUSAL}


def new_tokens(model: Any, use_cache: bool = True, **settings: Any) -> torch.Tensor:
    """[B N] after the padded prompts."""
    torch.manual_seed(1)
    settings = {"max_new_tokens": 8, "attention_mask": MASK, "use_cache": use_cache, **settings}
    return model.generate(TOKENS, **settings)[:, TOKENS.shape[1] :]


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_logits_and_greedy_tokens(name: str):
    model, theirs = MODELS[name]
    assert torch.equal(theirs(TOKENS).logits, model(TOKENS))
    alone = AutoregressiveWrapper(model).generate(TOKENS, 8, temperature=0.0)
    assert torch.equal(new_tokens(theirs, do_sample=False, attention_mask=MASK.new_ones(MASK.shape)), alone)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_left_padding_changes_nothing(name: str):
    model, theirs = MODELS[name]
    assert_same(theirs(TOKENS, attention_mask=MASK).logits[0, 3:], model(TOKENS[:1, 3:])[0])
    alone = AutoregressiveWrapper(model).generate(TOKENS[:1, 3:], 8, temperature=0.0)
    assert torch.equal(new_tokens(theirs, do_sample=False)[:1], alone)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_positions_that_only_count_tokens_suit_every_scheme(name: str):
    theirs, more = MODELS[name][1], ids(2, 4)
    mask = torch.cat([MASK, torch.ones_like(more)], 1)
    counted = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)  # what users of transformers pass
    cache = theirs(TOKENS, attention_mask=MASK, position_ids=counted[:, :7]).past_key_values
    found = theirs(more, attention_mask=mask, position_ids=counted[:, 7:], past_key_values=cache).logits
    assert_same(found, theirs(torch.cat([TOKENS, more], 1), attention_mask=mask).logits[:, 7:])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_the_cache_changes_no_token(name: str, way: str):
    theirs = MODELS[name][1]
    assert torch.equal(new_tokens(theirs, **WAYS[way]), new_tokens(theirs, use_cache=False, **WAYS[way]))


@pytest.mark.parametrize("name", sorted(set(CAUSAL) - {"pattern"}))
@torch.no_grad()
def test_assisted_decoding(name: str):
    theirs, assistant = MODELS[name][1], causal(name, noise=0.5)[1]
    prompt, settings = TWICE, {"max_new_tokens": 12, "do_sample": False}
    want = theirs.generate(prompt, **settings)
    crops: list[int] = []
    cropped = XPositionalCache.crop

    def noted(cache: XPositionalCache, tokens_to_remove: int) -> None:
        crops.append(tokens_to_remove)
        cropped(cache, tokens_to_remove)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(XPositionalCache, "crop", noted)
        assert torch.equal(theirs.generate(prompt, assistant_model=assistant, **settings), want)
        assert torch.equal(theirs.generate(prompt, prompt_lookup_num_tokens=3, **settings), want)
    assert min(crops) < 0, "some proposals were rejected"


@torch.no_grad()
def test_assisted_decoding_stops_at_a_window():
    theirs = MODELS["pattern"][1]
    settings = {"max_new_tokens": 12, "do_sample": False, "prompt_lookup_num_tokens": 3}
    with pytest.raises(CacheError, match="exceeds a window of 3"):
        theirs.generate(TOKENS[1:], **settings)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_cache_continues_by_chunks_and_from_embeddings(name: str):
    theirs = MODELS[name][1]
    more = ids(2, 4)
    both, mask = torch.cat([TOKENS, more], 1), torch.cat([MASK, torch.ones_like(more)], 1)
    cache = theirs(TOKENS, attention_mask=MASK).past_key_values
    assert cache.get_seq_length() == 7
    found = theirs(more, attention_mask=mask, past_key_values=copy.deepcopy(cache)).logits
    assert torch.equal(theirs(more, attention_mask=mask, cache=copy.deepcopy(cache)).logits, found)
    assert_same(found, theirs(both, attention_mask=mask).logits[:, 7:])
    settings = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 5}
    want = theirs.generate(both, **settings)
    for name in ("past_key_values", "cache") if CACHE_NAME == "cache" else ("past_key_values",):
        assert torch.equal(theirs.generate(both, **{name: copy.deepcopy(cache)}, **settings), want)
    assert torch.equal(theirs.generate(both, prefill_chunk_size=3, **settings), want)
    embeds = theirs.get_input_embeddings()(both)
    assert torch.equal(theirs.generate(inputs_embeds=embeds, **settings), want[:, both.shape[1] :])


@torch.no_grad()
def test_columns_of_a_cache_are_cropped_repeated_and_selected():
    theirs = MODELS["alibi"][1]
    more = ids(2, 4)
    holes = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]])
    mask = torch.cat([MASK, holes], 1)
    cache = theirs(TOKENS, attention_mask=MASK).past_key_values
    theirs(more, attention_mask=mask, past_key_values=cache)
    assert (cache.get_seq_length(), cache.batch_size, len(cache)) == (11, 2, 2)
    cache.crop(0)
    cache.crop(-3)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    last, seen = ids(2, 2), torch.cat([mask[:, :8].flip(0), torch.ones(2, 2, dtype=torch.long)], 1)
    found = theirs(last, attention_mask=seen, past_key_values=cache).logits
    whole = torch.cat([TOKENS.flip(0), more[:, :1].flip(0), last], 1)
    assert_same(found, theirs(whole, attention_mask=seen).logits[:, 8:])
    with pytest.raises(CacheError, match="holds only 10 columns"):
        cache.crop(-11)
    cache.reset()
    assert cache.get_seq_length() == 0


BROKEN = {
    "beams": ("batch_select_indices", lambda cache, indices: None),
    "assisted": ("crop", lambda cache, tokens_to_remove: None),
}


@pytest.mark.parametrize("what", BROKEN)
@torch.no_grad()
def test_a_broken_cache_is_found(what: str, monkeypatch: pytest.MonkeyPatch):
    theirs = MODELS["rope"][1]
    monkeypatch.setattr(XPositionalCache, *BROKEN[what])
    if what == "beams":
        assert not torch.equal(new_tokens(theirs, **WAYS["beams"]), new_tokens(theirs, False, **WAYS["beams"]))
        return
    settings = {"max_new_tokens": 12, "do_sample": False}
    want = theirs.generate(TWICE, **settings)
    assert not torch.equal(theirs.generate(TWICE, prompt_lookup_num_tokens=3, **settings), want)
