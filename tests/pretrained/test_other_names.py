"""Models published under a name that transformers has no class for, which are another family; and models that are refused by
name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.published.compare import both, ids, perturb, quietly, their_logits
from tests.support.published.decoders import CASES
from tests.support.published.decoders_llama import LLAMA
from tests.support.rounding import assert_same
from x_positional import PretrainedError, from_pretrained
from x_positional.pretrained import FAMILIES
from x_positional.pretrained.families import NESTED
from x_positional.pretrained.families.refused import REFUSED

FURTHER = {"num_nextn_predict_layers": 1, "auto_map": {"AutoModelForCausalLM": "modeling_of_their_own.Model"}}
OTHER_NAMES = {"kimi_k2": "deepseek_v3 yarn", "mimo": "qwen2 without windows"}
EXTRA = {"kimi_k2": "model.layers.61.enorm.weight", "mimo": "model.mtp_layers.0.input_proj.weight"}
"""Tensors that predict the token after the next one."""


@torch.no_grad()
@pytest.mark.parametrize("name", OTHER_NAMES)
def test_another_name_of_a_family(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    case = next(case for case in CASES if case.name == OTHER_NAMES[name])
    theirs, ours, folder = both(case)
    shutil.copytree(folder, tmp_path / "published")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "published" / "config.json").write_text(json.dumps({**config, **FURTHER, "model_type": name}))
    held = load_file(folder / "model.safetensors")
    save_file({**held, EXTRA[name]: torch.ones(3)}, tmp_path / "published" / "model.safetensors")
    model, tokens = from_pretrained(tmp_path / "published"), ids(2, 23)
    assert torch.equal(model(tokens), ours(tokens))
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    for given in (None, name):
        model.save_pretrained(tmp_path / "saved", format="hf", model_type=given)
        again = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path / "saved")
        assert type(again) is type(theirs)
        torch.testing.assert_close(their_logits(again, tokens), their_logits(theirs, tokens), atol=0, rtol=0)
        from_pretrained(tmp_path / "saved")
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


INTERN: dict[str, dict[str, Any]] = {
    "published keys": {"bias": True, "qkv_bias": True},
    "keys of today": {"mlp_bias": False, "attention_bias": False},
}


@torch.no_grad()
@pytest.mark.parametrize("what", INTERN)
def test_internlm3_is_llama(what: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    linear = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
    settings = {**LLAMA, "head_dim": 10, "rope_parameters": linear, **INTERN[what]}
    theirs = quietly(transformers.AutoModelForCausalLM.from_config, transformers.InternLM3Config(**settings)).eval()
    perturb(theirs)
    quietly(theirs.save_pretrained, tmp_path / "published")
    config = {**settings, "model_type": "internlm3", "architectures": ["InternLM3ForCausalLM"]}
    (tmp_path / "published" / "config.json").write_text(json.dumps(config))
    ours, tokens = from_pretrained(tmp_path / "published"), ids(2, 23)
    assert_same(ours(tokens), their_logits(theirs, tokens))
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    ours.save_pretrained(tmp_path / "saved", format="hf")
    again = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path / "saved")
    torch.testing.assert_close(their_logits(again, tokens), their_logits(theirs, tokens), atol=0, rtol=0)
    assert again.config.model_type == "llama"


def test_models_that_need_another_mechanism_are_refused_by_name(tmp_path: Path) -> None:
    assert not REFUSED.keys() & {*FAMILIES, *NESTED}
    assert not [name for name in REFUSED if name not in transformers.CONFIG_MAPPING]
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    for name, reason in REFUSED.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        with pytest.raises(PretrainedError) as caught:
            from_pretrained(tmp_path)
        assert caught.value.problems[0].startswith(f"unsupported model_type={name!r}: {reason}, which")
