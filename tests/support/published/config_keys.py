"""Small published models under changed `config.json`s, and the keys that transformers reads."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tests.support.published import seq2seq_cases
from tests.support.published.compare import EPS, VOCABULARY, Published, both, ids, quietly, their_logits
from tests.support.published.decoders import CASES as DECODERS
from tests.support.published.encoders import CASES as ENCODERS
from x_positional.pretrained import FAMILIES
from x_positional.pretrained.family import Family

INTERNAL = {
    *("_attn_implementation_internal", "_experts_implementation", "_experts_implementation_internal"),
    *("_output_attentions", "_post_init_done", "_heterogeneity_spec", "is_heterogeneous", "name_or_path"),
    *("_rope_type_labels", "default_rope_type", "ignore_keys_at_rope_validation", "_out_features", "_out_indices"),
    *("base_model_ep_plan", "base_model_fsdp_plan", "base_model_pp_plan", "base_model_tp_plan"),
    *(
        "attribute_map",
        "sub_configs",
        "output_cross_attentions",
        "has_no_defaults_at_init",
        "keys_to_ignore_at_inference",
    ),
}
"""Attributes of config objects that select code or outputs and are not keys of a published file."""
PARTS = {"decoder", "generator", "text_config", "encoder", "text_encoder", "vision_config"}
"""Attributes by which transformers looks for the config of a part."""
VISION = {"vision_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy"}
"""Read from the config of every model, and used in multimodal ones."""


SEEING = {
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 20,
    "patch_size": 4,
    "num_channels": 2,
    "layer_norm_eps": EPS,
    "num_labels": 5,
}
"""A small model of images."""
TOWER = {**{key: value for key, value in SEEING.items() if key != "num_labels"}, "intermediate_size": 50}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "layer_norm_eps": EPS,
    "bos_token_id": 1,
    "eos_token_id": 66,
    "pad_token_id": 0,
}
"""A small text tower."""
TEXT_TOWERS = [
    Published(name="keys clip text", model="CLIPTextModelWithProjection", config={**TEXT, "projection_dim": 9}),
    Published(name="keys siglip text", model="SiglipTextModel", config={**TEXT, "projection_size": 9}),
]
VISION_CASES = [
    Published(name="keys vit", model="ViTForImageClassification", config={**SEEING, "intermediate_size": 50}),
    Published(name="keys dinov2", model="Dinov2ForImageClassification", config={**SEEING, "mlp_ratio": 3}),
    Published(name="keys deit", model="DeiTForImageClassification", config={**SEEING, "intermediate_size": 50}),
    Published(name="keys dinov3", model="DINOv3ViTModel", config={**TOWER, "num_register_tokens": 2}),
    Published(name="keys clip", model="CLIPVisionModelWithProjection", config={**TOWER, "projection_dim": 7}),
    Published(name="keys siglip", model="SiglipVisionModel", config=TOWER),
    Published(
        name="keys dinov2 registers",
        model="Dinov2WithRegistersForImageClassification",
        config={**SEEING, "mlp_ratio": 3, "num_register_tokens": 3},
    ),
]


@dataclass(frozen=True, eq=False)
class Case:
    """A small model of one family."""

    kind: str
    published: Published
    family: Family

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        return getattr(transformers, self.published.model).config_class


def _all() -> list[Case]:
    groups = {
        "decoder": DECODERS,
        "encoder": ENCODERS,
        "seq2seq": seq2seq_cases.CASES,
        "vision": VISION_CASES,
        "text tower": TEXT_TOWERS,
    }
    return [
        Case(kind, case, FAMILIES[getattr(transformers, case.model).config_class.model_type])
        for kind, cases in groups.items()
        for case in cases
    ]


CASES = _all()
ONE_EACH = list({case.family.model_type: case for case in reversed(CASES)}.values())
"""The first case of every family."""


@torch.no_grad()
def theirs(model: nn.Module, case: Case) -> Tensor:
    """What transformers computes."""
    match case.kind:
        case "decoder":
            return their_logits(model, tokens())
        case "seq2seq":
            return model(input_ids=ids(2, 15), decoder_input_ids=ids(2, 7, 1), use_cache=False).logits
        case "vision":
            out = model(images())
        case _:
            out = model(tokens())
    for name in ("logits", "image_embeds"):
        if name in out:
            return out[name]
    return out.last_hidden_state


@torch.no_grad()
def ours(model: Any, case: Case) -> Tensor:
    """What x_positional computes."""
    match case.kind:
        case "seq2seq":
            return model.logits(ids(2, 15), ids(2, 7, 1))
        case "vision":
            return model(images()) if model.to_logits is not None else model.encode(images()).patches
        case "text tower":
            return model(tokens(), return_embeddings=True)
        case _:
            return model(tokens())


def tokens() -> Tensor:
    """[B T] ids above those of special tokens: RoBERTa finds padding by its id."""
    return ids(2, 15).clamp(min=8)


def images() -> Tensor:
    return torch.randn(2, 2, 20, 20, generator=torch.Generator().manual_seed(0))


@cache
def base(case: Case) -> tuple[Path, dict[str, Any], Tensor]:
    """The folder of a case, its config.json, and what transformers computes."""
    model, _, folder = both(case.published)
    return folder, json.loads((folder / "config.json").read_text()), theirs(model, case)


@contextmanager
def changed(case: Case, changes: Mapping[str, Any], removed: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder with the same weights under a changed config.json."""
    folder, config, _ = base(case)
    with tempfile.TemporaryDirectory() as name:
        shutil.copyfile(folder / "model.safetensors", Path(name) / "model.safetensors")
        config = {key: value for key, value in config.items() if key not in removed} | dict(changes)
        (Path(name) / "config.json").write_text(json.dumps(config))
        yield Path(name)


def load_theirs(case: Case, folder: Path) -> nn.Module:
    """Raises ValueError where transformers leaves a parameter uninitialised."""
    cls = getattr(transformers, case.published.model)
    settings = {"attn_implementation": case.published.attention, "output_loading_info": True}
    model, info = quietly(cls.from_pretrained, folder, **settings)
    if info["missing_keys"]:
        raise ValueError(f"missing: {info['missing_keys']}")
    return model


def declared(case: Case) -> set[str]:
    """Keys of a family's config class."""
    cls = case.config_class
    own = {f.name for f in fields(cls)} if is_dataclass(cls) else set()
    return own | set(quietly(cls).to_dict()) | set(cls.attribute_map)


def read_by_transformers(case: Case, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Attributes of the config that transformers reads to build and to run a model."""
    seen: set[str] = set()
    original = PreTrainedConfig.__getattribute__

    def spy(self: PreTrainedConfig, name: str) -> Any:
        if type(self) is cls.config_class:
            seen.add(name)
        return original(self, name)

    cls = getattr(transformers, case.published.model)
    config = quietly(cls.config_class, **{"attn_implementation": case.published.attention, **case.published.config})
    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedConfig, "__getattribute__", spy)
        theirs(quietly(cls, config).eval(), case)
    return {name for name in seen if not name.startswith("__") and not callable(getattr(PreTrainedConfig, name, None))}
