"""Decoders written with code: the real library loads, calls and generates with them as x_positional does."""

import pytest
import torch
import transformers

from tests.support.small_models import decoder, ids
from x_positional import AutoregressiveWrapper, from_pretrained

CASES = {
    "rope": {},
    "alibi": {"position": "alibi"},
    "t5": {"position": "t5"},
    "cope": {"position": "cope"},
    "forgetting": {"position": "forgetting"},
    "pattern": {"pattern": [{"position": "rope", "window": 3}, {"position": "cope"}], "position": None},
}


def both(name: str, folder):
    """A model, and what AutoModelForCausalLM makes of its folder."""
    model = decoder(**CASES[name])
    model.save_pretrained(folder, format="hf", code=True)
    return model, transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_and_greedy_tokens(name: str, tmp_path):
    model, theirs = both(name, tmp_path)
    tokens = ids(2, 11)
    assert torch.equal(theirs(tokens).logits, model(tokens))
    new = theirs.generate(tokens, max_new_tokens=9, do_sample=False)[:, 11:]
    assert torch.equal(new, AutoregressiveWrapper(model).generate(tokens, 9, temperature=0.0))
    back = from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, back.get_parameter(name))
