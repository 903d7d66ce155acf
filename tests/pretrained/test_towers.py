"""The towers of CLIP and SigLIP, alone and inside of the whole model: hidden states, pooled embeddings, and the way back.

B batch, T tokens, M model dim.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.published.compare import Published, both, ids, left_padded, quietly
from tests.support.published.config_keys import TEXT
from tests.support.published.config_keys import TOWER as IMAGE
from tests.support.rounding import assert_same
from x_positional import PretrainedError, TransformerWrapper, ViTransformerWrapper, from_pretrained
from x_positional.models.language import TokenEncoder
from x_positional.pretrained import FAMILIES
from x_positional.pretrained.tensors.files import open_tensors

END = 66
"""The id of end of text, which CLIP's text tower reads."""


@dataclass(frozen=True, kw_only=True)
class Tower(Published):
    """A text tower."""

    pooled: str
    """What transformers calls the output of the head."""
    last: bool = False
    """The head reads the last token rather than the end of text."""


CASES = [
    Tower(
        name="clip_text_model",
        model="CLIPTextModelWithProjection",
        config={**TEXT, "projection_dim": 9},
        pooled="text_embeds",
    ),
    Tower(name="clip_text_model, no head", model="CLIPTextModel", config=TEXT, pooled="pooler_output"),
    Tower(
        name="siglip_text_model",
        model="SiglipTextModel",
        config={**TEXT, "projection_size": 9},
        pooled="pooler_output",
        last=True,
    ),
]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_name = {case.name: case for case in CASES}


def ended(batch: int, length: int) -> Tensor:
    """[B T] ids that end with the end of text."""
    tokens = ids(batch, length).clamp(max=END - 1)
    tokens[:, -1] = END
    return tokens


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.1, "values that hardly differ prove nothing"
    assert_same(ours, theirs)


@every
@torch.no_grad()
def test_hidden_states_and_head(case: Tower):
    theirs, ours, _ = both(case)
    assert isinstance(ours, TransformerWrapper)
    assert isinstance(ours, TokenEncoder) == case.name.endswith("no head")
    tokens = ended(2, 23)
    out = theirs(tokens, attention_mask=torch.ones_like(tokens))
    assert_close(ours(tokens, return_embeddings=True), out.last_hidden_state)
    assert_close(ours(tokens)[:, -1], getattr(out, case.pooled))


@every
@torch.no_grad()
def test_padding(case: Tower):
    theirs, ours, _ = both(case)
    tokens = ended(3, 23)
    padded, mask, positions = left_padded(tokens, [23, 17, 4])
    left = theirs(padded, attention_mask=mask.long(), position_ids=positions).last_hidden_state
    assert_close(ours(padded, mask=mask, return_embeddings=True)[mask], left[mask])
    right, shown = padded.flip(1), mask.flip(1)
    expected = theirs(right, attention_mask=shown.long()).last_hidden_state
    assert_close(ours(right, mask=shown, return_embeddings=True)[shown], expected[shown])


@every
@torch.no_grad()
def test_the_way_back(case: Tower, tmp_path: Path):
    theirs, ours, folder = both(case)
    ours.save_pretrained(tmp_path / "hf", format="hf")
    before, after = open_tensors(folder), load_file(tmp_path / "hf" / "model.safetensors")
    named = {name if name in before.names() else name.split(".", 1)[1]: tensor for name, tensor in after.items()}
    assert named.keys() == before.names()
    assert all(torch.equal(before.read(name), tensor) for name, tensor in named.items())
    again = quietly(type(theirs).from_pretrained, tmp_path / "hf", attn_implementation="sdpa")
    tokens = ended(2, 23)
    out, expected = again(tokens), theirs(tokens)
    assert torch.equal(out.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(getattr(out, case.pooled), getattr(expected, case.pooled))
    ours.save_pretrained(tmp_path / "own")
    assert torch.equal(from_pretrained(tmp_path / "own")(tokens), ours(tokens))


WHOLE = {
    "clip": ("CLIPModel", {"projection_dim": 9}, {"projection_dim": 5}, {"projection_dim": 5}),
    "siglip": ("SiglipModel", {}, {"projection_size": 36}, {}),
}
"""Class of the models of two towers, and keys of the whole, the text and the image tower. CLIP's projections follow the whole."""


def whole(name: str) -> tuple[nn.Module, Path]:
    """A model of both towers, and its folder."""
    model, keys, text, image = WHOLE[name]
    parts = {"text_config": {**TEXT, **text}, "vision_config": {**IMAGE, **image}}
    case = replace(by_name["clip_text_model"], name=f"whole {name}", model=model, config={**parts, **keys})
    case = replace(case, loads={"model_type": f"{name}_vision_model"})
    theirs, _, folder = both(case)
    return theirs, folder


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_both_towers_of_a_whole_model(name: str):
    theirs, folder = whole(name)
    text = from_pretrained(folder, model_type=f"{name}_text_model")
    image = from_pretrained(folder, model_type=f"{name}_vision_model")
    assert isinstance(image, ViTransformerWrapper)
    tokens, pixels = ended(2, 23), torch.randn(2, 2, 20, 20, generator=torch.Generator().manual_seed(1))
    words, seen = theirs.get_text_features(tokens), theirs.get_image_features(pixels)
    assert_close(text(tokens)[:, -1], words.pooler_output)
    assert_close(text(tokens, return_embeddings=True), words.last_hidden_state)
    assert_close(image(pixels), seen.pooler_output)


def test_one_tower_is_read_at_a_time():
    _, folder = whole("clip")
    for given in ({}, {"model_type": "siglip_text_model"}):
        with pytest.raises(
            PretrainedError, match="pass model_type='clip_text_model' or model_type='clip_vision_model'"
        ):
            from_pretrained(folder, **given)


@torch.no_grad()
def test_an_older_key_replaces_the_config_of_a_tower(tmp_path: Path):
    theirs, folder = whole("clip")
    config = json.loads((folder / "config.json").read_text())
    older: dict[str, Any] = {**config, "text_config_dict": config["text_config"], "text_config": {"hidden_size": 3}}
    (tmp_path / "config.json").write_text(json.dumps(older))
    shutil.copy(folder / "model.safetensors", tmp_path)
    tokens = ended(2, 23)
    words = theirs.get_text_features(tokens).pooler_output
    assert_close(from_pretrained(tmp_path, model_type="clip_text_model")(tokens)[:, -1], words)


@pytest.mark.parametrize(
    ("name", "config"), [("clip_text_model", "CLIPTextConfig"), ("siglip_text_model", "SiglipTextConfig")]
)
def test_what_a_file_leaves_out_means_what_its_class_says(name: str, config: str):
    defaults = getattr(transformers, config)().to_dict()
    family = FAMILIES[name]
    assert family.to_fields({}) == family.to_fields(defaults)
    assert not family.unknown_keys(defaults)


DUMPED = {"add_cross_attention": False, "bad_words_ids": None, "is_decoder": False, "pruned_heads": {}, "top_k": 50}
"""Keys that older versions of transformers wrote into every config."""
LAYERS = {"decoder_layers": 6, "encoder_layers": 6, "normalize_before": False, "static_position_embeddings": True}
KNOWN: dict[str, dict[str, Any]] = {
    "clip_text_model": {**DUMPED, "projection_dim": 512, "hidden_act": "quick_gelu"},
    "clip_vision_model": {**DUMPED, "patch_size": 32},
    "siglip_vision_model": {"model_type": "siglip_vision_model"},
    "distilbert": {"activation": "gelu", "qa_dropout": 0.1, "sinusoidal_pos_embds": False, "tie_weights_": True},
    "camembert": {"output_past": True, "type_vocab_size": 1},
    "electra": {"embedding_size": 128, "summary_last_dropout": 0.1, "summary_type": "first"},
    "marian": {**LAYERS, "_num_labels": 3, "decoder_vocab_size": 58101, "add_bias_logits": False},
    "mbart": {**LAYERS, "_num_labels": 3, "normalize_embedding": True, "extra_pos_embeddings": 2},
    "umt5": {"scalable_attention": True, "dense_act_fn": "gelu_new", "is_gated_act": True, "output_past": True},
    "t5gemma": {"encoder": {**DUMPED, "model_type": "t5_gemma_module", "rope_theta": 10000.0}},
}
"""Keys of published files."""


@pytest.mark.parametrize("name", KNOWN)
def test_keys_of_published_files_are_known(name: str):
    assert FAMILIES[name].unknown_keys(KNOWN[name]) == []
    assert FAMILIES[name].to_fields(KNOWN[name])[1] == []
    assert FAMILIES[name].unknown_keys({**KNOWN[name], "alibi_slopes": 3}) == ["alibi_slopes"]


def test_keys_of_a_nested_side_are_checked():
    assert FAMILIES["t5gemma"].unknown_keys({"decoder": {"alibi_slopes": 3}}) == ["decoder.alibi_slopes"]
