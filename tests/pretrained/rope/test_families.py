"""Every family of transformers with RoPE parameters: its default config, and defaults that its file leaves out."""

import functools
import math
from typing import Any

import pytest

from x_positional.errors import RopeError
from x_positional.pretrained.families import FAMILIES
from x_positional.pretrained.rope import from_hf, to_hf
from x_positional.pretrained.rope.families import (
    INTERLEAVED,
    INTERLEAVED_SECTIONS,
    LOCAL_GLOBAL,
    SCALED,
    SECTIONS,
    THETA,
    VIDEO_SECTIONS,
)
from x_positional.schemes import Rope

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

transformers.logging.set_verbosity_error()


REFUSED = {
    "deepseek_v4": "compress_rope_theta",
    "efficientloftr": "rotated fraction of a head",
    "granite_swa": "layer_rope_theta",
    "granitemoe_swa": "layer_rope_theta",
    "ministral3": "llama_4_scaling_beta",
    "mistral4": "llama_4_scaling_beta",
    "molmo2_text": "rope_scaling_layers",
    "muse_glimmer_text": "layer_rope_theta",
    "muse_spark_text": "layer_rope_theta",
    "nanochat": "by the negative angle",
    "hunyuan_vl_text": "splits channels",
    "glm4v_moe_text": "there are 10 pairs",
    "glm4v_text": "there are 64 pairs",
    "glm_image_text": "there are 64 pairs",
    "qwen3_omni_moe_text": "there are 36 pairs",
}
"""Configs that one Rope cannot express, besides images; and default sizes that do not match the family's sections."""
UNWRITABLE = {"ernie4_5_vl_moe_text"}
"""Families whose order of sections follows from their model_type alone."""


@functools.cache
def configs() -> dict[str, Any]:
    """The default config of every family that has rotary parameters."""
    found = {}
    for name in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[name]()
        except Exception:  # some need arguments
            continue
        if getattr(config, "rope_parameters", None):
            found[name] = config
    return found


def test_the_default_config_of_every_family() -> None:
    """Each is read, equals its own dict, and is written back; or it is refused with a reason."""
    axial, refused, read = [], {}, 0
    for name, config in configs().items():
        if getattr(config, "default_rope_type", "default") == "axial":
            axial.append(name)
        try:
            rope = from_hf(config)
        except RopeError as error:
            refused[name] = str(error)
            continue
        read += 1
        if name in UNWRITABLE:
            with pytest.raises(RopeError, match="section_order='video'"):
                to_hf(rope)
        else:
            assert from_hf(to_hf(rope)) == rope
        parts = {None: rope} if isinstance(rope, Rope) else rope
        for layer, part in parts.items():
            own = config.rope_parameters if layer is None else config.rope_parameters[layer]
            assert (own is None) == (part.kind == "none")
            if own is not None:
                assert part.theta == own["rope_theta"]
                assert ("default" if part.scaling is None else part.scaling.rope_type) == own["rope_type"]
    assert read > 180
    assert set(axial) <= set(refused)
    beyond = {name: text for name, text in refused.items() if name not in axial}
    assert set(beyond) == set(REFUSED)
    assert all(word in beyond[name] for name, word in REFUSED.items())


def test_a_family_fills_in_what_its_file_leaves_out() -> None:
    """A file with nothing but its model_type has the family's theta, rotated fraction and layer types."""
    own = configs()
    for name in {*THETA, *LOCAL_GLOBAL} & set(own):
        if name in SCALED:
            with pytest.raises(RopeError, match="scales its frequencies by default"):
                from_hf({"model_type": name})
        elif name not in REFUSED:
            assert from_hf({"model_type": name}) == from_hf(own[name]), name
    assert set(CONFIG_MAPPING) >= SECTIONS.keys() | INTERLEAVED_SECTIONS | VIDEO_SECTIONS
    unknown = {name for name, family in FAMILIES.items() if family.written_as}  # transformers has no class of that name
    assert set(CONFIG_MAPPING) >= INTERLEAVED - unknown
    assert math.prod((from_hf({"model_type": "glm"}).fraction, from_hf({"model_type": "stablelm"}).fraction)) == 0.125
