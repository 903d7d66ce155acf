"""Published models of images: our logits or hidden states equal those of transformers at every size, and the way back.

B batch, C channels, H W pixels, T patches, M model dim.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.published.compare import both, perturb, quietly
from tests.support.published.config_keys import SEEING
from tests.support.rounding import assert_same
from x_positional import Encoder, PretrainedError, ViTransformerWrapper, from_pretrained
from x_positional.pretrained import FAMILIES
from x_positional.pretrained.model_kinds import vision_config
from x_positional.pretrained.tensors.files import open_tensors

VIT = {**SEEING, "intermediate_size": 50}
UNPROJECTED = {key: value for key, value in VIT.items() if key != "num_labels"}
TOWER = {**UNPROJECTED, "projection_dim": 7}
DINO3 = {**UNPROJECTED, "layerscale_value": 0.5, "rope_theta": 30.0}
DINO = {**SEEING, "mlp_ratio": 3, "layerscale_value": 0.5}
SIZES = {
    "trained": (20, 20),
    "wider": (12, 28),
    "higher": (28, 16),
    "larger": (32, 32),
    "one patch": (4, 4),
    "as many patches": (4, 100),
}


@dataclass(frozen=True, kw_only=True)
class Imaged:
    """A small model of images; as `Published`. asked: it resizes its table when it is asked to, and else refuses.
    pooled: its pooled embedding is read too."""

    name: str
    model: str
    config: Mapping[str, Any]
    asked: bool = False
    pooled: bool = False
    sizes: tuple[str, ...] = tuple(SIZES)
    attention: str = "sdpa"
    loads: Mapping[str, Any] = field(default_factory=dict)
    computed: str = ""

    @property
    def headed(self) -> bool:
        return self.model.endswith(("Classification", "WithTeacher", "WithProjection"))


CASES = [
    Imaged(name="vit", model="ViTForImageClassification", config=VIT, asked=True),
    Imaged(name="vit, no head", model="ViTModel", config=VIT, asked=True),
    Imaged(
        name="vit, no biases",
        model="ViTForImageClassification",
        asked=True,
        config={**VIT, "qkv_bias": False, "hidden_act": "quick_gelu"},
    ),
    Imaged(name="vit, wide heads", model="ViTForImageClassification", config={**VIT, "head_dim": 10}, asked=True),
    Imaged(
        name="vit, no square",
        model="ViTForImageClassification",
        sizes=("trained",),  # theirs takes grids for squares
        config={**VIT, "image_size": [12, 20], "patch_size": [4, 5]},
    ),
    Imaged(name="dinov2", model="Dinov2ForImageClassification", config=DINO),
    Imaged(name="dinov2, no head", model="Dinov2Model", config=DINO),
    Imaged(name="dinov2, gated", model="Dinov2ForImageClassification", config={**DINO, "use_swiglu_ffn": True}),
    Imaged(
        name="dinov2, no mask",
        model="Dinov2ForImageClassification",
        config={**DINO, "use_mask_token": False, "hidden_act": "relu", "qkv_bias": False},
    ),
    Imaged(
        name="dinov2, registers",
        model="Dinov2WithRegistersForImageClassification",
        config={**DINO, "num_register_tokens": 3},
    ),
    Imaged(name="dinov3", model="DINOv3ViTModel", config={**DINO3, "num_register_tokens": 3}),
    Imaged(
        name="dinov3, gated",
        model="DINOv3ViTModel",
        config={**DINO3, "use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False},
    ),
    Imaged(name="deit", model="DeiTForImageClassification", config=VIT, asked=True),
    Imaged(name="deit, distilled", model="DeiTForImageClassificationWithTeacher", config=VIT, asked=True),
    Imaged(name="deit, no head", model="DeiTModel", config={**VIT, "hidden_act": "relu"}, asked=True),
    Imaged(name="clip", model="CLIPVisionModelWithProjection", config=TOWER, asked=True),
    Imaged(
        name="clip, no head", model="CLIPVisionModel", config={**TOWER, "hidden_act": "gelu"}, asked=True, pooled=True
    ),
    Imaged(name="siglip", model="SiglipVisionModel", config=UNPROJECTED, asked=True, pooled=True),
    Imaged(
        name="siglip, no pooling",
        model="SiglipVisionModel",
        asked=True,
        config={**UNPROJECTED, "vision_use_head": False},
    ),
    Imaged(
        name="dinov2, registers, gated, no head",
        model="Dinov2WithRegistersModel",
        config={**DINO, "use_swiglu_ffn": True},
    ),
]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_name = {case.name: case for case in CASES}


def images(case: Imaged, size: str) -> Tensor:
    """[B C H W], of the trained size or another."""
    height, width = (12, 20) if isinstance(case.config["image_size"], list) else SIZES[size]
    return torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(height))


def expected(model: nn.Module, case: Imaged, pixels: Tensor, size: str = "trained") -> Tensor:
    """Their logits [B classes], or hidden states [B 1+R+T M], after the pooled embedding where it is read."""
    more = {"interpolate_pos_encoding": True} if case.asked and size != "trained" else {}
    out = model(pixels, **more)
    if case.pooled:
        return torch.cat([out.pooler_output[:, None], out.last_hidden_state], dim=1)
    if not case.headed:
        return out.last_hidden_state
    return out.image_embeds if "image_embeds" in out else out.logits


def found(model: ViTransformerWrapper, pixels: Tensor) -> Tensor:
    """The same of ours."""
    if model.to_logits is not None:
        return model(pixels)
    encoded = model.encode(pixels)
    cls = [] if encoded.cls is None else [encoded.cls[:, None]]
    pooled = [model.pooled(encoded)[:, None]] if model.config.norm_pooled or model.pooling is not None else []
    return torch.cat([*pooled, *cls, encoded.registers, encoded.patches], dim=1)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.1, "values that hardly differ prove nothing"
    assert_same(ours, theirs)


@every
@torch.no_grad()
def test_every_size(case: Imaged, recwarn: pytest.WarningsRecorder):
    theirs, ours, _ = both(case)
    assert isinstance(ours, ViTransformerWrapper)
    for size in case.sizes:
        pixels = images(case, size)
        assert_close(found(ours, pixels), expected(theirs, case, pixels, size))
    assert not [w for w in recwarn if issubclass(w.category, UserWarning) and "x_positional" in str(w.filename)]


@every
@torch.no_grad()
def test_every_tensor_counts(case: Imaged):
    """A model in which one tensor of ours is moved no longer agrees."""
    theirs, ours, _ = both(case)
    pixels = images(case, "trained")
    right = expected(theirs, case, pixels)
    for name, parameter in ours.named_parameters():
        kept = parameter.clone()
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        assert (found(ours, pixels) - right).abs().max() > 1e-4, name
        parameter.copy_(kept)
    assert_close(found(ours, pixels), right)


@every
@torch.no_grad()
def test_the_way_back(case: Imaged, tmp_path: Path):
    theirs, ours, folder = both(case)
    ours.save_pretrained(tmp_path, format="hf")
    before, after = open_tensors(folder), load_file(tmp_path / "model.safetensors")
    named = {name if name in before.names() else name.split(".", 1)[1]: tensor for name, tensor in after.items()}
    for name, tensor in named.items():
        assert torch.equal(before.read(name), tensor), f"{name} is not bit by bit what was read"
    lost = {name for name in before.names() - named.keys() if not name.endswith(("mask_token", "pooler.dense.weight"))}
    lost = {name for name in lost if before.read(name).numel()}
    assert lost <= {"pooler.dense.bias"}, "what only training reads is not written, and nothing else"
    auto = transformers.AutoModelForImageClassification if case.headed else transformers.AutoModel
    auto = getattr(transformers, case.model) if case.model.endswith(("WithTeacher", "WithProjection")) else auto
    again = quietly(auto.from_pretrained, tmp_path, attn_implementation=case.attention)
    assert type(again) is type(theirs)
    for size in case.sizes[:2]:
        pixels = images(case, size)
        right = expected(theirs, case, pixels, size)
        torch.testing.assert_close(expected(again.eval(), case, pixels, size), right, atol=0, rtol=0)


@every
@torch.no_grad()
def test_our_own_format(case: Imaged, tmp_path: Path):
    _, ours, _ = both(case)
    ours.save_pretrained(tmp_path)
    again, pixels = from_pretrained(tmp_path), images(case, "trained")
    assert again.config == ours.config
    assert torch.equal(found(again, pixels), found(ours, pixels))


@torch.no_grad()
def test_pooled_towers():
    """Without a head a tower returns its pooled embedding, also of images of several sizes."""
    for name in ("clip, no head", "siglip"):
        theirs, ours, _ = both(by_name[name])
        pixels = images(by_name[name], "trained")
        assert_close(ours(pixels), theirs(pixels).pooler_output)
        wider = images(by_name[name], "wider")
        mixed = ours([*pixels, *wider])
        assert_close(mixed, torch.cat([ours(pixels), theirs(wider, interpolate_pos_encoding=True).pooler_output]))


DEFAULTS = {
    "vit": "ViTConfig",
    "deit": "DeiTConfig",
    "dinov2": "Dinov2Config",
    "dinov2_with_registers": "Dinov2WithRegistersConfig",
    "dinov3_vit": "DINOv3ViTConfig",
    "clip_vision_model": "CLIPVisionConfig",
    "siglip_vision_model": "SiglipVisionConfig",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_a_file_leaves_out_means_what_its_class_says(name: str):
    said = getattr(transformers, DEFAULTS[name])().to_dict()
    family = FAMILIES[name]
    assert family.to_fields({}) == family.to_fields(said)
    assert not family.unknown_keys(said)
    patch = {"dinov2": 14, "clip_vision_model": 32}.get(name, 16)
    assert vision_config(family.to_fields({})[0]).trained_patches == (224 // patch) ** 2


def test_tables_of_larger_grids_are_smoothed_with_registers_alone():
    smoothed = [name for name in DEFAULTS if FAMILIES[name].to_fields({})[0].get("antialias", False)]
    assert smoothed == ["dinov2_with_registers"]


@torch.no_grad()
def test_half_precision_resizes_in_float32(tmp_path: Path):
    case = by_name["dinov2"]
    theirs, _, folder = both(case)
    ours = from_pretrained(folder, dtype=torch.bfloat16)
    half = quietly(type(theirs).from_pretrained, folder, dtype=torch.bfloat16).eval()
    pixels = images(case, "larger").bfloat16()
    torch.testing.assert_close(ours(pixels), expected(half, case, pixels, "larger"), atol=2e-2, rtol=2e-2)


def changed(case: Imaged, folder: Path, tensors: Mapping[str, Tensor | None] | None = None, **keys: Any) -> Path:
    """A copy of a model's folder with other tensors and keys; a tensor of None is taken out."""
    _, _, source = both(case)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    held = {**load_file(source / "model.safetensors"), **(tensors or {})}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, folder / "model.safetensors")
    config = {**json.loads((source / "config.json").read_text()), **keys}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("tensors", "keys", "told"),
    [
        ({"classifier.weight": None}, {}, r"classifier\.weight is missing"),
        ({"vit.embeddings.cls_token": None}, {}, r"vit\.embeddings\.cls_token is missing \(for cls_token\)"),
        ({"vit.encoder.layer.0.extra": torch.zeros(2)}, {}, "unexpected tensor vit.encoder.layer.0.extra in"),
        ({"decoder.0.weight": torch.zeros(2)}, {}, "unexpected tensor decoder.0.weight in"),
        ({}, {"image_size": 24}, r"position_embeddings .*gives .*\[26, 36\].*needs \[37, 36\]"),
        ({}, {"patch_size": 7}, "not a multiple of the patch's 7"),
        ({}, {"hidden_act": "mish"}, "unsupported hidden_act='mish'"),
    ],
)
def test_what_is_wrong_is_told(tensors: dict[str, Any], keys: dict[str, Any], told: str, tmp_path: Path):
    with pytest.raises(ValueError, match=told):
        from_pretrained(changed(by_name["vit"], tmp_path, tensors, **keys))


@torch.no_grad()
def test_a_classifier_without_classes_gives_what_it_would_read(tmp_path: Path):
    case = by_name["dinov2"]
    theirs, _, _ = both(case)
    none = {"classifier.weight": None, "classifier.bias": None}
    ours = from_pretrained(changed(case, tmp_path, none, id2label={}, label2id={}))
    pixels = images(case, "trained")
    hidden = theirs.dinov2(pixels).last_hidden_state
    assert_close(ours(pixels), torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], -1))


def test_names_of_classes_are_kept(tmp_path: Path):
    case = by_name["vit"]
    labels = {str(i): f"bird {i}" for i in range(5)}
    ours = from_pretrained(changed(case, tmp_path / "in", id2label=labels))
    ours.save_pretrained(tmp_path / "out", format="hf")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").id2label[3] == "bird 3"


OWN: dict[str, Any] = {"pool": "cls", "cls_position": True, "patch_norms": False, "num_classes": 5}
LAYERS = {
    "dim": 36,
    "depth": 2,
    "heads": 3,
    "head_dim": 12,
    "norm": {"bias": True, "eps": 1e-4},
    "attn": {"bias": True},
}


def own(layers: Mapping[str, Any] | None = None, **settings: Any) -> ViTransformerWrapper:
    """A model of ours, trained here so to say: gains stored as gain - 1."""
    encoder = Encoder(**{**LAYERS, **(layers or {})})
    model = ViTransformerWrapper(image_size=20, patch_size=4, channels=2, attn_layers=encoder, **{**OWN, **settings})
    perturb(model)
    return model.eval()


@pytest.mark.parametrize(
    ("layers", "settings", "class_name"),
    [
        ({}, {}, "ViTForImageClassification"),
        ({}, {"num_classes": None}, "ViTModel"),
        ({"layer_scale": 0.1}, {"pool": "cls_mean"}, "Dinov2ForImageClassification"),
        (
            {"layer_scale": 0.1, "ff": {"glu": True, "activation": "silu", "dim": 72}},
            {"num_classes": None},
            "Dinov2Model",
        ),
        (
            {"layer_scale": 0.1},
            {"pool": "cls_mean", "num_register_tokens": 2, "antialias": True},
            "Dinov2WithRegistersForImageClassification",
        ),
    ],
)
@torch.no_grad()
def test_models_of_ones_own(layers: dict[str, Any], settings: dict[str, Any], class_name: str, tmp_path: Path):
    model = own(layers, **settings)
    model.save_pretrained(tmp_path, format="hf")
    theirs = quietly(getattr(transformers, class_name).from_pretrained, tmp_path).eval()
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [class_name]
    case = Imaged(name=class_name, model=class_name, config=SEEING)
    pixels = images(case, "trained")
    assert_close(found(model, pixels), expected(theirs, case, pixels))
    assert_close(found(from_pretrained(tmp_path), pixels), expected(theirs, case, pixels))


@pytest.mark.parametrize(
    ("layers", "settings", "lacking"),
    [
        ({}, {"patch_norms": True}, "patch_norms"),
        ({}, {"cls_position": False}, "cls_position"),
        ({}, {"pool": "mean", "cls_position": False}, "pool"),
        ({"position": "axial"}, {"cls_position": False}, "position|table"),
        ({"position": ["absolute", "axial"]}, {}, "position"),
        ({}, {"interpolation": "bilinear"}, "interpolation"),
        ({}, {"post_emb_norm": True}, "emb_norm"),
        ({"norm": "rms"}, {}, r"norm\.kind"),
    ],
)
def test_what_no_family_has_is_named(layers: dict[str, Any], settings: dict[str, Any], lacking: str, tmp_path: Path):
    with pytest.raises(PretrainedError, match=lacking):
        own(layers, **settings).save_pretrained(tmp_path, format="hf")
