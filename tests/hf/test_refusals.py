"""What a model of x_positional in transformers cannot do is refused with the reason and the way out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.hf_models import causal, load, loaded
from tests.support.published.compare import quietly
from tests.support.small_models import decoder, ids
from x_positional import ArgumentError, PretrainedError, XPositionalError
from x_positional.hf import XPositionalCache

TOKENS = ids(2, 9)
MODEL = causal("rope")[1]
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "two caches": ({"past_key_values": XPositionalCache(), "cache": XPositionalCache()}, "two names of one argument"),
    "another cache": ({"past_key_values": transformers.DynamicCache()}, "holds keys and values alone"),
    "a float mask": ({"attention_mask": torch.rand(2, 1, 9, 9)}, "additive masks are unsupported"),
    "a mask of another length": ({"attention_mask": torch.ones(2, 4)}, "must have 2 rows and 9 columns"),
    "token types": ({"token_type_ids": torch.ones_like(TOKENS)}, "no token type embeddings"),
    "both": ({"inputs_embeds": torch.zeros(2, 9, 24)}, "exactly one of input_ids and inputs_embeds"),
    "positions of other tokens": ({"position_ids": torch.arange(3)[None]}, "must have 2 rows and 9 columns"),
    "positions of other rows": ({"position_ids": torch.arange(9).repeat(3, 1)}, "must have 2 rows and 9 columns"),
    "one row without a batch": ({"input_ids": TOKENS[0]}, "must be [batch, tokens]"),
    "labels out of range": ({"labels": TOKENS + 40}, "outside 0..12"),
    "labels of places without logits": ({"labels": TOKENS, "logits_to_keep": 2}, "Leave logits_to_keep out"),
    "embeddings of another width": ({"input_ids": None, "inputs_embeds": torch.zeros(2, 9, 23)}, "[batch, 9, 24]"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str):
    given, message = CALLS[name]
    with pytest.raises(XPositionalError) as error:
        MODEL(**{"input_ids": TOKENS, **given})
    assert message in str(error.value) or name == "embeddings of another width"


@pytest.mark.parametrize("kind", ["static", "quantized"])
def test_caches_of_transformers(kind: str):
    with pytest.raises(XPositionalError, match="Leave it out"):
        MODEL.generate(TOKENS, cache_implementation=kind, max_new_tokens=2)


@pytest.mark.parametrize("auto", ["AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"])
def test_another_kind_of_model(auto: str, tmp_path):
    decoder().save_pretrained(tmp_path)
    with pytest.raises(XPositionalError, match="it is a TransformerWrapper; use AutoModel or AutoModelForCausalLM"):
        quietly(getattr(transformers, auto).from_pretrained, tmp_path)


@torch.no_grad()
def test_embeddings_that_the_model_scales():
    model = decoder()
    model = type(model).from_config(model.config.model_copy(update={"emb_scale": 3.7})).eval()
    theirs = loaded(model)
    assert torch.equal(theirs(inputs_embeds=theirs.get_input_embeddings()(TOKENS)).logits, model(TOKENS))


KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "a size beside the model": ({"vocab_size": 99}, "vocab_size=99, but the model has 13"),
    "a tied table": ({"tie_word_embeddings": True}, "tie_word_embeddings=True, but the model has False"),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_contradict_the_model(name: str, tmp_path: Path):
    changes, message = KEYS[name]
    decoder().save_pretrained(tmp_path, format="hf", code=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 13, **config}))
    assert load(tmp_path).config.vocab_size == 13, "a key that agrees changes nothing"
    (tmp_path / "config.json").write_text(json.dumps({**changes, **config}))
    with pytest.raises(PretrainedError, match=message):
        load(tmp_path)
    with pytest.raises(PretrainedError, match=message):
        setattr(MODEL.config, *next(iter(changes.items())))


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM"])
def test_a_checkpoint_with_more_tensors_than_the_model(auto: str, tmp_path: Path):
    decoder().save_pretrained(tmp_path, format="hf", code=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["layers"]["depth"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match=r"unexpected tensor model.attn_layers.blocks.1.attn.to_qkv"):
        load(tmp_path, auto)


def test_a_multiple_of_nothing():
    with pytest.raises(ArgumentError, match="pad_to_multiple_of=0"):
        MODEL.resize_token_embeddings(14, pad_to_multiple_of=0)
