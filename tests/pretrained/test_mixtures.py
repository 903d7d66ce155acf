"""Mixtures of experts and latent attention as published: every treatment counts, larger models around them, older files, dtypes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.published.compare import both, ids, perturb, quietly, their_logits
from tests.support.published.decoders_moe import CASES, LLAMA4
from tests.support.published.decoders_newer import CASES as NEWER
from tests.support.rounding import assert_same
from x_positional import ModelConfig, PretrainedError, TransformerWrapper, build_model, from_pretrained
from x_positional.modules.experts import MixtureOfExperts

BY_NAME = {case.name: case for case in (*CASES, *NEWER)}


def changed_everywhere(value: Any, name: str, new: Any) -> Any:
    """Nested fields with every field of a name replaced, where it is set."""
    if isinstance(value, dict):
        return {k: new if k == name and v is not None else changed_everywhere(v, name, new) for k, v in value.items()}
    return [changed_everywhere(v, name, new) for v in value] if isinstance(value, list | tuple) else value


TREATMENTS = [
    ("mixtral", "renorm", False),
    ("mixtral window", "window", 6),
    ("qwen2_moe", "renorm", True),
    ("qwen2_moe windows", "renorm", False),
    ("qwen3_moe", "qk_norm_eps", 1e-6),
    ("olmoe", "renorm", True),
    ("olmoe", "qk_norm_eps", 1e-5),
    ("olmoe clipped", "clip", 1.0),
    ("gpt_oss", "glu_shift", 0.0),
    ("gpt_oss clamped", "glu_clamp", 7.0),
    ("gpt_oss", "swish_beta", 1.0),
    ("gpt_oss", "window", 7),
    ("gpt_oss", "truncate", True),
    ("deepseek_v3", "scale", None),
    ("deepseek_v3", "eps", 3e-3),
    ("deepseek_v3", "top_groups", 3),
    ("deepseek_v3", "renorm", False),
    ("deepseek_v3", "interleaved", False),
    ("deepseek_v3 halves", "interleaved", True),
    ("llama4 text", "chunk", 8),
    ("llama4 text", "weigh", "output"),
    ("llama4 text", "qk_norm_eps", 1e-5),
    ("llama4 temperature", "floor_scale", 8192),
    ("llama4 temperature", "offset", 0.0),
    ("llama4 text", "renorm", True),
    ("deepseek_v2 in groups", "group_best", 2),
    ("deepseek_v2 in groups", "top_groups", 3),
    ("deepseek_v2", "scale", 1.0),
    ("deepseek_v2", "renorm", True),
    ("glm4_moe", "fraction", 0.9),
    ("glm4_moe", "qk_norm_eps", 1e-5),
    ("dots1", "window", 6),
    ("ernie4_5_moe", "interleaved", False),
    ("ernie4_5_moe", "score", "sigmoid"),
    ("minimax_m2", "score", "softmax"),
    ("minimax_m2", "qk_norm_eps", 1e-6),
    ("granitemoe", "residual_scale", 0.7),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "field", "value"), TREATMENTS, ids=lambda v: str(v))
def test_every_treatment_counts(name: str, field: str, value: Any) -> None:
    """The same weights under another setting give other logits, so the cases would find it wrong."""
    _, ours, _ = both(BY_NAME[name])
    fields = changed_everywhere(ours.config.model_dump(), field, 1.0 if value is None else value)
    twin = build_model(ModelConfig.model_validate(fields)).eval()
    twin.load_state_dict(ours.state_dict())
    tokens = ids(2, 23)
    assert (twin(tokens) - ours(tokens)).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["deepseek_v3", "deepseek_v3 halves", "deepseek_v3 yarn", "minimax_m2", "ernie4_5_moe"]
)
def test_the_correction_counts(name: str) -> None:
    _, ours, _ = both(BY_NAME[name])
    tokens = ids(2, 23)
    before = ours(tokens)
    routers = [m.router for m in ours.modules() if isinstance(m, MixtureOfExperts)]
    held = [router.correction.clone() for router in routers]
    for router in routers:
        router.correction.zero_()
    after = ours(tokens)
    for router, correction in zip(routers, held, strict=True):
        router.correction.copy_(correction)
    assert (after - before).abs().max() > 1e-3


def test_yarn_sharpens_scores_twice() -> None:
    """Once in the cosines, by the ratio of the two factors, and squared in the scale."""
    _, ours, _ = both(BY_NAME["deepseek_v3 yarn"])
    grown = 0.1 * 1.3 * torch.tensor(4.0).log().item() + 1
    assert ours.config.layers.attn.scale == pytest.approx(16**-0.5 * grown**2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    eyes = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    config = transformers.Llama4Config(text_config=LLAMA4, vision_config=eyes)
    model = quietly(transformers.Llama4ForConditionalGeneration, config).eval()
    perturb(model)
    folder = tmp_path_factory.mktemp("llama4")
    quietly(model.save_pretrained, folder)
    return model, folder


@torch.no_grad()
def test_the_text_inside_of_llama4(whole: tuple[Any, Path], recwarn: pytest.WarningsRecorder, tmp_path: Path) -> None:
    theirs, folder = whole
    ours, tokens = from_pretrained(folder), ids(2, 23)
    assert isinstance(ours, TransformerWrapper)
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    expected = their_logits(theirs.language_model, tokens)  # transformers 5.24 fails on the whole model in every call
    assert_same(ours(tokens), expected)
    ours.save_pretrained(tmp_path, format="hf")
    again = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path)
    assert type(again) is transformers.Llama4ForCausalLM
    assert_same(their_logits(again, tokens), expected)


def edited(source: Path, folder: Path, changes: Mapping[str, Any], without: tuple[str, ...] = ()) -> Path:
    """The same weights under another config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in without} | dict(changes)
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0}
OLDER = {
    "windows in every other of the first layers": (
        "qwen2_moe windows",
        {"max_window_layers": 2, "sliding_window": 5, "use_sliding_window": True},
        ("layer_types",),
    ),
    "windows that are off": ("qwen2_moe windows", {"use_sliding_window": False}, ("layer_types",)),
    "alternating": ("gpt_oss", {}, ("layer_types",)),
    "intervals": (
        "llama4 temperature",
        {"no_rope_layer_interval": 4, "interleave_moe_layer_step": 2},
        ("layer_types", "no_rope_layers", "moe_layers"),
    ),
    "null for every layer": (
        "llama4 temperature",
        {"layer_types": None, "no_rope_layers": None, "moe_layers": None},
        (),
    ),
    "rope_scaling": ("deepseek_v3", {"rope_scaling": YARN, "rope_theta": 77.0}, ("rope_parameters",)),
    "neighbours unless said otherwise": ("deepseek_v3", {}, ("rope_interleave",)),
}


@torch.no_grad()
@pytest.mark.parametrize("what", OLDER)
def test_older_files(what: str, tmp_path: Path) -> None:
    name, changes, without = OLDER[what]
    case = BY_NAME[name]
    folder = edited(both(case)[2], tmp_path / "old", changes, without)
    theirs = quietly(getattr(transformers, case.model).from_pretrained, folder, attn_implementation=case.attention)
    tokens = ids(2, case.length)
    assert_same(from_pretrained(folder)(tokens), their_logits(theirs, tokens))


REFUSED = {
    "four bits": ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, "quantised weights are unsupported"),
    "another score": ("deepseek_v3", {"scoring_func": "softmax"}, "other routing scores"),
    "another choice": ("deepseek_v3", {"topk_method": "greedy"}, "other ways to choose experts"),
    "more experts than there are": ("mixtral", {"num_experts_per_tok": 9}, "exceeds moe.experts"),
    "more experts than files": ("mixtral", {"num_local_experts": 6}, r"experts.5.w3.weight is missing"),
    "fewer experts than files": ("qwen3_moe", {"num_experts": 5, "num_local_experts": None}, "mlp.gate.weight"),
    "other widths": ("deepseek_v3", {"kv_lora_rank": 10}, "kv_a_layernorm"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_followed(what: str, tmp_path: Path) -> None:
    name, changes, word = REFUSED[what]
    folder = edited(both(BY_NAME[name])[2], tmp_path / "odd", changes)
    with pytest.raises(ValueError, match=word):
        from_pretrained(folder)


@torch.no_grad()
def test_what_predicts_further_ahead_is_left(tmp_path: Path) -> None:
    """DeepSeek-V3's files have one layer more, which predicts the token after the next."""
    _, ours, folder = both(BY_NAME["deepseek_v3"])
    copy, tokens = edited(folder, tmp_path / "more", {}), ids(2, 9)
    held = load_file(copy / "model.safetensors")
    save_file({**held, "model.layers.61.enorm.weight": torch.ones(3)}, copy / "model.safetensors")
    assert torch.equal(from_pretrained(copy)(tokens), ours(tokens))
    save_file({**held, "model.layers.60.enorm.weight": torch.ones(3)}, copy / "model.safetensors")
    with pytest.raises(PretrainedError, match=r"unexpected tensor model\.layers\.60\.enorm\.weight in"):
        from_pretrained(copy)


@torch.no_grad()
def test_in_half_precision_the_correction_stays_as_it_is() -> None:
    """As in transformers; and logits differ from theirs by the roundings of bfloat16 alone."""
    _, exact, folder = both(BY_NAME["deepseek_v3"])
    ours = from_pretrained(folder, dtype=torch.bfloat16)
    theirs = quietly(
        transformers.AutoModelForCausalLM.from_pretrained, folder, dtype=torch.bfloat16, experts_implementation="eager"
    )
    dtypes = {name: p.dtype for name, p in ours.named_parameters()}
    assert {n for n, d in dtypes.items() if d == torch.float32} == {
        n for n in dtypes if n.endswith("router.correction")
    }
    tokens = ids(2, 23)
    apart = (ours(tokens).float() - exact(tokens)).abs().mean()
    assert apart < 1.5 * (their_logits(theirs, tokens).float() - exact(tokens)).abs().mean()


OWN = {
    "mixtral": {"ff": {"dim": 20, "glu": True, "activation": "silu", "bias": False, "moe": {"experts": 4, "top_k": 2}}},
    "olmoe": {
        "ff": {
            "dim": 20,
            "glu": True,
            "activation": "silu",
            "bias": False,
            "moe": {"experts": 4, "top_k": 2, "renorm": False},
        },
        "attn": {"qk_norm": "rms_whole", "clip": 2.0},
    },
    "deepseek_v3": {
        "ff": {
            "dim": 20,
            "glu": True,
            "activation": "silu",
            "bias": False,
            "moe": {"experts": 4, "top_k": 2, "score": "sigmoid", "correction": True, "shared": 40},
        },
        "attn": {"mla": {"kv_rank": 8, "rope_dim": 4, "value_dim": 6}},
        "position": {"kind": "rope", "dim": 4},
    },
}


@torch.no_grad()
@pytest.mark.parametrize("name", OWN)
def test_an_own_model_is_written(name: str, tmp_path: Path) -> None:
    """Gains stored as gain - 1 here, as they are there."""
    layers = {
        "dim": 32,
        "depth": 2,
        "heads": 4,
        "head_dim": 8,
        "position": "rope",
        "norm": {"kind": "rms"},
        **OWN[name],
    }
    model = build_model(ModelConfig.model_validate({"num_tokens": 67, "max_seq_len": 64, "layers": layers})).eval()
    perturb(model)
    model.save_pretrained(tmp_path, format="hf")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == name
    theirs, tokens = quietly(transformers.AutoModelForCausalLM.from_pretrained, tmp_path), ids(2, 23)
    assert_same(their_logits(theirs, tokens), model(tokens))


def test_what_no_family_has_is_said(tmp_path: Path) -> None:
    ff = {"dim": 20, "glu": True, "activation": "silu", "bias": False, "moe": {"experts": 4, "top_k": 2, "scale": 3.0}}
    layers = {"dim": 32, "depth": 2, "heads": 4, "head_dim": 8, "position": "rope", "norm": {"kind": "rms"}, "ff": ff}
    model = build_model(ModelConfig.model_validate({"num_tokens": 67, "max_seq_len": 64, "layers": layers}))
    with pytest.raises(PretrainedError, match=r"moe=None \(this model: .*'scale': 3\.0"):
        model.save_pretrained(tmp_path, format="hf", code=False)


@torch.no_grad()
def test_our_own_format_holds_mixtures_and_latents(tmp_path: Path) -> None:
    _, ours, _ = both(BY_NAME["deepseek_v3"])
    ours.save_pretrained(tmp_path, format="native")
    tokens, again = ids(2, 9), from_pretrained(tmp_path)
    assert torch.equal(again(tokens), ours(tokens))
    narrow = from_pretrained(tmp_path, dtype=torch.bfloat16)
    routers = [m.router for m in narrow.modules() if isinstance(m, MixtureOfExperts)]
    assert {router.correction.dtype for router in routers} == {torch.float32}
    assert not any(router.correction.requires_grad for router in routers)
