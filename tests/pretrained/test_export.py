"""Models of one's own written for transformers and in our own format, and what no family has."""

import ast
import json
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.support.export_models import own
from tests.support.published.compare import ids, perturb, quietly, their_logits
from tests.support.rounding import assert_same
from x_positional import (
    ArgumentError,
    Decoder,
    Encoder,
    PretrainedError,
    TransformerWrapper,
    ViTransformerWrapper,
    from_pretrained,
)
from x_positional.config.models import plain
from x_positional.models import saving
from x_positional.pretrained.tensors import write

CASES = {
    "llama": ({}, "LlamaForCausalLM"),
    "llama with groups, biases and a scaled rope": (
        {
            "kv_heads": 2,
            "attn": {"bias": True},
            "norm": {"kind": "rms", "eps": 1e-4},
            "position": {"kind": "rope", "theta": 500.0, "scaling": {"rope_type": "linear", "factor": 2.0}},
        },
        "LlamaForCausalLM",
    ),
    "llama with a tied head": ({"tie_embedding": True, "tie_embedding_scale": 1.0}, "LlamaForCausalLM"),
    "gpt2": (
        {
            "head_dim": 8,
            "position": {"kind": "absolute", "scale": 1.0},
            "norm": {"kind": "layer", "bias": True},
            "attn": {"bias": True},
            "ff": {"activation": "gelu_tanh"},
        },
        "GPT2LMHeadModel",
    ),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_models_of_ones_own(name: str, tmp_path: Path):
    changes, architecture = CASES[name]
    model = own(**changes)
    model.save_pretrained(tmp_path, format="hf")
    theirs = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path)
    assert type(theirs).__name__ == architecture
    tokens = ids(2, 19)
    expected = model(tokens)
    assert_same(their_logits(theirs, tokens), expected)
    assert_same(from_pretrained(tmp_path)(tokens), expected)


CLOSE = {
    "a default model": {},
    "rope as in x-transformers": {"rotary_pos_emb": True},
    "rms and glu": {"rotary_pos_emb": True, "use_rmsnorm": True, "ff_glu": True, "ff_swish": True},
    "alibi": {"alibi_pos_bias": True},
    "t5": {"rel_pos_bias": True},
    "two windows": {"pattern": [{"position": "rope", "window": 3}, {"position": "cope"}]},
}
NEED = re.compile(r"it needs ([\w.]+)=(.*) \(this model: ")


@pytest.mark.parametrize("name", CLOSE)
def test_the_settings_that_a_family_needs_are_all_it_needs(name: str, tmp_path: Path):
    """A model with the keys of the message is written as that family."""
    layers = Decoder(dim=32, depth=2, heads=2, **CLOSE[name])
    model = TransformerWrapper(num_tokens=31, max_seq_len=20, attn_layers=layers)
    with pytest.raises(PretrainedError, match="format='native'") as error:
        model.save_pretrained(tmp_path / "model", format="hf", code=False)
    found = dict(match.groups() for problem in error.value.problems if (match := NEED.match(problem)))
    if "of each layer" in str(error.value):
        assert "it needs layers.position of each layer=[" in str(error.value)
        return
    assert found
    fields = plain(model.config)
    for path, value in found.items():
        *sections, key = path.split(".")
        section = fields
        for one in sections:
            section[one] = {"kind": section[one]} if isinstance(section.get(one), str) else section.get(one) or {}
            section = section[one]
        section[key] = ast.literal_eval(value)
    TransformerWrapper.from_config(fields).save_pretrained(tmp_path / "model", format="hf")
    family = re.search(r"closest family is (\w+):", str(error.value))
    assert family is not None
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == family[1]


REFUSED = {
    "cope": ({"position": "cope"}, "position"),
    "two schemes": ({"position": ["rope", "alibi"]}, "position"),
    "a norm that nobody has": ({"norm": "scale"}, "layers.norm.kind="),
    "emb_dim": ({"emb_dim": 16}, "emb_dim"),
    "scores": ({"attn": {"softcap": 7.5, "sinks": True}}, "attn.softcap"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_family_has_is_named(name: str, tmp_path: Path):
    changes, word = REFUSED[name]
    with pytest.raises(PretrainedError, match="the closest family is") as error:
        own(**changes).save_pretrained(tmp_path / "model", format="hf", code=False)
    assert word in str(error.value)
    assert not (tmp_path / "model").exists(), "nothing is written where something is refused"


def test_a_family_by_name(tmp_path: Path):
    with pytest.raises(PretrainedError, match="did you mean 'llama'"):
        own().save_pretrained(tmp_path, format="hf", model_type="lama")
    with pytest.raises(PretrainedError, match="closest family is gpt2"):
        own().save_pretrained(tmp_path, format="hf", model_type="gpt2")
    with pytest.raises(ArgumentError, match="unknown format='onnx'"):
        own().save_pretrained(tmp_path, format="onnx")  # type: ignore[arg-type]


NATIVE = {
    "cope": lambda: own(position="cope"),
    "pattern": lambda: own(pattern=[{"window": 4}, {"position": "none"}, {"attn": {"softcap": 5.0}}]),
    "tied": lambda: own(tie_embedding=True, logits_bias=True, emb_scale=2.0),
    "encoder": lambda: TransformerWrapper(
        num_tokens=67, max_seq_len=64, attn_layers=Encoder(dim=32, depth=2, heads=2, head_dim=8, position="t5")
    ),
}


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_our_own_format_holds_every_model(name: str, tmp_path: Path):
    model = NATIVE[name]().eval()
    perturb(model)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(ids(2, 19)), model(ids(2, 19)))


@torch.no_grad()
def test_images_in_our_own_format(tmp_path: Path):
    layers = Encoder(dim=32, depth=2, heads=2, head_dim=8)
    model = ViTransformerWrapper(image_size=12, patch_size=4, attn_layers=layers, num_classes=5, pool="cls").eval()
    perturb(model)
    model.save_pretrained(tmp_path)
    image = torch.randn(2, 3, 12, 12)
    assert torch.equal(from_pretrained(tmp_path)(image), model(image))
    with pytest.raises(PretrainedError, match="patch_norms"):
        model.save_pretrained(tmp_path / "hf", format="hf")


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = own()
    model.save_pretrained(tmp_path, format="hf")
    whole = load_file(tmp_path / "model.safetensors")
    monkeypatch.setattr(write.write_folder, "__defaults__", (20_000,))
    model.save_pretrained(tmp_path, format="hf")
    assert not (tmp_path / "model.safetensors").exists(), "what was there before is gone"
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    theirs = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path)
    state = theirs.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())
    assert torch.equal(from_pretrained(tmp_path)(ids(1, 9)), model(ids(1, 9)))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing temporary is left"


@torch.no_grad()
def test_special_tokens_are_kept(tmp_path: Path):
    config = transformers.LlamaConfig(
        vocab_size=67,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=44,
        eos_token_id=[2, 5],
    )
    quietly(transformers.LlamaForCausalLM(config).save_pretrained, tmp_path / "in")
    from_pretrained(tmp_path / "in", dtype=torch.bfloat16).save_pretrained(tmp_path / "out", format="hf")
    again = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path / "out", dtype="auto")
    assert again.config.eos_token_id == [2, 5]
    assert again.dtype == torch.bfloat16


def test_every_format_has_a_writer():
    """`save_pretrained` is in models/, its writers in pretrained/: importing the package registers them all."""
    assert set(saving._WRITERS) == set(get_args(saving.Format))
