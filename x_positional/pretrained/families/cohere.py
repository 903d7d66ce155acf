"""Command R: parallel attention and feedforward on a LayerNorm without bias, interleaved RoPE, scaled logits; and its second
version, with RoPE in sliding-window layers only.
"""

from x_positional.pretrained.config_json.codecs import Fixed, head_dim, multiplier, quotient
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import SLIDING, LayerTypesCodec, RopeCodec, full_every, rope_in
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import LLAMA, qk_norms_if, sizes, tied
from x_positional.pretrained.tensors.layouts import head_gains

COHERE = LLAMA.like(
    "cohere",
    "CohereForCausalLM",
    codecs=(
        *tied(True),
        *layer_norms("layer_norm_eps"),
        Fixed("layers.norm.bias", False),
        Fixed("layers.norm_place", "parallel"),
        Fixed("layers.ff.bias", False),
        multiplier("logits_scale", "logit_scale"),
        qk_norms_if("use_qk_norm", "layer_per_head", "layer_norm_eps", 1e-5),
    ),
    names={
        "blocks.{i}.ff_residual.before": None,
        "blocks.{i}.attn.q_norm": head_gains("model.layers.{i}.self_attn.q_norm", lambda s: s.heads),
        "blocks.{i}.attn.k_norm": head_gains("model.layers.{i}.self_attn.k_norm", lambda s: s.kv_heads),
    },
    defaults=sizes(256000, 8192, 22528, 40, 64, 8192, logit_scale=0.0625),
)

LOCAL = full_every("sliding_window_pattern")

COHERE2 = COHERE.like(
    "cohere2",
    "Cohere2ForCausalLM",
    codecs=(
        Fixed("layers.attn.qk_norm", None),
        head_dim(quotient("hidden_size", "num_attention_heads")),
        LayerTypesCodec(default_types=LOCAL, legacy_keys=("sliding_window_pattern",), window_needed=True),
        RopeCodec(layers=rope_in(SLIDING, LOCAL)),
    ),
    ignored_keys=key_names(
        "cache_implementation layer_switch order_of_interleaved_layers position_embedding_type rotary_pct "
        "use_embedding_sharing use_gated_activation use_parallel_block use_parallel_embedding use_qk_norm"
    ),
    defaults={"sliding_window": 4096, "sliding_window_pattern": 4},
)
