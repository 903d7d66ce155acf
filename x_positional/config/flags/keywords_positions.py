"""Keywords of x-transformers' AttentionLayers and Attention that choose how a model knows position."""

from x_positional.config.flags.entry import Flag, copied, details, own, refused, table, turned

LAYERS = [
    turned(
        "alibi_pos_bias",
        False,
        "position",
        "ALiBi: `alibi`, causal in a decoder, symmetric in an encoder. Here it switches the absolute table off.",
    ),
    turned("alibi_num_heads", None, "position[alibi].heads", "ALiBi on the first k heads alone."),
    turned("rel_pos_bias", False, "position", "T5's bucketed bias: `t5` with `scale=head_dim ** 0.5`."),
    turned("rel_pos_num_buckets", 32, "position[t5].num_buckets", "T5's number of buckets."),
    turned("rel_pos_max_distance", 128, "position[t5].max_distance", "T5's distance of the last bucket."),
    turned("dynamic_pos_bias", False, "position", "A small network over the distance: `dynamic`, of width `dim // 4`."),
    turned("dynamic_pos_bias_log_distance", False, "position[dynamic].log_distance", "It reads log distances."),
    turned("dynamic_pos_bias_mlp_depth", 2, "position[dynamic].depth", "Its hidden layers."),
    turned("dynamic_pos_bias_norm", False, "position[dynamic].norm", "Norms inside it."),
    turned(
        "rotary_pos_emb",
        False,
        "position",
        "RoPE: `rope` on half of each head (`dim=head_dim // 2`), `interleaved=True`.",
    ),
    turned("rotary_emb_dim", None, "position[rope].dim", "Rotated channels of each head; half of them if not given."),
    turned("rotary_xpos", False, "position", "xPos: `xpos`, everything else as `rotary_pos_emb`, which it implies."),
    turned("rotary_interpolation_factor", 1.0, "position[rope].interpolation_factor", "Divides the angles."),
    turned("rotary_xpos_scale_base", 512, "position[xpos].scale_base", "xPos' decay length."),
    turned("rotary_base_rescale_factor", 1.0, "position[rope].base_rescale_factor", "NTK rescale of the base."),
    turned("rotate_num_heads", None, "position[rope].heads", "Rotates the last k heads alone."),
    turned("polar_pos_emb", False, "position", "PoPE: `polar`."),
    turned(
        "polar_bias_uniform_init",
        False,
        "position[polar].uniform_init",
        "Uniform start of PoPE's phase; x-transformers crashes here.",
    ),
    turned(
        "rel_pos_kwargs",
        {},
        "position[alibi].slopes",
        "Only `slopes`, with `alibi_pos_bias=True`. Other keys are "
        "refused: the other biases have flags for all of their settings.",
    ),
    turned("disable_abs_pos_emb", None, "position", "True: no absolute table. False: keep it beside another scheme."),
    own("cope", "position", "Short for `attn_use_cope`.", default=False, copied=False),
    own("cope_max_pos", "position[cope].max_pos", "Short for `attn_cope_max_pos`.", default=16, copied=False),
]

ATTENTION = [
    turned("rotate_num_heads", None, "position[rope].heads", "The same as `rotate_num_heads`."),
    turned("data_dependent_alibi", False, "position", "Forget gates: `forgetting`. Right under the KV cache here."),
    turned(
        "data_dependent_alibi_kwargs",
        {},
        "position[forgetting].bias_init",
        "Only `bias_init`; `post_log_scale` is refused unless it is 1.",
    ),
    refused(
        "data_dependent_alibi_per_row",
        False,
        "Gates per query and key are not offered. Use `attn_data_dependent_alibi=True`, one gate per key.",
    ),
    *details("attn_data_dependent_alibi_per_row", data_dependent_alibi_per_row_dim_head=8),
    refused(
        "use_rel_proj_pos_bias",
        False,
        "A learned basis of distances per query is not offered. Use `dynamic_pos_bias=True` or `rel_pos_bias=True`.",
    ),
    *details("attn_use_rel_proj_pos_bias", rel_proj_num_distance_basis=16, rel_proj_max_dist=1024),
    turned("use_cope", False, "position", "CopeScores: `cope`."),
    turned("cope_max_pos", 16, "position[cope].max_pos", "CopeScores's number of positions."),
    refused(
        "cope_soft_onehot_pos",
        False,
        "It crashes in x-transformers. Use CoPE's interpolation, which is the paper's and the default.",
    ),
    refused(
        "cope_talking_heads",
        False,
        "The gates of a head come from that head's scores. Use `attn_use_cope=True` without it.",
    ),
    refused(
        "latent_rope_subheads",
        None,
        "Rotated sub-heads belong to latent attention, which is not offered. Use `rotate_num_heads`.",
    ),
]

WRAPPER = [
    turned(
        "use_abs_pos_emb",
        True,
        "layers.position",
        "A learned table. Not given: on where no other scheme is "
        "chosen. True asks for it beside others, False switches it off.",
    ),
    turned("scaled_sinu_pos_emb", False, "layers.position", "`scaled_sinusoidal` in place of the learned table."),
]

MAX_SEQ_LEN = copied("max_seq_len", None, "max_seq_len", "Trained length, and the size of a learned table.")

ENTRIES: tuple[Flag, ...] = table("AttentionLayers", LAYERS) + table("AttentionLayers", ATTENTION, prefix="attn_")
