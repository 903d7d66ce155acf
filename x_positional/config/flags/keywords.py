"""Keywords of the constructors of x-transformers' classes: layers, attention, feedforward, positions, wrappers.

Attention takes its keywords as `attn_*` (every attention of a layer) and `cross_attn_*` (cross-attention alone), the
feedforward as `ff_*`. The arguments of calls are in `calls`.
"""

from dataclasses import replace

from x_positional.config.flags.entry import REQUIRED, Flag, copied, details, own, refused, table, translated

# Position schemes

POSITION = [
    translated(
        "alibi_pos_bias",
        False,
        "position",
        "ALiBi: `alibi`, causal in a decoder, symmetric in an encoder. "
        "Unlike in x-transformers, it switches the absolute table off.",
    ),
    translated("alibi_num_heads", None, "position[alibi].heads", "ALiBi on the first k heads only."),
    translated("rel_pos_bias", False, "position", "T5's bucketed bias: `t5` with `scale=head_dim ** 0.5`."),
    translated("rel_pos_num_buckets", 32, "position[t5].num_buckets", "T5's number of buckets."),
    translated("rel_pos_max_distance", 128, "position[t5].max_distance", "T5's distance of the last bucket."),
    translated(
        "dynamic_pos_bias", False, "position", "A small network over the distance: `dynamic`, of width `dim // 4`."
    ),
    translated("dynamic_pos_bias_log_distance", False, "position[dynamic].log_distance", "It reads log distances."),
    translated("dynamic_pos_bias_mlp_depth", 2, "position[dynamic].depth", "Its hidden layers."),
    translated("dynamic_pos_bias_norm", False, "position[dynamic].norm", "Norms inside it."),
    translated(
        "rotary_pos_emb",
        False,
        "position",
        "RoPE: `rope` on half of each head (`dim=head_dim // 2`), `interleaved=True`.",
    ),
    translated(
        "rotary_emb_dim", None, "position[rope].dim", "Rotated channels of each head; half of them if not given."
    ),
    translated(
        "rotary_xpos", False, "position", "xPos: `xpos`, everything else as `rotary_pos_emb`, which it implies."
    ),
    translated("rotary_interpolation_factor", 1.0, "position[rope].interpolation_factor", "Divides the angles."),
    translated("rotary_xpos_scale_base", 512, "position[xpos].scale_base", "xPos' decay length."),
    translated("rotary_base_rescale_factor", 1.0, "position[rope].base_rescale_factor", "NTK rescale of the base."),
    translated("rotate_num_heads", None, "position[rope].heads", "Rotates the last k heads only."),
    translated("polar_pos_emb", False, "position", "PoPE: `polar`."),
    translated(
        "polar_bias_uniform_init",
        False,
        "position[polar].uniform_init",
        "Uniform initialisation of PoPE's phase; x-transformers crashes with it.",
    ),
    translated(
        "rel_pos_kwargs",
        {},
        "position[alibi].slopes",
        "Only `slopes`, with `alibi_pos_bias=True`. Other keys are "
        "refused: the other biases have flags for all of their settings.",
    ),
    translated(
        "disable_abs_pos_emb", None, "position", "True: no absolute table. False: keep it beside another scheme."
    ),
    own("cope", "position", "Short for `attn_use_cope`.", default=False, copied=False),
    own("cope_max_pos", "position[cope].max_pos", "Short for `attn_cope_max_pos`.", default=16, copied=False),
]

ATTENTION_POSITION = [
    translated("rotate_num_heads", None, "position[rope].heads", "The same as `rotate_num_heads`."),
    translated(
        "data_dependent_alibi",
        False,
        "position",
        "Forget gates: `forgetting`. Correct with a KV cache, unlike in x-transformers.",
    ),
    translated(
        "data_dependent_alibi_kwargs",
        {},
        "position[forgetting].bias_init",
        "Only `bias_init`; `post_log_scale` is refused unless it is 1.",
    ),
    refused(
        "data_dependent_alibi_per_row",
        False,
        "Gates per query and key are not supported. Use `attn_data_dependent_alibi=True`, one gate per key.",
    ),
    *details("attn_data_dependent_alibi_per_row", data_dependent_alibi_per_row_dim_head=8),
    refused(
        "use_rel_proj_pos_bias",
        False,
        "A learned basis of distances per query is not supported. Use `dynamic_pos_bias=True` or `rel_pos_bias=True`.",
    ),
    *details("attn_use_rel_proj_pos_bias", rel_proj_num_distance_basis=16, rel_proj_max_dist=1024),
    translated("use_cope", False, "position", "CoPE: `cope`."),
    translated("cope_max_pos", 16, "position[cope].max_pos", "CoPE's number of positions."),
    refused(
        "cope_soft_onehot_pos",
        False,
        "It crashes in x-transformers. Use CoPE's interpolation, which is the paper's and the default.",
    ),
    refused(
        "cope_talking_heads",
        False,
        "The gates of a head come from that head's scores alone. Use `attn_use_cope=True` without it.",
    ),
    refused(
        "latent_rope_subheads",
        None,
        'x-transformers\' latent attention is not supported. Use `rotate_num_heads`, or `attn={"mla": ...}`.',
    ),
]

WRAPPER_POSITION = [
    translated(
        "use_abs_pos_emb",
        True,
        "layers.position",
        "A learned table. Default: on where no other scheme is "
        "chosen. True adds it to other schemes, False switches it off.",
    ),
    translated("scaled_sinu_pos_emb", False, "layers.position", "`scaled_sinusoidal` instead of the learned table."),
]

MAX_SEQ_LEN = copied("max_seq_len", None, "max_seq_len", "Trained length, and the size of a learned table.")

# Layers: shape, norms, residuals

_BLOCK = "Every block runs self-attention, cross-attention (optional) and feedforward, in that order, once each. "
_RESIDUAL = "Each branch's output is added to its input, nothing more. "
_CONDITION = "Norms cannot be conditioned. Add the condition to the embeddings, or pass it as `context=` with `cross_attend=True`."

SHAPE = [
    copied("dim", REQUIRED, "dim", "Model width."),
    copied("depth", None, "depth", "Number of blocks."),
    copied("heads", 8, "heads", "Query heads."),
    refused("causal", False, "Set by the class. Use `Decoder` for causal and `Encoder` for bidirectional attention."),
    translated(
        "cross_attend", False, "cross_attend", "Cross-attention in every block; the call then takes `context=`."
    ),
    refused("only_cross", False, "Set by the class. Use `CrossAttender` for blocks without self-attention."),
    refused("only_attn", False, _BLOCK + "Make the feedforward small with `ff_mult`."),
    refused("weight_tie_layers", False, _BLOCK + "Each block has its own weights; lower `depth` for fewer."),
    refused("custom_layers", None, _BLOCK + 'Choose with `depth`, `cross_attend` and `norm_place="parallel"`.'),
    refused("layers_execute_order", None, _BLOCK + "Choose with `depth`."),
    refused("sandwich_coef", None, _BLOCK + "Use that order; for norms on both sides use `sandwich_norm=True`."),
    refused("par_ratio", None, _BLOCK + "Choose with `depth` and `ff_mult`."),
    refused("macaron", False, _BLOCK + "Use a wider feedforward (`ff_mult`)."),
    refused("layer_dropout", 0.0, "Blocks are never skipped. Use `attn_dropout` and `ff_dropout`."),
    refused("cross_attn_tokens_dropout", 0.0, "Context tokens are not dropped. Hide some with `context_mask=`."),
    refused(
        "shift_tokens",
        0,
        'Tokens are not shifted. For locality use a position scheme, e.g. `position="alibi"`, or `window=`.',
    ),
    refused(
        "zero_init_branch_output",
        False,
        "Initialisation is not configurable. Zero the output projections of attention "
        "and feedforward after building the model.",
    ),
    translated("verbose", True, None, "No effect: building a model prints nothing."),
]

NORMS = [
    translated("use_scalenorm", False, "norm.kind", 'ScaleNorm: `norm.kind="scale"`, `norm.eps=1e-12`.'),
    translated("use_rmsnorm", False, "norm.kind", 'RMSNorm: `norm.kind="rms"`, `norm.eps=1e-12`.'),
    translated(
        "use_simple_rmsnorm", False, "norm.kind", 'RMSNorm without gain: `norm.kind="simple_rms"`, `norm.eps=1e-12`.'
    ),
    refused("use_dynamic_tanh", False, "Only norms are supported. Use `use_rmsnorm=True`."),
    *details("use_dynamic_tanh", dynamic_tanh_init_alpha=1.0),
    refused("use_derf", False, "Only norms are supported. Use `use_rmsnorm=True`."),
    refused("use_adaptive_layernorm", False, _CONDITION),
    refused("use_adaptive_rmsnorm", False, _CONDITION),
    refused("use_adaptive_layerscale", False, _CONDITION),
    *details(
        "use_adaptive_layernorm", dim_condition=None, adaptive_condition_mlp=False, adaptive_condition_mlp_expansion=4
    ),
    copied("norm_add_unit_offset", True, "norm.unit_offset", "Gains are stored as gain - 1."),
    translated(
        "pre_norm",
        True,
        "norm_place",
        'Norm before each branch; False: after the residual (`norm_place="post"`), without a final norm.',
    ),
    translated("pre_norm_has_final_norm", True, "final_norm", "A norm after the last block."),
    translated("sandwich_norm", False, "norm_place", 'Norm before and after each branch: `norm_place="sandwich"`.'),
    refused(
        "pre_and_post_norm",
        False,
        "A norm after the residual in addition to one before the branch is not supported. "
        "Use `sandwich_norm=True`, which normalises a branch's input and output.",
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
        "Initialisation is not configurable. Scale the output projections after building the model.",
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
        "The position scheme: a name, a config, an instance, or a list of them (combined).",
        copied=False,
    ),
    own(
        "window",
        "window",
        "Each query sees the last `window` keys, its own included; in an encoder as many ahead too.",
    ),
    own("chunk", "chunk", "Sequences are cut every `chunk` tokens, and each query sees its own chunk (Llama 4)."),
    own("keep_first", "keep_first", "Beside a window, the first tokens stay visible, at distances that stop growing."),
    own(
        "pattern",
        "pattern",
        "What differs between layers: a list of `LayerConfig` fields (position, window, chunk, "
        "keep_first, attn, ff). Entry i applies to layer i; the pattern repeats.",
    ),
    own("backend", "backend", "`auto`, `eager`, `blockwise`, `sdpa`, `flex` or `varlen`."),
    own("flash", "flash", "Require a backend that never holds the whole score matrix."),
    own("kv_heads", "kv_heads", "Key/value heads."),
    own("context_dim", "context_dim", "Width of the context; default `dim`."),
    own("head_dim", "head_dim", "Width of one head."),
    own("norm", "norm", "A kind of norm, or the fields of `NormConfig`.", copied=False),
    own("norm_place", "norm_place", "`pre`, `post`, `after`, `sandwich`, `entry`, `parallel` or `parallel_two`."),
    own("final_norm", "final_norm", "A norm after the last block."),
    own("first_norm", "first_norm", "False: no norm before the first attention (ModernBERT).", default=True),
    own("residual_scale", "residual_scale", "Each branch's output is multiplied by it (Granite).", default=1.0),
    own(
        "layer_scale",
        "layer_scale",
        "A learned gain per channel of each branch, initialised to this value (LayerScale).",
    ),
    own("attn", "attn", "The fields of `AttentionConfig`.", copied=False),
    own("ff", "ff", "The fields of `FeedForwardConfig`.", copied=False),
]

# Attention

_TWICE = "x-transformers passes it twice and crashes. Use "
_MAPS = "Changes the score matrix of all heads at once, which fused attention never holds. Use plain attention."
_SOFTMAX = "Attention weights are a softmax. Use plain attention; `attn_softclamp_logits` bounds the scores."
_GATE = "The attention output is not gated. Use the plain output; a gated feedforward is `ff_glu=True`."
_LATENT = (
    'x-transformers\' latents have no norms and no rotated shared key. Use `attn={"mla": ...}`, as in DeepSeek-V2.'
)
_ONE_NORM = "Queries and keys are normalised together. Use `attn_qk_rmsnorm=True`."

HEADS = [
    refused("dim", None, _TWICE + "`dim`."),
    copied("dim_head", 64, "head_dim", "Width of one head; never derived from `dim // heads`."),
    refused("dim_context", None, "x-transformers passes it to self-attention too. Use `cross_attn_dim_context`."),
    refused("heads", 8, _TWICE + "`heads`."),
    refused("causal", False, _TWICE + "`Decoder` or `Encoder`."),
    copied(
        "flash",
        False,
        "flash",
        "Require a backend that never holds the whole score matrix; refused with the reason where none fits.",
    ),
    translated("one_kv_head", False, "kv_heads", "Multi-query attention: `kv_heads=1`."),
    copied(
        "kv_heads",
        None,
        "kv_heads",
        "Grouped queries. Query head h reads key head `h // (heads // kv_heads)`; x-transformers pairs `h % kv_heads`.",
    ),
    refused(
        "value_dim_head",
        None,
        'Values are as wide as keys. Use `attn_dim_head`; only latent attention (`attn={"mla": '
        '{"value_dim": ...}}`) sets the width of values.',
    ),
    refused(
        "dim_out",
        None,
        "A layer's output has the model's width. Use `dim`, and `logits_dim` or `dim_out` of the wrapper.",
    ),
    copied("dropout", 0.0, "attn.dropout", "Dropout of the attention weights."),
    refused("sublayer_dropout", 0.0, "There is no dropout after the output projection. Use `attn_dropout`."),
    translated(
        "max_attend_past",
        None,
        "window",
        "`window = max_attend_past + 1`: x-transformers does not count the token itself. "
        "In an encoder it bounds the past only, so it is refused there: use `window=`.",
    ),
    refused("project_out", None, "The output projection is always present. Leave it out."),
    refused(
        "zero_init_output", False, "Initialisation is not configurable. Zero the output projections after building."
    ),
    refused("output_proj_depth", None, _TWICE + "the default initialisation."),
]

SCORES = [
    translated(
        "qk_norm", False, "attn.qk_norm", 'Cosine similarity: `qk_norm="l2"`, scores times `attn.qk_norm_scale`.'
    ),
    translated("qk_norm_scale", 10, "attn.qk_norm_scale", "The factor of the cosine similarity."),
    refused("qk_norm_groups", 1, "A head is normalised as a whole. Use a smaller `attn_dim_head`."),
    refused(
        "qk_norm_dim_scale",
        False,
        "The scale of `attn_qk_norm` is one number. Use `attn_qk_rmsnorm=True`, which learns one per channel.",
    ),
    translated(
        "qk_rmsnorm", False, "attn.qk_norm", 'RMSNorm of queries and keys, a gain per head: `qk_norm="rms_per_head"`.'
    ),
    refused("k_rmsnorm", False, _ONE_NORM),
    refused(
        "value_rmsnorm", False, "Values are not normalised. `sandwich_norm=True` normalises the output of attention."
    ),
    translated("softclamp_logits", False, "attn.softcap", "Scores become c * tanh(scores / c)."),
    translated("logit_softclamp_value", 50.0, "attn.softcap", "The c of `attn_softclamp_logits`."),
    copied("head_learned_sink", False, "attn.sinks", "A learned sink score per head."),
    refused("add_zero_kv", False, "There is no zero key. Use `attn_head_learned_sink=True`, whose score is learned."),
    refused("num_mem_kv", 0, "There are no memory keys. Use `attn_head_learned_sink=True`."),
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
        "Later queries change the weight of earlier keys, so no KV cache is correct. Use "
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
    refused("laser", False, "Values are not transformed. Use plain attention."),
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
    refused("hybrid_module", None, "No module runs in parallel with attention. Write your own block around `Decoder`."),
    *details("attn_hybrid_module", hybrid_mask_kwarg=None, hybrid_fold_axial_dim=None, hybrid_learned_mix=False),
    refused("onnxable", False, "Masks are built from positions, without triu. Use `torch.export`."),
    refused(
        "attend_sdp_kwargs",
        {"enable_flash": True, "enable_math": True, "enable_mem_efficient": True},
        "PyTorch chooses the kernel. Use `torch.nn.attention.sdpa_kernel` around the call, or `backend=`.",
    ),
    refused("flash_pack_seq", False, "Packing needs no flag. Use `document_ids=` in the call."),
]

ATTENTION = [*HEADS, *SCORES, *OUTPUT]


def _cross(flag: Flag) -> Flag:
    """`context_dim` belongs to cross-attention alone; its other flags may only repeat those of all attention layers."""
    if flag.name == "dim_context":
        return copied("dim_context", None, "context_dim", "Width of the context; default `dim`.")
    same = f"Cross-attention shares `attn_{flag.name}`. Set that instead."
    note = same if flag.verdict == "supported" else flag.note
    return replace(flag, verdict="refused", note=note, field=None, copied=False)


# Feedforward

_CLAMP = "Feedforward activations are not clamped. Use `ff_swish=True` with `ff_glu=True`, or `sandwich_norm=True`."

FEEDFORWARD = [
    refused("dim", None, _TWICE + "`dim`."),
    refused("dim_out", None, "A layer's output has the model's width. Use `dim`."),
    copied("mult", 4, "ff.mult", "Inner width as a multiple of `dim`."),
    copied("glu", False, "ff.glu", "Gated: up(x) * act(gate(x)). The inner width stays `dim * ff_mult`."),
    refused("glu_mult_bias", False, "The gate has no learned multiplier. Use `ff_glu=True` alone."),
    translated("swish", False, "ff.activation", 'SiLU: `activation="silu"`; with `ff_glu=True` that is SwiGLU.'),
    translated("relu_squared", False, "ff.activation", 'ReLU squared: `activation="relu2"`.'),
    refused("solu", False, 'Unsupported activation. Use `ff_swish`, `ff_relu_squared` or `ff={"activation": ...}`.'),
    refused(
        "custom_activation",
        None,
        'A config holds names, not modules. Use `ff={"activation": ...}` with gelu, gelu_tanh, silu, relu or relu2.',
    ),
    refused("post_act_ln", False, "There is no norm inside the feedforward. Use `sandwich_norm=True`."),
    copied("dropout", 0.0, "ff.dropout", "Dropout of the inner activations."),
    refused("sublayer_dropout", 0.0, "There is no dropout after the second projection. Use `ff_dropout`."),
    translated(
        "no_bias",
        False,
        "ff.bias",
        "No biases; with `ff_glu=True` the gated projection keeps its bias, as in x-transformers (`ff.gate_bias`).",
    ),
    refused(
        "zero_init_output", False, "Initialisation is not configurable. Zero the second projections after building."
    ),
    refused("output_proj_depth", None, _TWICE + "the default initialisation."),
    refused("softclamp_value", None, _CLAMP),
    refused("glu_softclamp", False, _CLAMP),
    *details("ff_glu_softclamp", glu_gate_softclamp_value=4.0, glu_up_softclamp_value=25.0),
]

# Wrappers

_EMBEDDINGS = "Call with `return_embeddings=True` and apply your own head."
_MEMORY = "There is no memory of earlier segments. Use the KV cache: `model.new_cache(batch_size, window=...)`."
_TOKENS = "No tokens are inserted. Add them to the vocabulary and the text, or use "
_SINK = _TOKENS + "`attn_head_learned_sink=True`."
_POOL = "One output per token. Call with `return_embeddings=True` and pool them."
_LOOP = "The blocks run once. Use more `depth`."
_MODULE = "A config holds values, not modules. "
_LOGITS = "The head is one linear layer. " + _EMBEDDINGS
_BARE = "Run an `Encoder` or `Decoder` on your own embeddings, or use `ContinuousTransformerWrapper`."

TRANSFORMER = table(
    "TransformerWrapper",
    [
        copied("num_tokens", REQUIRED, "num_tokens", "Vocabulary size."),
        copied(
            "max_seq_len",
            REQUIRED,
            "max_seq_len",
            MAX_SEQ_LEN.note + " 0 is refused: switch the table off with `use_abs_pos_emb=False`.",
        ),
        translated("attn_layers", REQUIRED, "layers", "The `Encoder` or `Decoder`."),
        refused("embed_num_tokens", {}, "One embedding table. " + _BARE),
        copied("emb_dim", None, "emb_dim", "Width of the embedding; if not `dim`, a projection follows."),
        refused("max_mem_len", 0, _MEMORY),
        refused("shift_mem_down", 0, _MEMORY),
        copied("emb_dropout", 0.0, "emb_dropout", "Dropout of the embeddings."),
        copied("post_emb_norm", False, "post_emb_norm", "LayerNorm after the embedding."),
        refused("num_memory_tokens", None, _SINK),
        *details("num_memory_tokens", memory_tokens_interspersed_every=None),
        copied("tie_embedding", False, "tie_embedding", "Logits are computed with the embedding matrix."),
        translated("tie_embedding_scale", None, "tie_embedding_scale", "Factor of tied logits; default `dim ** -0.5`."),
        own("emb_scale", "emb_scale", "Token embeddings are multiplied by it (Gemma)."),
        own(
            "emb_norm",
            "emb_norm",
            "A norm after the embedding other than `post_emb_norm`: the fields of `NormConfig`.",
        ),
        own(
            "token_types",
            "token_types",
            "Number of token types, each with a learned vector added to the embedding (BERT's segments).",
        ),
        own("head", "head", "BERT-style prediction head before the last projection: the fields of `HeadConfig`."),
        own("emb_proj_bias", "emb_proj_bias", "The projections between `emb_dim` and `dim` have a bias.", default=True),
        own(
            "emb_proj_first",
            "emb_proj_first",
            "Positions and norm come after the projection from `emb_dim` (OPT-350m).",
            default=False,
        ),
        own(
            "logits_proj",
            "logits_proj",
            "A projection from `dim` back to `emb_dim` before the head (OPT-350m).",
            default=False,
        ),
        own("logits_bias", "logits_bias", "A bias of the logits.", default=False),
        own("logits_scale", "logits_scale", "Logits are multiplied by it (Cohere)."),
        own("logits_softcap", "logits_softcap", "After that, logits become `c * tanh(logit / c)` (Gemma 2)."),
        copied("logits_dim", None, "logits_dim", "Width of the logits; default `num_tokens`."),
        refused("return_only_embed", False, "An argument of the call. Use `return_embeddings=True` there."),
        refused("num_output_heads", 1, _LOGITS),
        *WRAPPER_POSITION,
        copied("l2norm_embed", False, "l2norm_embed", "Token embeddings are normalised to length one."),
        refused("recycling", False, _LOOP),
        *details("recycling", train_max_recycle_steps=4),
        refused("looped", False, _LOOP),
        *details("looped", max_looped_steps=4),
        refused("emb_frac_gradient", 1.0, "Gradients are not scaled. Give the embedding its own learning rate."),
        refused(
            "attn_z_loss_weight",
            1e-4,
            "x-transformers ignores it in this class. There is no z-loss; bound the scores with "
            "`attn_softclamp_logits` or `attn_qk_norm`.",
        ),
        refused("average_pool_embed", False, _POOL),
        refused("use_cls_token", False, _TOKENS + "the embedding of a token of your choice."),
        *details("use_cls_token", num_cls_tokens=1),
        refused("attn_pool", False, _POOL),
        *details("attn_pool", num_pooled_tokens=1, attn_pool_depth=1, dim_pooled_tokens=None),
        refused(
            "squeeze_out_last_dim", False, "The shape of the logits is always [B, T, V]. Use `logits.squeeze(-1)`."
        ),
        refused("token_emb", None, _MODULE + _BARE),
        refused("mixture_of_softmax", False, _LOGITS),
        *details("mixture_of_softmax", mixture_of_softmax_k=4),
        refused("sigsoftmax_logits", False, _LOGITS),
        refused("ff_deep_embed", False, "The feedforward does not see token ids. Use a wider feedforward (`ff_mult`)."),
        refused("to_logits", None, _MODULE + _EMBEDDINGS),
        refused("add_continuous_pred_head", False, "The next token is predicted, not its embedding. " + _EMBEDDINGS),
        refused(
            "input_not_include_cache", False, "With a cache the call always takes the new tokens alone. Leave it out."
        ),
    ],
)

CONTINUOUS = table(
    "ContinuousTransformerWrapper",
    [
        copied("max_seq_len", None, "max_seq_len", MAX_SEQ_LEN.note + " None: no table."),
        translated("attn_layers", REQUIRED, "layers", "The `Encoder` or `Decoder`."),
        copied("dim_in", None, "dim_in", "Width of the input, which is projected to `dim`."),
        copied("dim_out", None, "dim_out", "Width of the output, projected from `dim`."),
        refused("project_in", None, _MODULE + "Apply it before the call and leave `dim_in` out."),
        refused("project_out", None, _MODULE + "Apply it after the call and leave `dim_out` out."),
        refused("max_mem_len", 0, _MEMORY),
        refused("num_memory_tokens", None, _SINK),
        copied("post_emb_norm", False, "post_emb_norm", "LayerNorm after the input projection."),
        copied("emb_dropout", 0.0, "emb_dropout", "Dropout after the input projection."),
        *WRAPPER_POSITION,
        refused("average_pool_embed", False, _POOL),
        refused(
            "probabilistic",
            False,
            "The output is one tensor. Use twice the `dim_out` and split it into mean and log variance.",
        ),
        refused(
            "use_identity_if_same_dim",
            False,
            "`dim_in` and `dim_out` always project. Leave them out for no projection.",
        ),
    ],
)

XTRANSFORMER = table(
    "XTransformer",
    [
        copied(
            "dim",
            REQUIRED,
            "dim",
            "Width of the encoder and the decoder. Every other flag of the two starts with "
            "`enc_` or `dec_`; a flag with neither prefix is an error.",
        ),
        copied("tie_token_emb", False, "tie_token_emb", "The decoder shares the encoder's token embedding."),
        copied("ignore_index", -100, "ignore_index", "Targets with this value do not count in the loss."),
        copied(
            "pad_value",
            0,
            "pad_value",
            "Token that replaces `ignore_index` in the input and fills generated rows after their end.",
        ),
        refused("cross_attn_tokens_dropout", 0.0, "Source tokens are not dropped. Hide some with `mask=`."),
    ],
)

AUTOREGRESSIVE = table(
    "AutoregressiveWrapper",
    [
        translated("net", REQUIRED, "net", "The model."),
        copied("ignore_index", -100, "ignore_index", "Targets with this value do not count in the loss."),
        copied(
            "pad_value",
            0,
            "pad_value",
            "Token that replaces `ignore_index` in the input and fills generated rows after their end.",
        ),
        refused("mask_prob", 0.0, "Keys are not masked at random. Use `attn_dropout`."),
        refused(
            "add_attn_z_loss",
            False,
            "Needs every score, which fused attention never holds. Bound the scores with "
            "`attn_softclamp_logits` or `attn_qk_norm`.",
        ),
        refused(
            "next_embed_loss_weight", 0.1, "A detail of `add_continuous_pred_head`, which is refused; leave it out too."
        ),
        *details("looped", looped_loss_threshold_exit=0.05, looped_loss_slope=50, looped_exit_loss_weight=1.0),
    ],
)

CONTINUOUS_WRAPPER = table(
    "ContinuousAutoregressiveWrapper",
    [
        translated("net", REQUIRED, "net", "The model."),
        translated("loss_fn", None, "loss_fn", "A loss of each number; the squared error if not given."),
        translated("use_l1_loss", False, "use_l1_loss", "The absolute error."),
        translated("equal_loss_weight_batch", False, "equal_loss_weight_batch", "Each sequence counts the same."),
    ],
)

VISION = table(
    "ViTransformerWrapper",
    [
        copied(
            "image_size",
            REQUIRED,
            "image_size",
            "Trained size in pixels, a number or (height, width); other sizes run too.",
        ),
        copied("patch_size", REQUIRED, "patch_size", "Size of a patch in pixels, a number or (height, width)."),
        translated(
            "attn_layers",
            REQUIRED,
            "layers",
            "The `Encoder`. The learned table is used where no scheme is chosen; for both, "
            'put `"absolute"` into `position=`.',
        ),
        copied("channels", 3, "channels", "Channels of a pixel."),
        copied(
            "num_classes",
            None,
            "num_classes",
            "Width of the logits; without it the model returns the pooled embedding.",
        ),
        copied("post_emb_norm", False, "post_emb_norm", "LayerNorm after the patch embedding."),
        copied("num_register_tokens", 0, "num_register_tokens", "Learned tokens before the patches; not rotated."),
        copied("emb_dropout", 0.0, "emb_dropout", "Dropout of the patch embedding."),
        own("patch_dropout", "patch_dropout", "In training, this share of the patches is left out.", default=0.0),
        own("patch_norms", "patch_norms", "Norms over the pixels of a patch and after their projection.", default=True),
        own("patch_bias", "patch_bias", "A bias of the patch projection.", default=True),
        own("logits_bias", "logits_bias", "A bias of the logits.", default=True),
        own(
            "pool",
            "pool",
            "`mean` of the patches, a `cls` token, both (`cls_mean`), or a learned query (`attention`).",
            default="mean",
        ),
        own("register_heads", "register_heads", "Each register has a head; logits are the mean of all.", default=False),
        own("norm_pooled", "norm_pooled", "A norm of what the head reads.", default=False),
        own("cls_position", "cls_position", "The learned table has a row for the cls token.", default=False),
        own("register_position", "register_position", "The learned table has a row for each register.", default=False),
        own("tokens_norm", "tokens_norm", "A norm of every token before the first layer: the fields of `NormConfig`."),
        own(
            "coordinates",
            "coordinates",
            "`index`, `rescaled` to the trained size, or `centered` in [-1, 1].",
            default="index",
        ),
        own(
            "interpolation",
            "interpolation",
            "How the learned table is resized: `bicubic` or `bilinear`.",
            default="bicubic",
        ),
        own("antialias", "antialias", "The learned table is resized with antialiasing.", default=False),
    ],
)

LAYERS: tuple[Flag, ...] = (
    table("AttentionLayers", [*POSITION, *SHAPE, *NORMS, *RESIDUALS, *OWN])
    + table("AttentionLayers", [*ATTENTION, *ATTENTION_POSITION], prefix="attn_")
    + table("AttentionLayers", [_cross(flag) for flag in [*ATTENTION, *ATTENTION_POSITION]], prefix="cross_attn_")
    + table("AttentionLayers", FEEDFORWARD, prefix="ff_")
)

ENTRIES: tuple[Flag, ...] = (
    LAYERS + TRANSFORMER + CONTINUOUS + XTRANSFORMER + AUTOREGRESSIVE + CONTINUOUS_WRAPPER + VISION
)
