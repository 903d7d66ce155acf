"""The text models of Qwen 2, 2.5 and 3 VL: positions with three axes, time, height and width; what sees images is left out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.published.compare import VOCABULARY, ids, left_padded, perturb, quietly, their_logits
from tests.support.published.decoders_llama import LLAMA
from tests.support.rounding import assert_same
from x_positional import AutoregressiveWrapper, PretrainedError, TransformerWrapper, from_pretrained
from x_positional.models.language import TokenEncoder
from x_positional.pretrained import FAMILIES
from x_positional.pretrained.families.qwen_vl import QWEN2_5_VL, QWEN2_VL
from x_positional.schemes.multimodal import Image, Text, Video, multimodal_positions

TEXT = LLAMA | {
    "use_sliding_window": True,
    "sliding_window": 5,
    "max_window_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 1, 1]},
}
IDS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
DEEP = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "out_hidden_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [1],
}
EYES = {
    "qwen2_vl": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "depth": 1,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "intermediate_size": 24,
        "fullatt_block_indexes": [0],
    },
    "qwen3_vl": DEEP,
    "qwen3_vl_moe": DEEP,
}
CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}
EXPERTS = {
    "num_hidden_layers": 4,
    "moe_intermediate_size": 12,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "mlp_only_layers": [1],
}
BASES = {"qwen3_vl": LLAMA, "qwen3_vl_moe": LLAMA}
"""Text settings where there are no windows."""
INTERLEAVED = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 500.0,
        "mrope_section": [2, 2, 1],
        "mrope_interleaved": True,
    },
    "head_dim": 10,
}
CASES = {
    "qwen2_vl": ("qwen2_vl", "ForConditionalGeneration", {}),
    "qwen2_5_vl": ("qwen2_5_vl", "ForConditionalGeneration", {"use_sliding_window": False}),
    "qwen2_vl, tied": ("qwen2_vl", "ForConditionalGeneration", {"tie_word_embeddings": True}),
    "qwen2_vl, no head": ("qwen2_vl", "Model", {}),
    "qwen2_5_vl, text alone": ("qwen2_5_vl", "TextModel", {}),
    "qwen3_vl": ("qwen3_vl", "ForConditionalGeneration", {**INTERLEAVED, "attention_bias": True}),
    "qwen3_vl, text alone": ("qwen3_vl", "TextModel", INTERLEAVED),
    "qwen3_vl_moe": ("qwen3_vl_moe", "ForConditionalGeneration", {**INTERLEAVED, **EXPERTS}),
}
SEEN = [Text(4), Image(2, 3), Text(3), Video(2, 2, 2), Text(2)]
POSITIONS = multimodal_positions([SEEN, [Text(11), Image(3, 4)]], layout="grid").positions
"""[B T 3], jumping as images make them jump."""
_BUILT: dict[str, tuple[nn.Module, Any, Path]] = {}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any, Path]:
    """Their model, ours, the folder."""
    return made(request.param, tmp_path_factory)


def made(name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any, Path]:
    if name not in _BUILT:
        kind, suffix, changes = CASES[name]
        tied = {"tie_word_embeddings": True} if "tie_word_embeddings" in changes else {}
        text = BASES.get(kind, TEXT) | {key: value for key, value in changes.items() if key not in tied}
        if suffix == "TextModel":
            config = getattr(transformers, CLASSES[kind] + "TextConfig")(**text)
        else:
            whole = {"text_config": text, "vision_config": EYES[kind], **IDS, **tied}
            config = quietly(getattr(transformers, CLASSES[kind] + "Config"), **whole)
        torch.manual_seed(1)
        theirs = quietly(getattr(transformers, CLASSES[kind] + suffix), config).eval()
        perturb(theirs)
        folder = tmp_path_factory.mktemp(kind)
        quietly(theirs.save_pretrained, folder)
        _BUILT[name] = theirs, from_pretrained(folder), folder
    return _BUILT[name]


@torch.no_grad()
def expected(model: nn.Module, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Their logits or hidden states; their axis comes first: [3 B T]."""
    mask = torch.ones_like(tokens) if mask is None else mask.long()
    given = {} if positions is None else {"position_ids": positions.permute(2, 0, 1)}
    out = model(input_ids=tokens, attention_mask=mask, use_cache=False, **given)
    return out.last_hidden_state if "last_hidden_state" in out else out.logits


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.1, "values that hardly differ prove nothing"
    assert_same(ours, theirs)


@torch.no_grad()
def test_three_axes(case: tuple[nn.Module, Any, Path]):
    theirs, ours, _ = case
    tokens = ids(2, POSITIONS.shape[1])
    right = expected(theirs, tokens, POSITIONS)
    assert_close(ours(tokens, positions=POSITIONS), right)
    for axis in range(3):
        moved = POSITIONS.clone()
        moved[..., axis] *= 2
        assert (ours(tokens, positions=moved) - right).abs().max() > 1e-3, "each axis counts"


@torch.no_grad()
def test_text_alone(case: tuple[nn.Module, Any, Path]):
    theirs, ours, _ = case
    assert isinstance(ours, TransformerWrapper)
    assert_close(ours(ids(2, 23)), expected(theirs, ids(2, 23)))
    tokens, mask, positions = left_padded(ids(3, 23), [23, 18, 4])
    given = positions[..., None].expand(-1, -1, 3)
    assert_close(ours(tokens, mask=mask)[mask], expected(theirs, tokens, given, mask)[mask])


@torch.no_grad()
def test_in_chunks(case: tuple[nn.Module, Any, Path]):
    theirs, ours, _ = case
    tokens, cache = ids(2, POSITIONS.shape[1]), ours.new_cache(2)
    parts = zip(tokens.split(5, 1), POSITIONS.split(5, 1), strict=True)
    ours_of = torch.cat([ours(part, positions=where, cache=cache) for part, where in parts], 1)
    assert_close(ours_of, expected(theirs, tokens, POSITIONS))


HEADED = [name for name, (_, suffix, _) in CASES.items() if suffix == "ForConditionalGeneration"]


@torch.no_grad()
@pytest.mark.parametrize("name", HEADED)
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_token_by_token_after_images(name: str, static: bool, tmp_path_factory: pytest.TempPathFactory):
    """What follows an image is one further than its largest position on any axis, on every axis."""
    theirs, ours, _ = made(name, tmp_path_factory)
    tokens, positions, new = ids(1, len(POSITIONS[0]), seed=4), POSITIONS[:1], ids(1, 8, seed=5)
    cache = ours.new_cache(1, max_len=40 if static else None)
    logits = ours(tokens, positions=positions, cache=cache)
    for token in new.split(1, 1):
        right = expected(theirs, tokens, positions)[:, -1:]
        assert_close(logits[:, -1:], right)
        assert torch.equal(logits[:, -1:].argmax(-1), right.argmax(-1))
        tokens = torch.cat([tokens, token], 1)
        positions = torch.cat([positions, positions.amax((1, 2), keepdim=True).expand(1, 1, 3) + 1], 1)
        logits = ours(token, cache=cache)


@torch.no_grad()
@pytest.mark.parametrize("name", HEADED)
def test_greedy_tokens_of_text(name: str, tmp_path_factory: pytest.TempPathFactory):
    theirs, ours, _ = made(name, tmp_path_factory)
    prompt = ids(2, 7)
    right = quietly(
        theirs.generate,
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    new = AutoregressiveWrapper(ours).generate(prompt, 9, temperature=0.0)
    assert torch.equal(new, right[:, 7:])


@torch.no_grad()
def test_files_as_the_hub_has_them(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """Text keys beside those of the rest, sections under rope_scaling."""
    theirs, _, folder = made("qwen2_vl", tmp_path_factory)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    hf = json.loads((folder / "config.json").read_text())
    text = {k: v for k, v in hf.pop("text_config").items() if k not in ("model_type", "rope_parameters", "layer_types")}
    older = {"rope_theta": 500.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "vision_token_id": 59}
    (tmp_path / "config.json").write_text(json.dumps({**text, **hf, **older}))
    again = quietly(type(theirs).from_pretrained, tmp_path).eval()
    tokens = ids(2, POSITIONS.shape[1])
    right = expected(again, tokens, POSITIONS)
    assert_close(right, expected(theirs, tokens, POSITIONS))
    assert_close(from_pretrained(tmp_path)(tokens, positions=POSITIONS), right)


@torch.no_grad()
def test_experts_are_read_in_either_order(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """Published as [E in out]; transformers writes [E out in]."""
    _, ours, folder = made("qwen3_vl_moe", tmp_path_factory)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    held = load_file(folder / "model.safetensors")
    turned = {name: t.mT.contiguous() if ".experts." in name else t for name, t in held.items()}
    save_file(turned, tmp_path / "model.safetensors")
    tokens = ids(2, 9)
    assert torch.equal(from_pretrained(tmp_path)(tokens), ours(tokens))


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl, no head", "qwen2_5_vl, text alone", "qwen3_vl, text alone"])
def test_hidden_states_are_written_for_the_text_model(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    theirs, ours, _ = made(name, tmp_path_factory)
    assert isinstance(ours, TokenEncoder)
    ours.save_pretrained(tmp_path, format="hf")
    again = quietly(transformers.AutoModel.from_pretrained, tmp_path)
    assert type(again).__name__ == CLASSES[CASES[name][0]] + "TextModel"
    tokens = ids(2, POSITIONS.shape[1])
    right = expected(theirs, tokens, POSITIONS)
    torch.testing.assert_close(expected(again, tokens, POSITIONS), right, atol=0, rtol=0)


def test_with_its_head_there_is_no_class_to_write(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    _, ours, _ = made("qwen2_vl", tmp_path_factory)
    with pytest.raises(PretrainedError, match="no class for a qwen2_vl_text with a head"):
        ours.save_pretrained(tmp_path / "hf", format="hf", code=False)
    with pytest.raises(PretrainedError, match=r"position=.*\(this model: .*'sections': \[2, 1, 1\]"):
        ours.save_pretrained(tmp_path / "hf", format="hf", model_type="qwen2")
    ours.save_pretrained(tmp_path / "own")
    tokens = ids(2, POSITIONS.shape[1])
    assert torch.equal(
        from_pretrained(tmp_path / "own")(tokens, positions=POSITIONS), ours(tokens, positions=POSITIONS)
    )


def test_nothing_of_the_text_is_left_out(tmp_path_factory: pytest.TempPathFactory):
    for name, whole in (("qwen2_vl", QWEN2_VL), ("qwen2_5_vl", QWEN2_5_VL)):
        theirs, _, folder = made(name, tmp_path_factory)
        names = load_file(folder / "model.safetensors").keys()
        towers = {n for n in names if n.startswith("visual.")}
        assert len(towers) == len(list(theirs.model.visual.parameters()))
        assert whole.family.model_type in FAMILIES


@torch.no_grad()
def test_qwen2_ignores_sections_as_transformers_does(tmp_path: Path):
    config = quietly(transformers.Qwen2Config, **TEXT)
    theirs = quietly(transformers.Qwen2ForCausalLM, config).eval()
    perturb(theirs)
    quietly(theirs.save_pretrained, tmp_path)
    ours = from_pretrained(tmp_path)
    tokens = ids(2, 9)
    assert ours.config.layers.position[0].sections is None
    assert_close(ours(tokens), their_logits(theirs, tokens))
    assert int(tokens.max()) < VOCABULARY
