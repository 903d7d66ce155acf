"""Keywords of x-transformers' Attention: `attn_` for every attention layer, `cross_attn_` for cross-attention alone."""

from dataclasses import replace

from x_positional.config.flags.entry import Flag, copied, details, refused, table, turned
from x_positional.config.flags.keywords_positions import ATTENTION as POSITIONS

_TWICE = "x-transformers passes it twice and crashes. Use "
_MAPS = "Changes the score matrix of all heads at once, which fused attention never holds. Use plain attention."
_SOFTMAX = "Attention weights are a softmax. Use plain attention; `attn_softclamp_logits` bounds the scores."
_GATE = "The attention output is not gated. Use the plain output; a gated feedforward is `ff_glu=True`."
_LATENT = (
    'Theirs has no norms of the latents and turns no shared channels. Use `attn={"mla": ...}`, DeepSeek\'s latents.'
)
_ONE_NORM = "Queries and keys are normalised together. Use `attn_qk_rmsnorm=True`."

HEADS = [
    refused("dim", None, _TWICE + "`dim`."),
    copied("dim_head", 64, "head_dim", "Width of one head; never derived from `dim // heads`."),
    refused("dim_context", None, "x-transformers gives it to self-attention too. Use `cross_attn_dim_context`."),
    refused("heads", 8, _TWICE + "`heads`."),
    refused("causal", False, _TWICE + "`Decoder` or `Encoder`."),
    copied(
        "flash",
        False,
        "flash",
        "Ask for a fused path; refused with the reason where there is none. Without it the backend is chosen.",
    ),
    turned("one_kv_head", False, "kv_heads", "Multi-query attention: `kv_heads=1`."),
    copied(
        "kv_heads",
        None,
        "kv_heads",
        "Grouped queries. Query head h reads key head `h // (heads // kv_heads)`; x-transformers pairs `h % kv_heads`.",
    ),
    refused(
        "value_dim_head",
        None,
        'Values have the width of keys. Use `attn_dim_head`, or `attn={"mla": '
        '{"value_dim": ...}}`, whose values have their own.',
    ),
    refused(
        "dim_out",
        None,
        "A layer's output has the model's width. Use `dim`, and `logits_dim` or `dim_out` of the wrapper.",
    ),
    copied("dropout", 0.0, "attn.dropout", "Dropout of the attention weights."),
    refused("sublayer_dropout", 0.0, "There is no dropout after the output projection. Use `attn_dropout`."),
    turned(
        "max_attend_past",
        None,
        "window",
        "`window = max_attend_past + 1`: theirs does not count the token itself. "
        "In an encoder theirs bounds the past alone, so it is refused there: use `window=`.",
    ),
    refused("project_out", None, "The output projection is always there. Leave it out."),
    refused("zero_init_output", False, "Initialisation has no switch. Zero the output projections after building."),
    refused("output_proj_depth", None, _TWICE + "the default initialisation."),
]

SCORES = [
    turned("qk_norm", False, "attn.qk_norm", 'Cosine similarity: `qk_norm="l2"`, scores times `attn.qk_norm_scale`.'),
    turned("qk_norm_scale", 10, "attn.qk_norm_scale", "What the cosine similarity is multiplied by."),
    refused("qk_norm_groups", 1, "A head is normalised as a whole. Use a smaller `attn_dim_head`."),
    refused(
        "qk_norm_dim_scale",
        False,
        "The scale of `attn_qk_norm` is one number. Use `attn_qk_rmsnorm=True`, which learns one per channel.",
    ),
    turned(
        "qk_rmsnorm", False, "attn.qk_norm", 'RMSNorm of queries and keys, a gain per head: `qk_norm="rms_per_head"`.'
    ),
    refused("k_rmsnorm", False, _ONE_NORM),
    refused("value_rmsnorm", False, "Values are not normalised. `sandwich_norm=True` norms what attention gives."),
    turned("softclamp_logits", False, "attn.softcap", "Scores become c * tanh(scores / c)."),
    turned("logit_softclamp_value", 50.0, "attn.softcap", "The c of `attn_softclamp_logits`."),
    copied("head_learned_sink", False, "attn.sinks", "A learned sink score per head."),
    refused("add_zero_kv", False, "There is no zero key. Use `attn_head_learned_sink=True`, which learns its score."),
    refused("num_mem_kv", 0, "There are no keys without a position. Use `attn_head_learned_sink=True`."),
    refused("l2_distance", False, "Scores are dot products. Use `attn_qk_norm=True`, the same order for unit vectors."),
    refused("sigmoid", False, _SOFTMAX),
    refused("hard", False, _SOFTMAX),
    refused("gumbel_softmax", False, _SOFTMAX),
    *details("attn_gumbel_softmax", gumbel_softmax_temp=1.0, gumbel_softmax_hard=True),
    refused("cog_signed", False, _SOFTMAX),
    refused(
        "custom_attn_fn",
        None,
        "x-transformers drops it silently with flash. Write a position scheme that overrides `transform_scores`.",
    ),
    refused("inverted_attention", False, _SOFTMAX),
    refused("sparse_topk", None, "Needs whole rows of scores in every layer. Use `window=` for fewer keys."),
    *details("attn_sparse_topk", sparse_topk_straight_through=False),
    refused(
        "selective",
        False,
        "Later queries change what a key is worth, so no KV cache is right. Use "
        "`attn_data_dependent_alibi=True`, whose forget gates are cached.",
    ),
    refused("pre_talking_heads", False, _MAPS),
    refused("post_talking_heads", False, _MAPS),
    refused("pre_scale_post_talking_heads", False, _MAPS),
]

OUTPUT = [
    refused("head_scale", False, _GATE),
    refused("on_attn", False, _GATE),
    refused("gate_value_heads", False, _GATE),
    refused("gate_values", False, _GATE),
    *details(
        "attn_gate_values",
        swiglu_values=False,
        gate_values_rank=None,
        gate_values_headwise=False,
        low_rank_silu_gates=True,
    ),
    refused("output_gate", False, _GATE),
    *details("attn_output_gate", output_gate_rank=None, output_gate_headwise=False),
    refused(
        "orthog_projected_values",
        False,
        "Projects over the whole sequence, so a causal model sees the future. Use plain attention.",
    ),
    refused(
        "orthog_projected_values_per_head",
        False,
        "Projects over the whole sequence, so a causal model sees the future. Use plain attention.",
    ),
    refused("laser", False, "Values enter as they are. Use plain attention."),
    *details("attn_laser", laser_softclamp_value=15.0),
    refused(
        "learned_value_residual_mix", False, "A detail of `add_value_residual`, which is refused; leave it out too."
    ),
    refused(
        "qkv_receive_diff_residuals",
        False,
        "Queries, keys and values read the same hidden state. Use one residual stream.",
    ),
    refused("use_latent_q", False, _LATENT),
    *details("attn_use_latent_q", dim_latent_q=None),
    refused("use_latent_kv", False, _LATENT),
    *details("attn_use_latent_kv", dim_latent_kv=None),
    refused("hybrid_module", None, "Attention has no module beside it. Write a block of your own around `Decoder`."),
    *details("attn_hybrid_module", hybrid_mask_kwarg=None, hybrid_fold_axial_dim=None, hybrid_learned_mix=False),
    refused("onnxable", False, "Masks are built from positions, without triu. Use `torch.export`."),
    refused(
        "attend_sdp_kwargs",
        {"enable_flash": True, "enable_math": True, "enable_mem_efficient": True},
        "Kernels are PyTorch's choice. Use `torch.nn.attention.sdpa_kernel` around the call, or `backend=`.",
    ),
    refused("flash_pack_seq", False, "Packing needs no flag. Use `document_ids=` in the call."),
]

_ALL = [*HEADS, *SCORES, *OUTPUT]


def _cross(flag: Flag) -> Flag:
    """Cross-attention has one setting of its own; its other flags may only repeat those of all attention layers."""
    if flag.name == "dim_context":
        return copied("dim_context", None, "context_dim", "Width of the context where it is not `dim`.")
    same = f"Cross-attention takes what `attn_{flag.name}` says; give that one."
    note = same if flag.verdict == "supported" else flag.note
    return replace(flag, verdict="refused", note=note, field=None, copied=False)


ENTRIES: tuple[Flag, ...] = table("AttentionLayers", _ALL, prefix="attn_") + table(
    "AttentionLayers", [_cross(flag) for flag in [*_ALL, *POSITIONS]], prefix="cross_attn_"
)
