"""What cannot be converted: every unsupported flag of an instance is named, and nothing is dropped silently."""

from typing import Any

import pytest
import torch
import x_transformers as xt
from torch import nn

from tests.support.rounding import assert_same
from tests.support.x_transformers_models import IDS, SHAPE, perturbed_model
from x_positional import ConversionError, from_x_transformers
from x_positional.pretrained.x_transformers import form_of

LAYERS: dict[str, Any] = {
    "only_attn": True,
    "weight_tie_layers": True,
    "layers_execute_order": (0, 1, 1, 0),
    "macaron": True,
    "layer_dropout": 0.1,
    "cross_attn_tokens_dropout": 0.1,
    "shift_tokens": 1,
    "use_dynamic_tanh": True,
    "use_derf": True,
    "use_adaptive_layernorm": True,
    "use_adaptive_rmsnorm": True,
    "use_adaptive_layerscale": True,
    "pre_and_post_norm": True,
    "residual_attn": True,
    "gate_residual": True,
    "orthog_residual": True,
    "mv_split_residual": True,
    "scale_residual": True,
    "scale_residual_constant": 2.0,
    "depth_scale_residual": 0.5,
    "softclamp_output": True,
    "use_layerscale": True,
    "unet_skips": True,
    "integrate_layers": True,
    "num_residual_streams": 2,
    "reinject_input": True,
    "add_value_residual": True,
    "attn_value_dim_head": 4,
    "attn_sublayer_dropout": 0.1,
    "attn_k_rmsnorm": True,
    "attn_value_rmsnorm": True,
    "attn_add_zero_kv": True,
    "attn_num_mem_kv": 2,
    "attn_l2_distance": True,
    "attn_sigmoid": True,
    "attn_hard": True,
    "attn_gumbel_softmax": True,
    "attn_cog_signed": True,
    "attn_custom_attn_fn": torch.relu,
    "attn_sparse_topk": 2,
    "attn_selective": True,
    "attn_pre_talking_heads": True,
    "attn_post_talking_heads": True,
    "attn_pre_scale_post_talking_heads": True,
    "attn_head_scale": True,
    "attn_on_attn": True,
    "attn_gate_value_heads": True,
    "attn_gate_values": True,
    "attn_output_gate": True,
    "attn_orthog_projected_values": True,
    "attn_orthog_projected_values_per_head": True,
    "attn_laser": True,
    "attn_hybrid_module": nn.Linear(18, 24),
    "attn_use_rel_proj_pos_bias": True,
    "ff_solu": True,
    "ff_custom_activation": nn.Tanh(),
    "ff_post_act_ln": True,
    "ff_sublayer_dropout": 0.1,
    "ff_softclamp_value": 3.0,
    "custom_layers": ("a", "f", "f"),
    "sandwich_coef": 1,
    "par_ratio": 4,
}
"""Flag -> a value that enables it."""
SHOWN_AS = dict.fromkeys(("sandwich_coef", "par_ratio"), "custom_layers")
"""Flags that are another form of a second flag -> the second flag."""
DETAILS: dict[str, dict[str, Any]] = {
    "attn_qk_norm_groups": {"attn_qk_norm": True, "attn_qk_norm_groups": 2},
    "attn_qk_norm_dim_scale": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "attn_data_dependent_alibi_per_row": {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True},
    "post_log_scale": {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_kwargs": {"post_log_scale": 0.5}},
    "attn_cope_soft_onehot_pos": {"attn_use_cope": True, "attn_cope_soft_onehot_pos": True},
    "attn_cope_talking_heads": {"attn_use_cope": True, "attn_cope_talking_heads": True},
    "ff_glu_mult_bias": {"ff_glu": True, "ff_glu_mult_bias": True},
    "ff_glu_softclamp": {"ff_glu": True, "ff_glu_softclamp": True},
    "attn_use_latent_q": {"attn_use_latent_q": True, "attn_dim_latent_q": 8},
    "attn_use_latent_kv": {"attn_use_latent_kv": True, "attn_dim_latent_kv": 8},
    "attn_latent_rope_subheads": {
        "attn_use_latent_kv": True,
        "attn_dim_latent_kv": 8,
        "attn_latent_rope_subheads": 1,
        "rotary_pos_emb": True,
    },
    "cross_residual_attn": {"cross_residual_attn": True, "cross_attend": True},
    "attn_max_attend_past": {"attn_max_attend_past": (3, None)},
    "cross_attn_max_attend_past": {"attn_max_attend_past": 3, "cross_attend": True},
    "cross_attn_qk_norm": {"cross_attn_qk_norm": True, "cross_attend": True},
    "cross_attn_inverted_attention": {"cross_attn_inverted_attention": True, "cross_attend": True},
    "polar_pos_emb": {"polar_pos_emb": True, "heads": 4, "attn_kv_heads": 2},
    "attn_use_cope": {"attn_use_cope": True, "rotary_pos_emb": True},
    "rotary_xpos": {"attn_use_cope": True, "rotary_xpos": True},
    "alibi_num_heads": {"alibi_pos_bias": True, "alibi_num_heads": 2, "heads": 4, "attn_kv_heads": 2},
}
WRAPPER: dict[str, Any] = {
    "embed_num_tokens": {"a": 3},
    "max_mem_len": 3,
    "shift_mem_down": 1,
    "num_memory_tokens": 2,
    "num_output_heads": 2,
    "recycling": True,
    "emb_frac_gradient": 0.5,
    "average_pool_embed": True,
    "use_cls_token": True,
    "attn_pool": True,
    "squeeze_out_last_dim": True,
    "token_emb": nn.Embedding(11, 18),
    "mixture_of_softmax": True,
    "sigsoftmax_logits": True,
    "ff_deep_embed": True,
    "to_logits": nn.Conv1d(1, 1, 1),
    "add_continuous_pred_head": True,
    "input_not_include_cache": True,
}


def problems_of(model: nn.Module) -> str:
    with pytest.raises(ConversionError) as caught:
        from_x_transformers(model)
    return str(caught.value)


@pytest.mark.parametrize("name", [*LAYERS, *DETAILS])
def test_an_unsupported_flag_of_layers_is_named(name: str) -> None:
    flags = DETAILS.get(name, {name: LAYERS.get(name)})
    if name == "custom_layers":
        flags = {**flags, "depth": None}
    model = xt.TransformerWrapper(num_tokens=11, max_seq_len=24, attn_layers=xt.Decoder(**{**SHAPE, **flags}))
    assert SHOWN_AS.get(name, name) in problems_of(model)


@pytest.mark.parametrize("name", WRAPPER)
def test_an_unsupported_flag_of_a_wrapper_is_named(name: str) -> None:
    assert name in problems_of(perturbed_model(wrapper={name: WRAPPER[name]}))


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (
            lambda stack: xt.ContinuousTransformerWrapper(attn_layers=stack, probabilistic=True, dim_out=3),
            "probabilistic",
        ),
        (lambda stack: xt.ContinuousTransformerWrapper(attn_layers=stack, num_memory_tokens=2), "num_memory_tokens"),
        (lambda stack: xt.ContinuousTransformerWrapper(attn_layers=stack, project_in=nn.Linear(3, 18)), "project_in"),
        (
            lambda stack: xt.ContinuousTransformerWrapper(attn_layers=stack, average_pool_embed=True),
            "average_pool_embed",
        ),
        (
            lambda stack: xt.AutoregressiveWrapper(
                xt.TransformerWrapper(num_tokens=5, max_seq_len=6, attn_layers=stack), mask_prob=0.1
            ),
            "mask_prob",
        ),
        (lambda stack: xt.TransformerWrapper(num_tokens=5, max_seq_len=0, attn_layers=stack), "max_seq_len=0"),
        *(
            (
                lambda stack, flag=flag: xt.ViTransformerWrapper(
                    image_size=8, patch_size=4, num_register_tokens=2, attn_layers=xt.Encoder(**SHAPE, **{flag: True})
                ),
                flag,
            )
            for flag in ("rotary_pos_emb", "alibi_pos_bias", "rel_pos_bias", "dynamic_pos_bias", "polar_pos_emb")
        ),
    ],
)
def test_an_unsupported_flag_of_another_wrapper_is_named(made: Any, name: str) -> None:
    assert name in problems_of(made(xt.Decoder(**SHAPE)))


def test_every_problem_is_reported_at_once() -> None:
    told = problems_of(
        perturbed_model(macaron=False, attn_laser=True, softclamp_output=True, wrapper={"recycling": True})
    )
    assert all(name in told for name in ("attn_laser", "softclamp_output", "recycling"))


class Changed(xt.Decoder):
    """A subclass."""


def _table_turned(model: Any) -> None:
    model.attn_layers.rotary_pos_emb.inv_freq *= 1.01


def _shared(model: Any) -> None:
    model.attn_layers.layers[2][1].to_q = model.attn_layers.layers[0][1].to_q


TAMPERED = {
    "a value": (lambda m: setattr(m.attn_layers, "temperature", 3.0), "temperature"),
    "a module": (lambda m: setattr(m.attn_layers.layers[0][1], "gate", nn.Linear(3, 3)), "unknown attributes: gate"),
    "a method": (lambda m: setattr(m, "forward", lambda x: x), "unknown attributes: forward"),
    "a hook": (lambda m: m.attn_layers.register_forward_hook(lambda *a: None), "hooks"),
    "a wrapped part": (lambda m: setattr(m.attn_layers.layers[0][1], "split_q_heads", nn.Tanh()), "torch.Tanh"),
    "another class": (lambda m: setattr(m, "attn_layers", Changed(**SHAPE)), "Changed"),
    "a gone attribute": (lambda m: delattr(m.attn_layers, "unet_skips"), "no unet_skips"),
    "scale": (lambda m: setattr(m.attn_layers.layers[0][1].attend, "scale", 0.2), "multiplies scores by 0.2"),
    "eps": (lambda m: setattr(m.attn_layers.final_norm.ln, "eps", 0.1), "final_norm.ln"),
    "one offset": (lambda m: setattr(m.attn_layers.final_norm, "unit_offset", False), "unit offset"),
    "a table": (_table_turned, "rotary_base_rescale_factor"),
    "shared weights": (_shared, "share one parameter"),
    "gelu": (lambda m: setattr(m.attn_layers.layers[1][1].ff[0][1], "approximate", "tanh"), "ff_custom_activation"),
    "a bias": (
        lambda m: setattr(m.attn_layers.layers[0][1], "to_q", nn.Linear(18, 24)),
        "unexpected tensor attn_layers.layers.0.1.to_q.bias",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_changed_by_hand_is_refused(name: str) -> None:
    model = perturbed_model(rotary_pos_emb=True)
    change, told = TAMPERED[name]
    change(model)
    assert told in problems_of(model)


def test_other_modules_are_refused() -> None:
    assert "torch.Linear" in problems_of(nn.Linear(3, 3))
    assert "which is unsupported" in problems_of(
        xt.MultiInputTransformerWrapper(num_tokens={"a": 3}, max_seq_len=4, attn_layers=xt.Decoder(**SHAPE))
    )


def changed_state(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    model = perturbed_model(rotary_pos_emb=True)
    return form_of(model), {n: t for n, t in {**model.state_dict(), **changes}.items() if t is not None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attn_layers.extra.weight": torch.zeros(3)}, r"unexpected tensor attn_layers\.extra\.weight"),
        ({"to_logits.weight": None}, r"no tensor of the state dict maps to parameter to_logits\.weight"),
        ({"attn_layers.layers.0.1.to_k.weight": None}, r"blocks\.0\.attn\.to_qkv\.weight"),
        (
            {"token_emb.emb.weight": torch.zeros(3, 18)},
            r"token_emb\.weight: \[11, 18\] in the model, \[3, 18\] in the state dict",
        ),
        ({"attn_layers.rotary_pos_emb.inv_freq": torch.ones(2)}, "other frequencies than the keywords give"),
        ({"attn_layers.layers.9.1.to_out.weight": torch.zeros(18, 24)}, "unexpected weights for|unexpected tensor"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConversionError, match=told):
        from_x_transformers(*changed_state(**changes))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"attn_layers": {"Decoder": {"dim": 18, "depth": 2, "position": "rope"}}}, "position is not a keyword"),
        ({"attn_layers": {"Decoder": {"dim": 18, "depth": 2, "rotary": True}}}, "rotary is not a flag"),
        ({"attn_layers": {"PrefixDecoder": {"dim": 18, "depth": 2}}}, "not a model form"),
        ({"attn_layers": {"Decoder": {"depth": 2}}}, "dim is missing"),
        ({"attn_layers": {"Decoder": {"dim": 18, "depth": 2}}, "num_tokens": None}, "num_tokens is missing"),
    ],
)
def test_keywords_that_are_wrong_are_named(flags: dict[str, Any], told: str) -> None:
    form = {"TransformerWrapper": {"num_tokens": 11, "max_seq_len": 24, **flags}}
    with pytest.raises(ConversionError, match=told):
        from_x_transformers(form, {})


def test_what_is_given_together() -> None:
    model = perturbed_model()
    with pytest.raises(ConversionError, match="pass the weights as state_dict="):
        from_x_transformers(form_of(model))
    with pytest.raises(ConversionError, match="already has weights"):
        from_x_transformers(model, model.state_dict())
    with pytest.raises(ConversionError, match="not a model form"):
        from_x_transformers({"num_tokens": 3, "max_seq_len": 4}, {})


def test_what_only_new_weights_see_is_fine() -> None:
    flags = {
        "attn_zero_init_output": True,
        "ff_zero_init_output": True,
        "zero_init_branch_output": True,
        "depth_scale_residual": True,
    }
    model = perturbed_model(**flags)
    form = {"TransformerWrapper": {"num_tokens": 11, "max_seq_len": 24, "attn_layers": {"Decoder": {**SHAPE, **flags}}}}
    with torch.no_grad():
        for ours in (from_x_transformers(model), from_x_transformers(form, model.state_dict())):
            assert_same(ours(IDS), model(IDS))
