"""Flags of the layers become config fields, and keep the numbers of x-transformers."""

import pytest
from x_transformers import x_transformers as xt

from x_positional.config.flags import layers_from_flags, model_from_flags
from x_positional.config.layers import LayersConfig
from x_positional.schemes import NoPosition, Rope

SIZE = {"dim": 96, "depth": 2}


def decoder(**flags):
    return layers_from_flags("decoder", {**SIZE, **flags})


def encoder(**flags):
    return layers_from_flags("encoder", {**SIZE, **flags})


def model(**flags):
    return model_from_flags(11, 64, {"kind": "decoder", **SIZE, **flags})


ROPE = {"kind": "rope", "dim": 32, "interleaved": True}
T5 = {"kind": "t5", "num_buckets": 32, "max_distance": 128, "scale": 8.0}
DYNAMIC = {"kind": "dynamic", "depth": 2, "log_distance": False, "norm": False}


@pytest.mark.parametrize(
    ("flags", "position"),
    [
        ({"rotary_pos_emb": True}, [ROPE]),
        ({"rotary_pos_emb": True, "attn_dim_head": 24}, [ROPE | {"dim": 12}]),
        ({"rotary_pos_emb": True, "head_dim": 24}, [ROPE | {"dim": 12}]),
        ({"rotary_pos_emb": True, "rotary_emb_dim": 64}, [ROPE | {"dim": 64}]),
        ({"rotary_pos_emb": True, "rotate_num_heads": 3}, [ROPE | {"heads": 3}]),
        ({"rotary_pos_emb": True, "attn_rotate_num_heads": 3}, [ROPE | {"heads": 3}]),
        ({"rotary_pos_emb": True, "rotary_base_rescale_factor": 4.0}, [ROPE | {"base_rescale_factor": 4.0}]),
        ({"rotary_pos_emb": True, "rotary_interpolation_factor": 2.0}, [ROPE | {"interpolation_factor": 2.0}]),
        ({"rotary_xpos": True}, [ROPE | {"kind": "xpos", "scale_base": 512}]),
        ({"rotary_xpos": True, "rotary_xpos_scale_base": 256}, [ROPE | {"kind": "xpos", "scale_base": 256}]),
        ({"polar_pos_emb": True}, [{"kind": "polar", "uniform_init": False}]),
        ({"polar_pos_emb": True, "polar_bias_uniform_init": True}, [{"kind": "polar", "uniform_init": True}]),
        ({"alibi_pos_bias": True}, [{"kind": "alibi", "variant": "causal"}]),
        ({"alibi_pos_bias": True, "alibi_num_heads": 3}, [{"kind": "alibi", "variant": "causal", "heads": 3}]),
        (
            {"alibi_pos_bias": True, "heads": 2, "rel_pos_kwargs": {"slopes": [0.5, 1]}},
            [{"kind": "alibi", "variant": "causal", "slopes": [0.5, 1.0]}],
        ),
        ({"rel_pos_bias": True}, [T5]),
        (
            {"rel_pos_bias": True, "attn_dim_head": 16, "rel_pos_num_buckets": 8, "rel_pos_max_distance": 20},
            [{"kind": "t5", "num_buckets": 8, "max_distance": 20, "scale": 4.0}],
        ),
        ({"dynamic_pos_bias": True}, [DYNAMIC]),
        (
            {
                "dynamic_pos_bias": True,
                "dynamic_pos_bias_mlp_depth": 3,
                "dynamic_pos_bias_log_distance": True,
                "dynamic_pos_bias_norm": True,
            },
            [{"kind": "dynamic", "depth": 3, "log_distance": True, "norm": True}],
        ),
        ({"attn_use_cope": True}, [{"kind": "cope", "max_pos": 16}]),
        ({"attn_use_cope": True, "attn_cope_max_pos": 5}, [{"kind": "cope", "max_pos": 5}]),
        ({"cope": True, "cope_max_pos": 5}, [{"kind": "cope", "max_pos": 5}]),
        ({"attn_data_dependent_alibi": True}, [{"kind": "forgetting", "bias_init": 5.0}]),
        (
            {
                "attn_data_dependent_alibi": True,
                "attn_data_dependent_alibi_kwargs": {"bias_init": 2.0, "post_log_scale": 1.0},
            },
            [{"kind": "forgetting", "bias_init": 2.0}],
        ),
        ({"rotary_pos_emb": True, "cope": True}, [ROPE, {"kind": "cope", "max_pos": 16}]),
        ({"rotary_pos_emb": True, "rel_pos_bias": True}, [ROPE, T5]),
        ({"disable_abs_pos_emb": True}, [{"kind": "none"}]),
        ({"disable_abs_pos_emb": False, "rotary_pos_emb": True}, [{"kind": "absolute"}, ROPE]),
    ],
)
def test_position_flags(flags, position):
    fields = decoder(**flags)
    assert fields["position"] == position
    assert [part.kind for part in LayersConfig.model_validate(fields).position] == [part["kind"] for part in position]


def test_no_position_flag_leaves_the_position_open():
    assert "position" not in decoder()
    assert "position" not in decoder(disable_abs_pos_emb=False)
    assert encoder(alibi_pos_bias=True)["position"] == [{"kind": "alibi", "variant": "symmetric"}]


@pytest.mark.parametrize("head_dim", [64, 32, 20, 128])
def test_the_rotated_width_is_that_of_x_transformers(head_dim):
    theirs = xt.Decoder(dim=96, depth=1, heads=2, attn_dim_head=head_dim, rotary_pos_emb=True, verbose=False)
    ours = decoder(attn_dim_head=head_dim, rotary_pos_emb=True)["position"][0]
    assert ours["dim"] == 2 * len(theirs.rotary_pos_emb.inv_freq)


@pytest.mark.parametrize("head_dim", [64, 48])
def test_the_scale_of_t5_is_that_of_x_transformers(head_dim):
    theirs = xt.Decoder(dim=96, depth=1, heads=2, attn_dim_head=head_dim, rel_pos_bias=True)
    assert decoder(attn_dim_head=head_dim, rel_pos_bias=True)["position"][0]["scale"] == theirs.rel_pos.scale


RMS = {"kind": "rms", "eps": 1e-12}


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ({"heads": 6, "cross_attend": True}, {"heads": 6, "cross_attend": True}),
        ({"attn_dim_head": 16, "attn_kv_heads": 2, "attn_flash": True}, {"head_dim": 16, "kv_heads": 2, "flash": True}),
        ({"attn_one_kv_head": True}, {"kv_heads": 1}),
        (
            {"kv_heads": 2, "attn_kv_heads": 2, "window": 5, "backend": "eager", "flash": False},
            {"kv_heads": 2, "window": 5, "backend": "eager", "flash": False},
        ),
        ({"attn_max_attend_past": 3}, {"window": 4}),
        ({"attn_max_attend_past": 0}, {"window": 1}),
        ({"attn_dropout": 0.1, "attn_head_learned_sink": True}, {"attn": {"dropout": 0.1, "sinks": True}}),
        ({"attn_qk_norm": True}, {"attn": {"qk_norm": "l2", "qk_norm_scale": 10}}),
        ({"attn_qk_norm": True, "attn_qk_norm_scale": 4.0}, {"attn": {"qk_norm": "l2", "qk_norm_scale": 4.0}}),
        ({"attn_qk_rmsnorm": True}, {"attn": {"qk_norm": "rms_per_head"}}),
        ({"attn_softclamp_logits": True}, {"attn": {"softcap": 50.0}}),
        ({"attn_softclamp_logits": True, "attn_logit_softclamp_value": 8.0}, {"attn": {"softcap": 8.0}}),
        (
            {"ff_mult": 2, "ff_glu": True, "ff_swish": True, "ff_dropout": 0.2},
            {"ff": {"mult": 2, "glu": True, "activation": "silu", "dropout": 0.2}},
        ),
        ({"ff_relu_squared": True, "ff_no_bias": True}, {"ff": {"activation": "relu2", "bias": False}}),
        ({"ff_glu": True, "ff_no_bias": True}, {"ff": {"glu": True, "bias": False, "gate_bias": True}}),
        ({"use_rmsnorm": True}, {"norm": RMS}),
        ({"use_scalenorm": True}, {"norm": {"kind": "scale", "eps": 1e-12}}),
        ({"use_simple_rmsnorm": True}, {"norm": {"kind": "simple_rms", "eps": 1e-12}}),
        ({"use_rmsnorm": True, "norm_add_unit_offset": False}, {"norm": RMS | {"unit_offset": False}}),
        ({"pre_norm": False}, {"norm_place": "post", "final_norm": False}),
        ({"pre_norm": False, "final_norm": True}, {"norm_place": "post", "final_norm": True}),
        ({"sandwich_norm": True, "pre_norm_has_final_norm": False}, {"norm_place": "sandwich", "final_norm": False}),
        ({"norm": "rms", "norm_place": "parallel"}, {"norm": {"kind": "rms"}, "norm_place": "parallel"}),
        ({"norm": {"eps": 1e-5}, "use_rmsnorm": True}, {"norm": RMS | {"eps": 1e-5}}),
        ({"attn": {"bias": True}, "attn_dropout": 0.1}, {"attn": {"bias": True, "dropout": 0.1}}),
        ({"ff": {"dim": 100}, "ff_glu": True}, {"ff": {"dim": 100, "glu": True}}),
        ({"cross_attend": True, "cross_attn_dim_context": 7}, {"cross_attend": True, "context_dim": 7}),
        ({"verbose": False}, {}),
    ],
)
def test_other_flags(flags, fields):
    assert decoder(**flags) == {"kind": "decoder", **SIZE, **fields}
    LayersConfig.model_validate(decoder(**flags))


def test_a_group_given_by_the_caller_is_not_changed():
    group = {"bias": True}
    decoder(attn=group, attn_dropout=0.1)
    assert group == {"bias": True}


@pytest.mark.parametrize(
    "position", ["rope", Rope(theta=5e5), NoPosition(), ["absolute", "alibi"], {"kind": "rope"}, {0: "none"}]
)
def test_position_is_passed_through_untouched(position):
    assert decoder(position=position)["position"] is position
    assert model(position=position)["layers"]["position"] is position


@pytest.mark.parametrize(
    "config",
    [
        LayersConfig(**SIZE),
        LayersConfig(**SIZE, kind="encoder", position=["absolute", "alibi"], window=4, norm={"kind": "rms"}),
        LayersConfig(
            **SIZE, kv_heads=2, attn={"sinks": True}, ff={"glu": True, "gate_bias": True}, position=Rope(dim=8)
        ),
        LayersConfig(**SIZE, kind="cross_attender", context_dim=7, norm_place="sandwich", final_norm=False),
    ],
)
def test_a_config_survives_the_way_through_flags(config):
    assert LayersConfig.model_validate(layers_from_flags(config.kind, config.to_flags())) == config
