"""The modules of x-transformers 2.31 as data: their attributes, and the flag that each attribute reveals.

A model with an attribute that is not listed here is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, kw_only=True)
class ModuleSpec:
    """The attributes of one class of x-transformers."""

    values: Mapping[str, str]
    """Attribute -> the flag that has the same value."""
    switches: Mapping[str, str]
    """Attribute -> the flag that is on where the attribute is not None."""
    inspected: frozenset[str]
    """Modules and values that `inspect_*` reads one by one."""
    implied: frozenset[str]
    """Attributes that follow from others or do not affect the outputs. A module among them is in `PLAIN`, or has
    parameters, which the weight mapping must then cover."""
    optional: frozenset[str]
    """Attributes that only some instances have."""

    @property
    def all(self) -> frozenset[str]:
        """Every attribute."""
        return self.inspected | self.implied | self.optional | self.values.keys() | self.switches.keys()


def _spec(
    values: Mapping[str, str] | None = None,
    switches: Mapping[str, str] | None = None,
    inspected: str = "",
    implied: str = "",
    optional: str = "",
) -> ModuleSpec:
    return ModuleSpec(
        values=values or {},
        switches=switches or {},
        inspected=_names(inspected),
        implied=_names(implied),
        optional=_names(optional),
    )


def _same(text: str) -> dict[str, str]:
    """Attributes that have the name of their flag."""
    return {name: name for name in text.split()}


PLAIN = _names("einops.Rearrange torch.Dropout torch.Identity torch_einops_utils.Identity")
"""Modules without a setting that affects the outputs."""

_STACK = _spec(
    values=_same(
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
    switches={"learned_reinject_input_gate": "learned_reinject_input_gate"},
    inspected="layers layer_integrators skip_combines rotary_pos_emb polar_pos_emb rel_pos final_norm layer_types "
    "layers_execute_order layer_dropouts causal depth cross_attend disable_abs_pos_emb",
    implied="stream_emb adaptive_mlp dim_condition need_condition has_custom_layer_types len_default_block num_attn_layers "
    "num_cross_attn_layers num_ff_layers depth_scale_residual softclamp_output_value reinject_input_proj can_cache_kv",
)

_ATTENTION = _spec(
    values=_same(
        "max_attend_past use_latent_q use_latent_kv qkv_receive_diff_residuals laser qk_norm qk_norm_dim_scale head_scale "
        "sparse_topk num_mem_kv orthog_projected_values orthog_projected_values_per_head"
    )
    | {"attn_on_attn": "on_attn"},
    switches={
        "to_rotateable_k": "latent_rope_subheads",
        "to_v_gate": "gate_values",
        "to_output_gate": "output_gate",
        "to_v_head_gate": "gate_value_heads",
        "value_rmsnorm": "value_rmsnorm",
        "rel_proj_pos_bias": "use_rel_proj_pos_bias",
        "hybrid_module": "hybrid_module",
        "sublayer_dropout": "sublayer_dropout",
    },
    inspected="heads kv_heads scale qk_norm_scale qk_norm_groups to_q to_k to_v to_out q_rmsnorm k_rmsnorm attend "
    "data_dependent_alibi to_value_residual_mix rotate_num_heads",
    implied="causal groups to_latent_q to_latent_kv laser_softclamp_value gate_values_headwise output_gate_headwise "
    "to_v_gate_activation qk_norm_q_scale qk_norm_k_scale hybrid_norms hybrid_mix hybrid_mask_kwarg can_cache_kv "
    "split_q_heads split_k_heads split_v_heads merge_heads to_head_space_headwise to_head_space_dimwise "
    "to_v_gate_head_space to_output_gate_head_space",
    optional="split_rotateable_k_heads head_scale_params mem_k mem_v",
)

_ATTEND = _spec(
    values=_same(
        "inverted_attention dropout selective cog_signed l2_distance add_zero_kv head_learned_sink softclamp_logits flash "
        "flash_pack_seq"
    ),
    switches={
        "pre_softmax_talking_heads": "pre_talking_heads",
        "post_softmax_talking_heads": "post_talking_heads",
        "pre_scale_post_talking_heads": "pre_scale_post_talking_heads",
    },
    inspected="scale attn_fn cope logit_softclamp_value",
    implied="causal create_causal_mask attn_dropout head_attn_sink",
    optional="sdp_context_manager flash_attn_varlen_func",
)

_WRAPPER = _spec(
    values=_same(
        "num_tokens max_seq_len max_mem_len shift_mem_down l2norm_embed emb_frac_gradient recycling looped "
        "average_pool_embed sigsoftmax_logits add_continuous_pred_head num_memory_tokens squeeze_out_last_dim "
        "input_not_include_cache"
    )
    | {"output_is_log_prob": "mixture_of_softmax"},
    switches={
        "embeds": "embed_num_tokens",
        "ff_deep_embed": "ff_deep_embed",
        "cls_token": "use_cls_token",
        "attn_pool": "attn_pool",
    },
    inspected="emb_dim token_emb pos_emb post_emb_norm emb_dropout project_emb attn_layers to_logits",
    implied="num_cls_tokens recycled_proj train_max_recycle_steps exit_gate train_max_looped_steps to_mixture combine_mixture "
    "has_multiple_heads memory_tokens_interspersed_every can_cache_kv can_cache_kv_outside_max_seq_len",
    optional="tie_embedding_scale memory_tokens to_next_embed_pred",
)

_CONTINUOUS = _spec(
    values=_same("max_seq_len max_mem_len average_pool_embed probabilistic"),
    inspected="pos_emb post_emb_norm emb_dropout attn_layers project_in project_out has_memory_tokens",
    implied="can_cache_kv",
    optional="memory_tokens",
)

_VISION = _spec(
    values=_same("patch_size"),
    inspected="patch_to_embedding pos_embedding post_emb_norm dropout attn_layers mlp_head has_register_tokens",
    optional="register_tokens",
)

_AUTOREGRESSIVE = _spec(
    values=_same(
        "pad_value ignore_index mask_prob add_attn_z_loss next_embed_loss_weight looped_loss_threshold_exit "
        "looped_loss_slope looped_exit_loss_weight"
    ),
    inspected="net",
    implied="max_seq_len add_continuous_pred_head",
)

XT = "x_transformers."
STACKS = tuple(XT + name for name in ("Encoder", "Decoder", "CrossAttender", "AttentionLayers", "TransformerBlock"))

MODULE_SPECS: dict[str, ModuleSpec] = {
    **dict.fromkeys(STACKS, _STACK),
    XT + "TransformerWrapper": _WRAPPER,
    XT + "ContinuousTransformerWrapper": _CONTINUOUS,
    XT + "ViTransformerWrapper": _VISION,
    XT + "XTransformer": _spec(_same("cross_attn_tokens_dropout"), inspected="encoder decoder"),
    XT + "AutoregressiveWrapper": _AUTOREGRESSIVE,
    XT + "Attention": _ATTENTION,
    XT + "Attend": _ATTEND,
    XT + "FeedForward": _spec(inspected="ff"),
    XT + "GLU": _spec(inspected="act mult_bias up_softclamp_value proj"),
    XT + "TokenEmbedding": _spec(_same("l2norm_embed"), inspected="emb"),
    XT + "AbsolutePositionalEmbedding": _spec(inspected="emb scale", implied="max_seq_len l2norm_embed"),
    XT + "ScaledSinusoidalEmbedding": _spec(inspected="inv_freq", implied="scale"),
    XT + "RotaryEmbedding": _spec(inspected="inv_freq scale interpolation_factor", optional="scale_base"),
    XT + "PolarEmbedding": _spec(inspected="inv_freq", implied="learned_bias"),
    XT + "RelativePositionBias": _spec(
        {"num_buckets": "rel_pos_num_buckets", "max_distance": "rel_pos_max_distance"},
        inspected="scale relative_attention_bias",
        implied="causal",
    ),
    XT + "DynamicPositionBias": _spec({"log_distance": "dynamic_pos_bias_log_distance"}, inspected="mlp"),
    XT + "AlibiPositionalBias": _spec({"heads": "alibi_num_heads"}, inspected="slopes total_heads", implied="bias"),
    XT + "CoPE": _spec(
        {"max_pos": "cope_max_pos", "soft_onehot": "cope_soft_onehot_pos"},
        {"talking_heads": "cope_talking_heads"},
        implied="soft_onehot_temp pos_emb",
        optional="positions",
    ),
    XT + "DataDependentAlibi": _spec(inspected="to_forget_gates causal post_log_scale"),
    XT + "LayerNorm": _spec(inspected="ln unit_offset", implied="gamma"),
    XT + "ScaleNorm": _spec(inspected="unit_offset scale", implied="g"),
    XT + "RMSNorm": _spec(inspected="unit_offset scale", implied="g"),
    XT + "SimpleRMSNorm": _spec(inspected="scale"),
    XT + "MultiheadRMSNorm": _spec(inspected="rmsnorm", implied="gamma"),
    XT + "Residual": _spec(
        {"scale_residual_constant": "scale_residual_constant"}, {"residual_scale": "scale_residual"}
    ),
}
"""Package and class name -> its attributes."""

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
"""Norm -> the flag that selects it; None for the default."""

RESIDUALS = {
    XT + "GRUGating": "gate_residual",
    XT + "OrthogonalResidualUpdate": "orthog_residual",
    XT + "MVSplitResidualUpdate": "mv_split_residual",
    XT + "HyperConnection": "num_residual_streams",
    XT + "GatedMultiResidual": "gated_multi_residual",
}
"""Replacement for the plain residual addition -> the flag that selects it."""

BRANCH_WRAPPERS = {
    XT + "Scale": "macaron",
    XT + "ShiftTokens": "shift_tokens",
    XT + "LayerScale": "use_layerscale",
    XT + "AdaptiveLayerScale": "use_adaptive_layerscale",
}
"""Wrapper around a branch -> the flag that adds it."""

ACTIVATIONS = {
    "torch.GELU": None,
    "torch.SiLU": "ff_swish",
    XT + "ReluSquared": "ff_relu_squared",
    XT + "SoLU": "ff_solu",
}
"""Activation of the feedforward -> the flag that selects it; None for the default."""

SOFTMAXES = {
    "sigmoid": "sigmoid",
    "one_hot_straight_through": "hard",
    "sparse_topk_attn": "sparse_topk",
    "gumbel_softmax": "gumbel_softmax",
}
"""Replacement for the softmax -> the flag that selects it, without `attn_`."""
