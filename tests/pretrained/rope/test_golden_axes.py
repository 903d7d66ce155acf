"""Rotations of positions with three axes against the text models of transformers that have them, from their configs.

T tokens, F pairs.
"""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from x_positional.errors import RopeError
from x_positional.pretrained.rope import from_hf, to_hf
from x_positional.schemes import Linear, NtkAlpha, Rope
from x_positional.schemes.base import Dims

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
transformers.logging.set_verbosity_error()

Dict = dict[str, Any]
SIZE = {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
BOUND = 2e-4  # there angles are float32: off by 1e-7 of some thousand radians


def positions(T: int = 9) -> Tensor:
    """[3 1 T] integers in no order, the text at the end the same on every axis."""
    at = torch.randint(0, 2000, (3, 1, T), generator=torch.Generator().manual_seed(2))
    at[:, :, -2:] = torch.tensor([2001, 2002])
    return at


def family(module: str, prefix: str, rope: Dict, **fields: Any) -> tuple[Any, Any]:
    """A text config of transformers and its rotary module."""
    configuration = importlib.import_module(f"transformers.models.{module}.configuration_{module}")
    modeling = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    config = getattr(configuration, f"{prefix}Config")(**SIZE | fields, rope_parameters=rope)
    short = prefix.removesuffix("Text")
    names = (f"{short}ThinkerTextRotaryEmbedding", f"{prefix}RotaryEmbedding", f"{short}RotaryEmbedding")
    rotary = next(getattr(modeling, name) for name in names if name in vars(modeling))
    return config, rotary(config)


THETA = {"rope_type": "default", "rope_theta": 1e6}
FAMILIES = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLText", THETA | {"mrope_section": [16, 24, 24]}, {}),
    "qwen2_vl, usual sections": ("qwen2_vl", "Qwen2VLText", THETA, {}),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLText", THETA | {"mrope_section": [20, 22, 22]}, {}),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLText", THETA | {"mrope_section": [24, 20, 20]}, {}),
    "qwen3_vl, usual sections": ("qwen3_vl", "Qwen3VLText", THETA, {}),
    "qwen3_vl, linear": ("qwen3_vl", "Qwen3VLText", THETA | {"rope_type": "linear", "factor": 4.0}, {}),
    "qwen3_5": (
        "qwen3_5",
        "Qwen3_5Text",
        THETA | {"mrope_interleaved": True, "partial_rotary_factor": 0.5, "mrope_section": [12, 10, 10]},
        {},
    ),
    "cosmos3_edge": ("cosmos3_edge", "Cosmos3EdgeText", THETA | {"mrope_section": [24, 20, 20]}, {}),
    "qwen3_omni_moe": ("qwen3_omni_moe", "Qwen3OmniMoeText", THETA, {}),
    "glm_ocr": ("glm_ocr", "GlmOcrText", THETA | {"partial_rotary_factor": 0.5}, {}),
    "glm4v_moe": ("glm4v_moe", "Glm4vMoeText", THETA | {"partial_rotary_factor": 0.5}, {}),
    "glm_image": ("glm_image", "GlmImageText", THETA | {"partial_rotary_factor": 0.5}, {}),
    "glm4v": ("glm4v", "Glm4vText", THETA | {"mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5}, {}),
    "paddleocr_vl": ("paddleocr_vl", "PaddleOCRText", THETA, {}),
    "ernie4_5_vl_moe": ("ernie4_5_vl_moe", "Ernie4_5_VLMoeText", THETA, {}),
    "ernie4_5_vl_moe, own sections": (
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeText",
        THETA | {"mrope_section": [16, 16, 32]},
        {},
    ),
}


@pytest.mark.parametrize(("module", "prefix", "rope", "fields"), FAMILIES.values(), ids=FAMILIES)
def test_a_family_turns_as_transformers_does(module: str, prefix: str, rope: Dict, fields: Dict) -> None:
    config, theirs = family(module, prefix, dict(rope), **fields)
    at = positions()
    cos, sin = theirs(torch.zeros(1, 1, 512), at)
    ours = from_hf(config)
    sizes = {"dim": 512, "heads": 4, "kv_heads": 2, "head_dim": 128, "causal": True, "embed_dim": 512}
    assert ours.problems(Dims(**sizes)) == []
    tables = ours.build(Dims(**sizes)).tables(at.permute(1, 2, 0))
    assert cos.squeeze().shape == tables.q_cos.squeeze().shape
    assert (cos.squeeze() - tables.q_cos.squeeze()).abs().max() < BOUND
    pairs = sin.shape[-1] // 2
    second = slice(1, None, 2) if ours.interleaved else slice(pairs, None)  # of each pair: the sine with its own sign
    assert (sin.squeeze()[..., second] - tables.q_sin.squeeze()[..., second]).abs().max() < BOUND
    even = at[:1].expand(3, -1, -1)
    assert (tables.q_cos - ours.build(Dims(**sizes)).tables(even.permute(1, 2, 0)).q_cos).abs().max() > 0.1


@pytest.mark.parametrize(
    ("config", "rope"),
    [
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, Rope(sections=(16, 24, 24))),
        (
            {
                "model_type": "qwen2_vl",
                "rope_theta": 1e6,
                "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            },
            Rope(theta=1e6, sections=(16, 24, 24)),
        ),
        ({"model_type": "qwen2_vl_text"}, Rope(theta=1e6, sections=(16, 24, 24))),
        (
            {"rope_type": "linear", "factor": 2, "mrope_section": [4, 4], "mrope_interleaved": True},
            Rope(scaling=Linear(factor=2), sections=(4, 4), section_order="interleaved"),
        ),
        (
            {"rope_type": "default", "mrope_section": [24.0, 20.0, 20.0], "interleaved": False},
            Rope(sections=(24, 20, 20)),
        ),
        (
            {"model_type": "qwen3_vl_text", "rope_scaling": {"mrope_section": [20, 22, 22]}},
            Rope(theta=5e5, sections=(20, 22, 22), section_order="interleaved"),
        ),
        ({"model_type": "qwen3_5_text"}, Rope(fraction=0.25, sections=(11, 11, 10), section_order="interleaved")),
        (
            {"model_type": "ernie4_5_vl_moe_text"},
            Rope(theta=5e5, interleaved=True, sections=(20, 22, 22), section_order="video"),
        ),
    ],
)
def test_sections_are_read(config: Dict, rope: Rope) -> None:
    assert from_hf(config) == rope
    text = rope.model_copy(update={"sections": None, "section_order": "contiguous"})
    assert from_hf(config, ignore=("mrope_section",)) == text


@pytest.mark.parametrize("order", ["contiguous", "interleaved"])
def test_there_and_back(order: str) -> None:
    for rope in (Rope(sections=(4, 3, 3), section_order=order), Rope(sections=(6, 2), section_order=order, theta=5e5)):
        assert from_hf(to_hf(rope)) == rope
    nested = {"full_attention": Rope(sections=(4, 3, 3), section_order=order), "sliding_attention": Rope()}
    assert from_hf(to_hf(nested)) == nested


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"type": "mrope", "mrope_section": 16}, "mrope_section=16 must be a list"),
        ({"type": "mrope", "mrope_section": [64]}, "two or more positive integers"),
        ({"type": "mrope", "mrope_section": [16, 24.5, 24]}, "two or more positive integers"),
        ({"type": "mrope", "mrope_section": [16, True, 24]}, "two or more positive integers"),
        (
            {"head_dim": 64, "rope_parameters": {"type": "mrope", "mrope_section": [16, 24, 24]}},
            "sum to 64, and there are 32 pairs",
        ),
        (
            {"head_dim": 128, "rope_parameters": {"mrope_section": [16, 24, 24], "mrope_interleaved": True}},
            "which needs 72 pairs",
        ),
        ({"type": "xdrope", "alpha": 1000.0, "xdrope_section": [16, 16, 16, 16]}, "splits channels, not pairs"),
        ({"model_type": "hunyuan_vl_text"}, "splits channels, not pairs"),
    ],
)
def test_what_is_refused(config: Dict, words: str) -> None:
    with pytest.raises(RopeError, match=words):
        from_hf(config)


def test_what_can_be_left_out() -> None:
    cut = {"type": "xdrope", "alpha": 1000.0, "xdrope_section": [16, 16, 16, 16]}
    assert from_hf(cut, ignore=("xdrope_section",)) == Rope(scaling=NtkAlpha(alpha=1000))
    size = {"head_dim": 64, "rope_parameters": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    assert from_hf(size, ignore=("mrope_section",)) == Rope()


@pytest.mark.parametrize(
    ("rope", "words"),
    [(Rope(sections=(4, 4, 4), section_order="video"), "section_order='video'"), (Rope(learned=True), "learned=True")],
)
def test_what_has_no_such_form(rope: Rope, words: str) -> None:
    with pytest.raises(RopeError, match=words):
        to_hf(rope)
