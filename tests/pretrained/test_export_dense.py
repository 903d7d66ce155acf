"""Models of one's own, each property in the family that has it, and in none that would drop it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.export_models import own
from tests.support.published.compare import ids, quietly, their_logits
from tests.support.rounding import assert_same
from x_positional import PretrainedError, TransformerWrapper, from_pretrained

ROPE = {"kind": "rope", "theta": 500.0}
NORM = {"kind": "layer", "bias": True, "eps": 1e-4}
PLAIN = {"glu": False, "activation": "gelu_tanh", "bias": True}
GELU = {"glu": True, "activation": "gelu_tanh", "bias": False}
NEIGHBOURS = ROPE | {"interleaved": True}
CAPS = {"softcap": 1.5, "scale": 3**-0.5}

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "windows": ({"window": 5}, "MistralForCausalLM"),
    "windows and biases": ({"window": 5, "attn": {"bias": True, "out_bias": False}}, "Qwen2ForCausalLM"),
    "windows in some layers": (
        {"pattern": [{"window": 5}, {}, {"window": 5}], "attn": {"bias": True, "out_bias": False}},
        "Qwen2ForCausalLM",
    ),
    "normed queries and keys": ({"attn": {"qk_norm": "rms", "qk_norm_eps": 1e-6}}, "Qwen3ForCausalLM"),
    "half of each head": ({"position": ROPE | {"dim": 4}}, "Phi3ForCausalLM"),
    "a share that is no round number": ({"position": ROPE | {"fraction": 0.67}}, "Phi3ForCausalLM"),
    "neighbours, half of each head": ({"position": NEIGHBOURS | {"fraction": 0.4}}, "GlmForCausalLM"),
    "neighbours, whole heads": ({"position": NEIGHBOURS}, "GlmForCausalLM"),
    "sandwich of neighbours": ({"position": NEIGHBOURS, "norm_place": "sandwich"}, "Glm4ForCausalLM"),
    "layers that do not turn": (
        {"pattern": [{"position": ROPE}, {"position": "none"}, {"position": ROPE}]},
        "SmolLM3ForCausalLM",
    ),
    "windows where layers do not turn": (
        {"pattern": [{"position": ROPE}, {"position": "none", "window": 4}]},
        "SmolLM3ForCausalLM",
    ),
    "scaled embeddings and branches": (
        {"emb_scale": 3.0, "residual_scale": 0.5, "logits_scale": 0.7},
        "GraniteForCausalLM",
    ),
    "layer norm": ({"norm": NORM, "head_dim": 8}, "StableLmForCausalLM"),
    "layer norm, side by side": ({"norm": NORM, "norm_place": "parallel", "head_dim": 8}, "StableLmForCausalLM"),
    "each head normed": (
        {"norm": NORM, "head_dim": 8, "attn": {"qk_norm": "layer_per_head", "qk_norm_eps": 1e-4}},
        "StableLmForCausalLM",
    ),
    "plain feedforward": ({"norm": NORM, "ff": PLAIN, "attn": {"bias": True}}, "Starcoder2ForCausalLM"),
    "squared relu": (
        {"norm": NORM, "attn": {"bias": True}, "ff": {"activation": "relu2", "glu": False, "bias": False}},
        "NemotronForCausalLM",
    ),
    "side by side with biases": (
        {"norm": NORM, "norm_place": "parallel", "ff": PLAIN, "attn": {"bias": True}, "logits_bias": True},
        "PhiForCausalLM",
    ),
    "side by side without": ({"norm": "layer", "norm_place": "parallel", "position": NEIGHBOURS}, "CohereForCausalLM"),
    "windows that turn": (
        {
            "norm": "layer",
            "norm_place": "parallel",
            "head_dim": 8,
            "pattern": [{"position": NEIGHBOURS, "window": 5}, {"position": "none"}],
        },
        "Cohere2ForCausalLM",
    ),
    "norms without weights": ({"norm": {"kind": "layer", "gain": False}, "attn": {"clip": 0.4}}, "OlmoForCausalLM"),
    "norms after": ({"norm_place": "after", "attn": {"qk_norm": "rms_whole"}}, "Olmo2ForCausalLM"),
    "norms after, and windows": (
        {
            "norm_place": "after",
            "attn": {"qk_norm": "rms_whole"},
            "pattern": [{"window": 5, "position": ROPE}, {"position": ROPE | {"theta": 900.0}}],
        },
        "Olmo3ForCausalLM",
    ),
    "embeddings by the root of the width": ({"emb_scale": 32**0.5, "ff": GELU}, "GemmaForCausalLM"),
    "caps": (
        {
            "emb_scale": 32**0.5,
            "ff": GELU,
            "norm_place": "sandwich",
            "attn": CAPS,
            "logits_softcap": 2.5,
            "pattern": [{"window": 5}, {}],
        },
        "Gemma2ForCausalLM",
    ),
    "thetas by type": (
        {
            "emb_scale": 32**0.5,
            "ff": GELU,
            "norm_place": "sandwich",
            "attn": {"qk_norm": "rms", "scale": 3**-0.5},
            "pattern": [{"window": 5, "position": ROPE}, {"position": ROPE | {"theta": 900.0}}],
        },
        "Gemma3ForCausalLM",
    ),
}


def model_of(changes: dict[str, Any]) -> TransformerWrapper:
    """Entries of a pattern that all name their position leave none to the stack."""
    own_positions = any("position" in entry for entry in changes.get("pattern", ()))
    return own(**{**({"position": None} if own_positions else {}), "head_dim": 10, **changes})


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_models_of_ones_own(name: str, tmp_path: Path):
    changes, architecture = CASES[name]
    model = model_of(changes)
    model.save_pretrained(tmp_path, format="hf")
    again = from_pretrained(tmp_path)
    attention = "eager" if changes.get("attn", {}).get("softcap") else "sdpa"
    theirs = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path, attn_implementation=attention)
    assert type(theirs).__name__ == architecture
    tokens = ids(2, 19)
    expected = model(tokens)
    assert_same(their_logits(theirs, tokens), expected)
    assert_same(again(tokens), expected)


REFUSED = {
    "a share in a family of whole heads": ({"position": ROPE | {"dim": 4}}, "mistral", "partial_rotary_factor"),
    "neighbours in a family of halves": ({"position": NEIGHBOURS}, "llama", "position"),
    "halves in a family of neighbours": ({"position": ROPE}, "glm", "position"),
    "thetas of one type": (
        {"pattern": [{"position": ROPE}, {"position": ROPE | {"theta": 900.0}}]},
        "olmo3",
        "position of each layer",
    ),
    "two windows": ({"pattern": [{"window": 5}, {"window": 6}]}, "qwen3", "window of each layer"),
    "chunks": ({"chunk": 5}, "mistral", r"layers\.chunk=None \(this model: 5\)"),
    "some layers that turn": (
        {"pattern": [{"position": ROPE}, {"position": "none"}]},
        "llama",
        "position of each layer",
    ),
    "a cap that is stored and not applied": ({"attn": {"softcap": 2.0}}, "gemma3_text", "softcap"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_family_would_drop_is_refused(what: str, tmp_path: Path):
    changes, model_type, word = REFUSED[what]
    with pytest.raises(PretrainedError, match=word):
        model_of(changes).save_pretrained(tmp_path, format="hf", model_type=model_type)


def test_special_tokens_are_never_those_of_a_class(tmp_path: Path):
    """A family's own defaults would end texts at a token that means something else here."""
    model = own()
    model.save_pretrained(tmp_path / "own", format="hf")
    config = quietly(transformers.AutoConfig.from_pretrained, tmp_path / "own")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    written = json.loads((tmp_path / "own" / "config.json").read_text()) | {"eos_token_id": [2, 5], "bos_token_id": 1}
    (tmp_path / "own" / "config.json").write_text(json.dumps(written))
    from_pretrained(tmp_path / "own").save_pretrained(tmp_path / "other", format="hf", model_type="mistral")
    config = quietly(transformers.AutoConfig.from_pretrained, tmp_path / "other")
    assert (config.model_type, config.eos_token_id, config.pad_token_id) == ("mistral", [2, 5], None)
