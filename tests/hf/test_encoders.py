"""Encoders in transformers: AutoModelForMaskedLM and AutoModel."""

import pytest
import torch
import torch.nn.functional as F
import transformers

from tests.support.hf_models import encoder, load, loaded
from tests.support.published.compare import quietly
from tests.support.small_models import ids
from x_positional import PretrainedError, from_pretrained
from x_positional.models.language import TokenEncoder

TOKENS = ids(2, 9)
MASK = torch.ones_like(TOKENS)
MASK[1, 6:] = 0
LABELS = TOKENS.masked_fill(MASK == 0, -100)


@pytest.mark.parametrize("position", ["rope", "alibi", "t5", "absolute"])
@torch.no_grad()
def test_logits_losses_and_hidden_states(position: str, tmp_path):
    model = encoder(position)
    model.save_pretrained(tmp_path, format="hf", code=True)
    theirs = load(tmp_path, "AutoModelForMaskedLM")
    out = theirs(TOKENS, attention_mask=MASK, labels=LABELS, output_hidden_states=True, output_attentions=True)
    want, maps = model(TOKENS, mask=MASK.bool(), return_attention=True)
    assert torch.equal(out.logits, want)
    torch.testing.assert_close(out.loss, F.cross_entropy(want.flatten(0, 1), LABELS.flatten()))
    step = theirs(TOKENS, attention_mask=MASK, labels=LABELS, num_items_in_batch=5).loss
    torch.testing.assert_close(step, out.loss * (LABELS != -100).sum() / 5)
    hidden = model(TOKENS, mask=MASK.bool(), return_embeddings=True)
    assert len(out.hidden_states) == 3
    assert torch.equal(out.hidden_states[-1], hidden)
    assert all(torch.equal(a, b) for a, b in zip(out.attentions, maps, strict=True))
    body = quietly(transformers.AutoModel.from_pretrained, tmp_path)(TOKENS, attention_mask=MASK)
    assert torch.equal(body.last_hidden_state, hidden)
    assert body.past_key_values is None


@torch.no_grad()
def test_an_encoder_without_a_head(tmp_path):
    model = TokenEncoder.from_config(encoder().config).eval()
    model.save_pretrained(tmp_path, format="hf", code=True)
    assert torch.equal(load(tmp_path, "AutoModel")(TOKENS).last_hidden_state, model(TOKENS))
    assert torch.equal(from_pretrained(tmp_path)(TOKENS), model(TOKENS))
    with pytest.raises(PretrainedError, match="it is a TokenEncoder; use AutoModel"):
        quietly(transformers.AutoModelForMaskedLM.from_pretrained, tmp_path)


@torch.no_grad()
def test_token_types():
    model = encoder(token_types=2)
    types = (torch.arange(9) > 4).long().expand(2, 9)
    theirs = loaded(model, "AutoModelForMaskedLM")
    assert torch.equal(theirs(TOKENS, token_type_ids=types).logits, model(TOKENS, token_types=types))
    without = loaded(encoder(), "AutoModelForMaskedLM")
    assert torch.equal(without(TOKENS, token_type_ids=types * 0).logits, without(TOKENS).logits)
    with pytest.raises(ValueError, match="no token type embeddings"):
        without(TOKENS, token_type_ids=types)
