"""What is known of the modules of x-transformers 2.31: which flag each attribute says. Data only; an attribute that is
not here is one that nothing is known of, and then a model is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, kw_only=True)
class Known:
    """The attributes of one class. says: those whose value is the value of a flag. there: those that are something where
    a flag is on. parts: modules and values that are read one by one. rest: what follows from others and what changes
    nothing; a module in it holds parameters, which must find a place, or is one of `PLAIN`. some: those of the rest that are
    there only sometimes."""

    says: Mapping[str, str]
    there: Mapping[str, str]
    parts: frozenset[str]
    rest: frozenset[str]
    some: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """Every attribute."""
        return self.parts | self.rest | self.some | self.says.keys() | self.there.keys()


def _known(
    says: Mapping[str, str] | None = None,
    there: Mapping[str, str] | None = None,
    parts: str = "",
    rest: str = "",
    some: str = "",
) -> Known:
    return Known(says=says or {}, there=there or {}, parts=_names(parts), rest=_names(rest), some=_names(some))


def _same(text: str) -> dict[str, str]:
    return {name: name for name in text.split()}


PLAIN = _names("einops.Rearrange torch.Dropout torch.Identity torch_einops_utils.Identity")
"""Modules without a setting that could matter."""

_STACK = _known(
    says=_same(
        "dim num_residual_streams pre_norm sandwich_norm pre_and_post_norm residual_attn cross_residual_attn "
        "cross_attn_tokens_dropout softclamp_output unet_skips reinject_input add_value_residual"
    )
    | {
        "attn_heads": "heads",
        "attn_dim_head": "attn_dim_head",
        "residual_scale": "depth_scale_residual",
        "norm_need_condition": "use_adaptive_layernorm",
        "post_branch_fn_needs_condition": "use_adaptive_layerscale",
    },
    there={"learned_reinject_input_gate": "learned_reinject_input_gate"},
    parts="layers layer_integrators skip_combines rotary_pos_emb polar_pos_emb rel_pos final_norm layer_types "
    "layers_execute_order layer_dropouts causal depth cross_attend disable_abs_pos_emb",
    rest="stream_emb adaptive_mlp dim_condition need_condition has_custom_layer_types len_default_block num_attn_layers "
    "num_cross_attn_layers num_ff_layers depth_scale_residual softclamp_output_value reinject_input_proj can_cache_kv",
)

_ATTENTION = _known(
    says=_same(
        "max_attend_past use_latent_q use_latent_kv qkv_receive_diff_residuals laser qk_norm qk_norm_dim_scale head_scale "
        "sparse_topk num_mem_kv orthog_projected_values orthog_projected_values_per_head"
    )
    | {"attn_on_attn": "on_attn"},
    there={
        "to_rotateable_k": "latent_rope_subheads",
        "to_v_gate": "gate_values",
        "to_output_gate": "output_gate",
        "to_v_head_gate": "gate_value_heads",
        "value_rmsnorm": "value_rmsnorm",
        "rel_proj_pos_bias": "use_rel_proj_pos_bias",
        "hybrid_module": "hybrid_module",
        "sublayer_dropout": "sublayer_dropout",
    },
    parts="heads kv_heads scale qk_norm_scale qk_norm_groups to_q to_k to_v to_out q_rmsnorm k_rmsnorm attend "
    "data_dependent_alibi to_value_residual_mix rotate_num_heads",
    rest="causal groups to_latent_q to_latent_kv laser_softclamp_value gate_values_headwise output_gate_headwise "
    "to_v_gate_activation qk_norm_q_scale qk_norm_k_scale hybrid_norms hybrid_mix hybrid_mask_kwarg can_cache_kv "
    "split_q_heads split_k_heads split_v_heads merge_heads to_head_space_headwise to_head_space_dimwise "
    "to_v_gate_head_space to_output_gate_head_space",
    some="split_rotateable_k_heads head_scale_params mem_k mem_v",
)

_ATTEND = _known(
    says=_same(
        "inverted_attention dropout selective cog_signed l2_distance add_zero_kv head_learned_sink softclamp_logits flash "
        "flash_pack_seq"
    ),
    there={
        "pre_softmax_talking_heads": "pre_talking_heads",
        "post_softmax_talking_heads": "post_talking_heads",
        "pre_scale_post_talking_heads": "pre_scale_post_talking_heads",
    },
    parts="scale attn_fn cope logit_softclamp_value",
    rest="causal create_causal_mask attn_dropout head_attn_sink",
    some="sdp_context_manager flash_attn_varlen_func",
)

_WRAPPER = _known(
    says=_same(
        "num_tokens max_seq_len max_mem_len shift_mem_down l2norm_embed emb_frac_gradient recycling looped "
        "average_pool_embed sigsoftmax_logits add_continuous_pred_head num_memory_tokens squeeze_out_last_dim "
        "input_not_include_cache"
    )
    | {"output_is_log_prob": "mixture_of_softmax"},
    there={
        "embeds": "embed_num_tokens",
        "ff_deep_embed": "ff_deep_embed",
        "cls_token": "use_cls_token",
        "attn_pool": "attn_pool",
    },
    parts="emb_dim token_emb pos_emb post_emb_norm emb_dropout project_emb attn_layers to_logits",
    rest="num_cls_tokens recycled_proj train_max_recycle_steps exit_gate train_max_looped_steps to_mixture combine_mixture "
    "has_multiple_heads memory_tokens_interspersed_every can_cache_kv can_cache_kv_outside_max_seq_len",
    some="tie_embedding_scale memory_tokens to_next_embed_pred",
)

_CONTINUOUS = _known(
    says=_same("max_seq_len max_mem_len average_pool_embed probabilistic"),
    parts="pos_emb post_emb_norm emb_dropout attn_layers project_in project_out has_memory_tokens",
    rest="can_cache_kv",
    some="memory_tokens",
)

_VISION = _known(
    says=_same("patch_size"),
    parts="patch_to_embedding pos_embedding post_emb_norm dropout attn_layers mlp_head has_register_tokens",
    some="register_tokens",
)

_AUTOREGRESSIVE = _known(
    says=_same(
        "pad_value ignore_index mask_prob add_attn_z_loss next_embed_loss_weight looped_loss_threshold_exit "
        "looped_loss_slope looped_exit_loss_weight"
    ),
    parts="net",
    rest="max_seq_len add_continuous_pred_head",
)

XT = "x_transformers."
STACKS = tuple(XT + name for name in ("Encoder", "Decoder", "CrossAttender", "AttentionLayers", "TransformerBlock"))

KNOWN: dict[str, Known] = {
    **dict.fromkeys(STACKS, _STACK),
    XT + "TransformerWrapper": _WRAPPER,
    XT + "ContinuousTransformerWrapper": _CONTINUOUS,
    XT + "ViTransformerWrapper": _VISION,
    XT + "XTransformer": _known(_same("cross_attn_tokens_dropout"), parts="encoder decoder"),
    XT + "AutoregressiveWrapper": _AUTOREGRESSIVE,
    XT + "Attention": _ATTENTION,
    XT + "Attend": _ATTEND,
    XT + "FeedForward": _known(parts="ff"),
    XT + "GLU": _known(parts="act mult_bias up_softclamp_value proj"),
    XT + "TokenEmbedding": _known(_same("l2norm_embed"), parts="emb"),
    XT + "AbsolutePositionalEmbedding": _known(parts="emb scale", rest="max_seq_len l2norm_embed"),
    XT + "ScaledSinusoidalEmbedding": _known(parts="inv_freq", rest="scale"),
    XT + "RotaryEmbedding": _known(parts="inv_freq scale interpolation_factor", some="scale_base"),
    XT + "PolarEmbedding": _known(parts="inv_freq", rest="learned_bias"),
    XT + "RelativePositionBias": _known(
        {"num_buckets": "rel_pos_num_buckets", "max_distance": "rel_pos_max_distance"},
        parts="scale relative_attention_bias",
        rest="causal",
    ),
    XT + "DynamicPositionBias": _known({"log_distance": "dynamic_pos_bias_log_distance"}, parts="mlp"),
    XT + "AlibiPositionalBias": _known({"heads": "alibi_num_heads"}, parts="slopes total_heads", rest="bias"),
    XT + "CoPE": _known(
        {"max_pos": "cope_max_pos", "soft_onehot": "cope_soft_onehot_pos"},
        {"talking_heads": "cope_talking_heads"},
        rest="soft_onehot_temp pos_emb",
        some="positions",
    ),
    XT + "DataDependentAlibi": _known(parts="to_forget_gates causal post_log_scale"),
    XT + "LayerNorm": _known(parts="ln unit_offset", rest="gamma"),
    XT + "ScaleNorm": _known(parts="unit_offset scale", rest="g"),
    XT + "RMSNorm": _known(parts="unit_offset scale", rest="g"),
    XT + "SimpleRMSNorm": _known(parts="scale"),
    XT + "MultiheadRMSNorm": _known(parts="rmsnorm", rest="gamma"),
    XT + "Residual": _known(
        {"scale_residual_constant": "scale_residual_constant"}, {"residual_scale": "scale_residual"}
    ),
}
"""By the package and name of the class."""

NORMS = {
    XT + "LayerNorm": None,
    XT + "ScaleNorm": "use_scalenorm",
    XT + "RMSNorm": "use_rmsnorm",
    XT + "SimpleRMSNorm": "use_simple_rmsnorm",
    XT + "DynamicTanh": "use_dynamic_tanh",
    XT + "Derf": "use_derf",
    XT + "AdaptiveLayerNorm": "use_adaptive_layernorm",
    XT + "AdaptiveRMSNorm": "use_adaptive_rmsnorm",
}
"""Norm -> the flag that chooses it."""

RESIDUALS = {
    XT + "GRUGating": "gate_residual",
    XT + "OrthogonalResidualUpdate": "orthog_residual",
    XT + "MVSplitResidualUpdate": "mv_split_residual",
    XT + "HyperConnection": "num_residual_streams",
    XT + "GatedMultiResidual": "gated_multi_residual",
}
"""What adds a branch in another way -> the flag that chooses it."""

AROUND = {
    XT + "Scale": "macaron",
    XT + "ShiftTokens": "shift_tokens",
    XT + "LayerScale": "use_layerscale",
    XT + "AdaptiveLayerScale": "use_adaptive_layerscale",
}
"""What stands around a branch -> the flag that puts it there."""

ACTIVATIONS = {
    "torch.GELU": None,
    "torch.SiLU": "ff_swish",
    XT + "ReluSquared": "ff_relu_squared",
    XT + "SoLU": "ff_solu",
}
"""Activation of the feedforward -> the flag that chooses it."""

SOFTMAXES = {
    "sigmoid": "sigmoid",
    "one_hot_straight_through": "hard",
    "sparse_topk_attn": "sparse_topk",
    "gumbel_softmax": "gumbel_softmax",
}
"""What stands in place of the softmax -> the flag that chooses it, without `attn_`."""
