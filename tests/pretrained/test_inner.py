"""A text model inside of one that sees images: read as if it stood alone, and written so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.published.compare import ids, left_padded, perturb, quietly, their_logits
from tests.support.published.decoders_gemma import GEMMA
from tests.support.published.decoders_llama import LLAMA
from tests.support.published.decoders_newer import TEMPERATURE
from tests.support.rounding import assert_same
from x_positional import PretrainedError, TransformerWrapper, from_pretrained
from x_positional.pretrained.config_json.ignored_keys import IGNORED_KEYS
from x_positional.pretrained.families import NESTED
from x_positional.pretrained.nested import contradictions

TEXT = GEMMA | {"sliding_window": 5, "query_pre_attn_scalar": 3, "sliding_window_pattern": 3, "num_hidden_layers": 5}
EYES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=EYES, mm_tokens_per_image=4)
    model = quietly(transformers.Gemma3ForConditionalGeneration, config).eval()
    perturb(model)
    folder = tmp_path_factory.mktemp("gemma3")
    quietly(model.save_pretrained, folder)
    return model, folder


@torch.no_grad()
def test_the_text_model_alone_is_read(whole: tuple[Any, Path], recwarn: pytest.WarningsRecorder):
    theirs, folder = whole
    ours = from_pretrained(folder)
    assert isinstance(ours, TransformerWrapper)
    assert ours.origin.family.model_type == "gemma3_text"
    tokens, mask, positions = left_padded(ids(3, 23), [23, 18, 4])
    assert_same(ours(tokens, mask=mask)[mask], their_logits(theirs, tokens, mask, positions)[mask])
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)], (
        "every key is read, or known to be of the rest"
    )


@torch.no_grad()
@pytest.mark.parametrize("spelling", ["model.language_model", "language_model.model", "model"])
def test_every_spelling_of_names(whole: tuple[Any, Path], spelling: str, tmp_path: Path):
    _, folder = whole
    held = load_file(folder / "model.safetensors")
    beginning = "language_model.model." if "language_model.model.norm.weight" in held else "model.language_model."
    assert beginning + "norm.weight" in held
    renamed = {name.replace(beginning, spelling + "."): tensor for name, tensor in held.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tokens = ids(2, 9)
    assert torch.equal(from_pretrained(tmp_path)(tokens), from_pretrained(folder)(tokens))


@torch.no_grad()
def test_it_is_written_as_it_would_stand_alone(whole: tuple[Any, Path], tmp_path: Path):
    theirs, folder = whole
    from_pretrained(folder).save_pretrained(tmp_path, format="hf")
    again = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path)
    assert type(again) is transformers.Gemma3ForCausalLM
    tokens = ids(2, 23)
    torch.testing.assert_close(their_logits(again, tokens), their_logits(theirs, tokens), atol=0, rtol=0)


def test_what_is_wrong_inside_is_told(whole: tuple[Any, Path], tmp_path: Path):
    _, folder = whole
    held = load_file(folder / "model.safetensors")
    last = next(name for name in held if name.endswith("4.self_attn.q_norm.weight"))
    save_file({name: t for name, t in held.items() if name != last}, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match=r"self_attn.q_norm.weight is missing"):
        from_pretrained(tmp_path)
    config["text_config"]["attention_gate_kind"] = "twice"
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(held, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="attention_gate_kind"):
        from_pretrained(tmp_path)


def beside(whole: tuple[Any, Path], folder: Path, **keys: Any) -> Path:
    """The same checkpoint with more keys beside the text config."""
    _, stored = whole
    config = json.loads((stored / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    (folder / "model.safetensors").hardlink_to(stored / "model.safetensors")
    return folder


@torch.no_grad()
def test_copies_beside_the_text_config_are_no_contradiction(
    whole: tuple[Any, Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    text = json.loads((whole[1] / "config.json").read_text())["text_config"]
    copies = {key: text[key] for key in ("hidden_size", "rms_norm_eps", "rope_parameters", "vocab_size") if key in text}
    assert len(copies) >= 3
    folder, tokens = beside(whole, tmp_path, **copies, mm_tokens_per_image=9, use_cache=False), ids(2, 9)
    assert torch.equal(from_pretrained(folder)(tokens), from_pretrained(whole[1])(tokens))
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_eps", 0.5), ("hidden_activation", "relu"), ("num_hidden_layers", 10**9)]
)
def test_keys_beside_the_text_config_that_contradict_it(key: str, value: Any, whole: tuple[Any, Path], tmp_path: Path):
    folder = beside(whole, tmp_path, **{key: value})
    with pytest.raises(PretrainedError, match=rf"{key}={value!r} contradicts the text config, which sets "):
        from_pretrained(folder)
    text = json.loads((whole[1] / "config.json").read_text())["text_config"]
    assert from_pretrained(folder, **{key: text[key]}) is not None


def test_unknown_keys_beside_the_text_config_are_reported(whole: tuple[Any, Path], tmp_path: Path):
    with pytest.warns(UserWarning, match="unknown keys, which are ignored: logit_gate"):
        from_pretrained(beside(whole, tmp_path, logit_gate=2.0))


def test_a_key_without_effect_is_no_contradiction():
    """Older transformers wrote the stored window beside the text config, and none into it."""
    family = NESTED["qwen2_5_vl"].family
    text = {"use_sliding_window": False, "sliding_window": None}
    assert not contradictions({"sliding_window": 32768}, text, family.to_fields)
    both = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}
    assert contradictions(both, text, family.to_fields), "they change the model together"


@pytest.mark.parametrize("model_type", NESTED)
def test_every_key_beside_the_text_config_is_classified(model_type: str):
    model = NESTED[model_type]
    declared = set(quietly(transformers.CONFIG_MAPPING[model_type]).to_dict())
    known = IGNORED_KEYS | model.ignored_keys | {model.key, *model.outer_keys}
    assert not declared - known


MISTRAL3 = {
    "mistral": {**LLAMA, "head_dim": 10, "sliding_window": 5},
    "ministral3": {**LLAMA, "head_dim": 10, "rope_parameters": TEMPERATURE},
}


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", MISTRAL3)
def test_the_text_config_names_its_family(text: str, tied: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder):
    eyes = {**EYES, "head_dim": 8, "model_type": "pixtral"}
    config = transformers.Mistral3Config(
        text_config={**MISTRAL3[text], "model_type": text}, vision_config=eyes, tie_word_embeddings=tied
    )
    theirs = quietly(transformers.Mistral3ForConditionalGeneration, config).eval()
    perturb(theirs)
    quietly(theirs.save_pretrained, tmp_path)
    if tied:  # the class's default
        written = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in written.items() if "tie" not in k}))
    ours = from_pretrained(tmp_path)
    assert ours.origin.family.model_type == text
    tokens, mask, positions = left_padded(ids(3, 23), [23, 18, 4])
    expected = their_logits(theirs, tokens, mask, positions)
    assert_same(ours(tokens, mask=mask)[mask], expected[mask])
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    ours.save_pretrained(tmp_path / "alone", format="hf")
    again = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path / "alone")
    torch.testing.assert_close(their_logits(again, tokens, mask, positions), expected, atol=0, rtol=0)
