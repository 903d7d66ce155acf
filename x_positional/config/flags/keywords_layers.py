"""Keywords of x-transformers' AttentionLayers (Encoder, Decoder, CrossAttender): layout, norms, residuals, init."""

from x_positional.config.flags.entry import REQUIRED, Flag, copied, details, own, refused, table, turned

LAYERS = "AttentionLayers"

_BLOCK = (
    "Every block is self-attention, cross-attention where asked for, and feedforward, in that order, each run once. "
)
_RESIDUAL = "A branch's output is added to its input and nothing else. "
_CONDITION = (
    "Norms take no condition. Add the condition to the embeddings, or pass it as `context=` with `cross_attend=True`."
)

SHAPE = [
    copied("dim", REQUIRED, "dim", "Model width."),
    copied("depth", None, "depth", "Number of blocks."),
    copied("heads", 8, "heads", "Query heads."),
    refused("causal", False, "The class says it. Use `Decoder` for causal attention and `Encoder` without."),
    turned("cross_attend", False, "cross_attend", "Cross-attention in every block; the call then takes `context=`."),
    refused("only_cross", False, "The class says it. Use `CrossAttender` for blocks without self-attention."),
    refused("only_attn", False, _BLOCK + "Make the feedforward small with `ff_mult`."),
    refused("weight_tie_layers", False, _BLOCK + "Each block has weights of its own; lower `depth` for fewer."),
    refused("custom_layers", None, _BLOCK + 'Choose with `depth`, `cross_attend` and `norm_place="parallel"`.'),
    refused("layers_execute_order", None, _BLOCK + "Choose with `depth`."),
    refused("sandwich_coef", None, _BLOCK + "Use the order as it is; for norms on both sides `sandwich_norm=True`."),
    refused("par_ratio", None, _BLOCK + "Choose with `depth` and `ff_mult`."),
    refused("macaron", False, _BLOCK + "Use a wider feedforward (`ff_mult`)."),
    refused("layer_dropout", 0.0, "Blocks are never skipped. Use `attn_dropout` and `ff_dropout`."),
    refused("cross_attn_tokens_dropout", 0.0, "No context token is dropped for you. Hide some with `context_mask=`."),
    refused(
        "shift_tokens",
        0,
        "Tokens are not mixed with their neighbours. Use a position scheme for locality, e.g. "
        '`position="alibi"`, or `window=`.',
    ),
    refused(
        "zero_init_branch_output",
        False,
        "Initialisation has no switch. Zero the output projections of attention "
        "and feedforward after building the model.",
    ),
    turned("verbose", True, None, "No effect: building a model prints nothing."),
]

NORMS = [
    turned("use_scalenorm", False, "norm.kind", 'ScaleNorm: `norm.kind="scale"`, `norm.eps=1e-12`.'),
    turned("use_rmsnorm", False, "norm.kind", 'RMSNorm: `norm.kind="rms"`, `norm.eps=1e-12`.'),
    turned(
        "use_simple_rmsnorm", False, "norm.kind", 'RMSNorm without gain: `norm.kind="simple_rms"`, `norm.eps=1e-12`.'
    ),
    refused("use_dynamic_tanh", False, "Only true norms are offered. Use `use_rmsnorm=True`."),
    *details("use_dynamic_tanh", dynamic_tanh_init_alpha=1.0),
    refused("use_derf", False, "Only true norms are offered. Use `use_rmsnorm=True`."),
    refused("use_adaptive_layernorm", False, _CONDITION),
    refused("use_adaptive_rmsnorm", False, _CONDITION),
    refused("use_adaptive_layerscale", False, _CONDITION),
    *details(
        "use_adaptive_layernorm", dim_condition=None, adaptive_condition_mlp=False, adaptive_condition_mlp_expansion=4
    ),
    copied("norm_add_unit_offset", True, "norm.unit_offset", "Gains are stored as gain - 1."),
    turned(
        "pre_norm",
        True,
        "norm_place",
        'Norm before each branch; False: after the residual (`norm_place="post"`), without a final norm.',
    ),
    turned("pre_norm_has_final_norm", True, "final_norm", "A norm after the last block."),
    turned("sandwich_norm", False, "norm_place", 'Norm before and after each branch: `norm_place="sandwich"`.'),
    refused(
        "pre_and_post_norm",
        False,
        "A norm after the residual beside the one before the branch is not offered. "
        "Use `sandwich_norm=True`, which norms the branch on both sides.",
    ),
]

RESIDUALS = [
    refused(
        "residual_attn",
        False,
        "Needs the score matrix of the layer before, which fused attention never holds. Use plain attention.",
    ),
    refused(
        "cross_residual_attn",
        False,
        "Needs the score matrix of the layer before, which fused attention never holds. Use plain attention.",
    ),
    refused("attn_aggregated_residuals", False, _RESIDUAL + "Use more `depth`."),
    *details("attn_aggregated_residuals", attn_aggregated_residual_kwargs={}),
    refused("gate_residual", False, _RESIDUAL + "For stability use `sandwich_norm=True`."),
    refused(
        "orthog_residual",
        False,
        "Projects over the whole sequence, so a causal model sees the future. Use the plain residual.",
    ),
    refused(
        "mv_split_residual",
        False,
        "Takes a mean over the whole sequence, so a causal model sees the future. Use the plain residual.",
    ),
    refused("gated_multi_residual", False, _RESIDUAL + "Use the plain residual."),
    refused("scale_residual", False, _RESIDUAL + "For stability use `sandwich_norm=True`."),
    refused("scale_residual_constant", 1.0, _RESIDUAL + "For stability use `sandwich_norm=True`."),
    refused(
        "depth_scale_residual",
        False,
        "Initialisation has no switch and branches are not scaled. Scale the output "
        "projections after building the model.",
    ),
    refused(
        "softclamp_output",
        False,
        "The hidden state is not clamped. Clamp the logits where you use them; for "
        "scores there is `attn_softclamp_logits`.",
    ),
    *details("softclamp_output", softclamp_output_value=30.0),
    refused(
        "use_layerscale",
        False,
        _RESIDUAL + "For stability use `sandwich_norm=True`, whose second norm has a gain per channel.",
    ),
    *details("use_layerscale", layerscale_init_value=0.0),
    refused("unet_skips", False, _RESIDUAL + "There are no skips across blocks; use more `depth`."),
    refused("integrate_layers", False, _RESIDUAL + "A block reads the block before it; use more `depth`."),
    *details("integrate_layers", layer_integrate_use_softmax=True),
    refused("num_residual_streams", 1, _RESIDUAL + "There is one residual stream; use a wider `dim`."),
    *details("num_residual_streams", hyper_conn_sinkhorn_iters=5),
    refused(
        "qkv_receive_diff_residuals",
        False,
        "Queries, keys and values read the same hidden state. Use one residual stream.",
    ),
    refused("reinject_input", False, _RESIDUAL + "The input enters once; use more `depth`."),
    *details("reinject_input", learned_reinject_input_gate=False),
    refused("add_value_residual", False, "Values come from their own layer alone. Use plain attention."),
    *details("add_value_residual", learned_value_residual_mix=True),
    refused("residual_fn_kwargs", {}, _RESIDUAL + "It has no settings; leave it out."),
]

OWN = [
    own(
        "position",
        "position",
        "How the model knows position: a name, a config, a scheme of yours, a list of them (combined).",
        copied=False,
    ),
    own(
        "window",
        "window",
        "Each query sees the last `window` keys, its own included; without a causal mask as many ahead too.",
    ),
    own("chunk", "chunk", "Texts are cut every `chunk` tokens, and each query sees its own chunk (Llama 4)."),
    own("keep_first", "keep_first", "Beside a window, the first tokens are seen too, at distances that stop growing."),
    own(
        "pattern",
        "pattern",
        "What differs between layers: a list of `LayerConfig` fields (position, window, chunk, "
        "keep_first), entry i for layer i, and over again.",
    ),
    own("backend", "backend", "`auto`, `eager`, `blockwise`, `sdpa`, `flex` or `varlen`."),
    own("flash", "flash", "Ask for a fused path; refused with the reason where there is none."),
    own("kv_heads", "kv_heads", "Key/value heads."),
    own("context_dim", "context_dim", "Width of the context where it is not `dim`."),
    own("head_dim", "head_dim", "Width of one head."),
    own("norm", "norm", "A kind of norm, or the fields of `NormConfig`.", copied=False),
    own("norm_place", "norm_place", "`pre`, `post`, `after`, `sandwich`, `entry`, `parallel` or `parallel_two`."),
    own("final_norm", "final_norm", "A norm after the last block."),
    own("first_norm", "first_norm", "False: no norm before the first attention (ModernBERT).", default=True),
    own(
        "residual_scale", "residual_scale", "Each branch is multiplied by it before it is added (Granite).", default=1.0
    ),
    own("layer_scale", "layer_scale", "A learned gain per channel of each branch, from this value (LayerScale)."),
    own("attn", "attn", "The fields of `AttentionConfig`.", copied=False),
    own("ff", "ff", "The fields of `FeedForwardConfig`.", copied=False),
]

ENTRIES: tuple[Flag, ...] = table(LAYERS, [*SHAPE, *NORMS, *RESIDUALS, *OWN])
