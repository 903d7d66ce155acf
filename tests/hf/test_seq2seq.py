"""Encoder-decoders in transformers: AutoModelForSeq2SeqLM."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.hf_models import load, loaded, seq2seq
from tests.support.small_models import ids
from x_positional import InputError, from_pretrained

SOURCE, TARGET = ids(2, 7), ids(2, 4)
MASK = torch.ones_like(SOURCE)
MASK[0, 5:] = 0
START = {"decoder_start_token_id": 1, "max_new_tokens": 6, "attention_mask": MASK}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled": {"do_sample": True, "num_return_sequences": 3},
}
FLAGS: dict[str, dict[str, Any]] = {
    "rope": {},
    "alibi": {"position": "alibi"},
    "t5, one table": {"position": "t5", "tie_token_emb": True},
}


@pytest.mark.parametrize("name", FLAGS)
@torch.no_grad()
def test_logits_and_tokens(name: str):
    model = seq2seq(**FLAGS[name])
    theirs = loaded(model, "AutoModelForSeq2SeqLM")
    want = model.logits(SOURCE, TARGET, MASK.bool())
    assert torch.equal(theirs(SOURCE, attention_mask=MASK, decoder_input_ids=TARGET).logits, want)
    ours = model.generate(SOURCE, torch.ones(2, 1, dtype=torch.long), 6, mask=MASK.bool(), temperature=0.0)
    assert torch.equal(theirs.generate(SOURCE, do_sample=False, **START)[:, 1:], ours)
    for settings in WAYS.values():
        found = []
        for use_cache in (True, False):
            torch.manual_seed(1)
            found.append(theirs.generate(SOURCE, use_cache=use_cache, **START, **settings))
        assert torch.equal(*found)
    one = {**START, "attention_mask": MASK[1:], "do_sample": False}
    assisted = theirs.generate(SOURCE[1:], prompt_lookup_num_tokens=2, **one)
    assert torch.equal(assisted, theirs.generate(SOURCE[1:], **one))


@torch.no_grad()
def test_labels_are_shifted_into_the_decoder():
    model = seq2seq()
    theirs = loaded(model, "AutoModelForSeq2SeqLM")
    labels = TARGET.clone()
    labels[1, 2:] = -100
    with pytest.raises(InputError, match="decoder_start_token_id"):
        theirs(SOURCE, labels=labels)
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = 1, 2
    read = torch.cat([torch.ones(2, 1, dtype=torch.long), labels[:, :-1]], 1).masked_fill_(
        torch.cat([torch.zeros(2, 1), labels[:, :-1]], 1) == -100, 2
    )
    out = theirs(SOURCE, attention_mask=MASK, labels=labels)
    want = model.logits(SOURCE, read, MASK.bool())
    assert torch.equal(out.logits, want)
    torch.testing.assert_close(out.loss, F.cross_entropy(want.flatten(0, 1), labels.flatten()))


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_saved_again_and_resized(tied: bool, tmp_path):
    model = seq2seq(tie_token_emb=tied)
    theirs = loaded(model, "AutoModelForSeq2SeqLM")
    shared = theirs.model.decoder.net.token_emb.weight is theirs.model.encoder.token_emb.weight
    assert shared == tied
    theirs.config.decoder_start_token_id = 1
    theirs.save_pretrained(tmp_path)
    back = load(tmp_path, "AutoModelForSeq2SeqLM")
    want = model.logits(SOURCE, TARGET)
    assert back.config.decoder_start_token_id == 1
    assert torch.equal(back(SOURCE, decoder_input_ids=TARGET).logits, want)
    assert torch.equal(from_pretrained(tmp_path).logits(SOURCE, TARGET), want)
    back.resize_token_embeddings(19)
    found = back(SOURCE, decoder_input_ids=TARGET).logits
    assert torch.equal(found[..., :13], want)
    back.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path, "AutoModelForSeq2SeqLM")(SOURCE, decoder_input_ids=TARGET).logits, found)


@torch.no_grad()
def test_maps_and_states_of_both_sides():
    theirs = loaded(seq2seq(), "AutoModelForSeq2SeqLM")
    wanted = {"output_attentions": True, "output_hidden_states": True}
    out = theirs(SOURCE, decoder_input_ids=TARGET, **wanted)
    assert [len(part) for part in (out.encoder_hidden_states, out.decoder_hidden_states)] == [3, 3]
    assert out.cross_attentions[1].shape == (2, 3, 4, 7)
    assert (out.encoder_attentions[1].shape, out.decoder_attentions[1].shape) == ((2, 3, 7, 7), (2, 3, 4, 4))
    encoded = theirs.get_encoder()(SOURCE, return_dict=True)
    again = theirs(encoder_outputs=encoded, decoder_input_ids=TARGET, attention_mask=torch.ones_like(SOURCE))
    assert torch.equal(again.logits, out.logits)
