"""Schemes whose keys depend on the length: generate reads the whole sequence for every token, or says why it cannot."""

from typing import Any

import pytest
import torch

from tests.support.hf_models import loaded
from tests.support.small_models import decoder, ids
from x_positional import AutoregressiveWrapper, PositionError

TOKENS = ids(2, 7)
RECOMPUTED = {"length_policy": "recompute", "original_max_position_embeddings": 9}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, **RECOMPUTED}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    **RECOMPUTED,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 1.5, 2.0, 4.0],
}
SCALINGS: dict[str, dict[str, Any]] = {"dynamic": DYNAMIC, "longrope": LONG}


@pytest.mark.parametrize("name", SCALINGS)
@torch.no_grad()
def test_the_prefix_is_read_again(name: str):
    model = decoder({"kind": "rope", "scaling": SCALINGS[name]}, max_seq_len=64)
    theirs = loaded(model)
    want = AutoregressiveWrapper(model).generate(TOKENS, 6, temperature=0.0)
    settings = {"do_sample": False, "max_new_tokens": 6}
    assert torch.equal(theirs.generate(TOKENS, **settings)[:, 7:], want)
    assert theirs(TOKENS).past_key_values is None
    with pytest.raises(PositionError, match="changes the keys of earlier tokens"):
        theirs(TOKENS, use_cache=True)
    with pytest.raises(PositionError, match="assisted decoding needs a cache"):
        theirs.generate(TOKENS[:1], prompt_lookup_num_tokens=2, **settings)
    with pytest.raises(PositionError, match="inputs_embeds in generate needs a cache"):
        theirs.generate(inputs_embeds=theirs.get_input_embeddings()(TOKENS), **settings)


@torch.no_grad()
def test_keys_that_are_kept_would_be_found(monkeypatch: pytest.MonkeyPatch):
    theirs = loaded(decoder({"kind": "rope", "scaling": DYNAMIC}, max_seq_len=64, noise=0.6))
    settings = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True}
    want = theirs.generate(TOKENS, **settings)
    monkeypatch.setattr("x_positional.hf.generation.cacheable", lambda net: True)
    layers = theirs.model.attn_layers
    made = layers.new_cache
    monkeypatch.setattr(theirs.model, "new_cache", lambda batch: made(batch, rereads=True))
    found = theirs.generate(TOKENS, **settings)
    assert (found.logits[-1] - want.logits[-1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_fixed_length_keeps_its_cache():
    model = decoder({"kind": "rope", "scaling": {**DYNAMIC, "length_policy": "fixed", "length": 40}}, max_seq_len=64)
    theirs = loaded(model)
    found = [theirs.generate(TOKENS, do_sample=False, max_new_tokens=6, use_cache=use) for use in (True, False)]
    assert torch.equal(*found)
