"""StableLM: LayerNorm, RoPE on a quarter of each head; the larger models norm each head and are parallel."""

from x_positional.pretrained.config_json.causal import CAUSAL_WITHOUT_PADDING, causal_only
from x_positional.pretrained.config_json.codecs import Fixed, Key, head_dim, quotient
from x_positional.pretrained.config_json.layer_types import PARTIAL_FACTOR, RopeCodec
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import LLAMA, qk_norms_if, sizes
from x_positional.pretrained.tensors.layouts import PerHead

STABLELM = LLAMA.like(
    "stablelm",
    "StableLmForCausalLM",
    codecs=(
        causal_only(CAUSAL_WITHOUT_PADDING),
        *layer_norms("layer_norm_eps"),
        RopeCodec(reads=(PARTIAL_FACTOR,)),
        head_dim(quotient("hidden_size", "num_attention_heads")),
        Key("layers.norm_place", "use_parallel_residual", False, {False: "pre", True: "parallel"}),
        Key("layers.attn.bias", "use_qkv_bias", False),
        Fixed("layers.attn.out_bias", False),
        Fixed("layers.ff.bias", False),
        qk_norms_if("qk_layernorm", "layer_per_head", "layer_norm_eps", 1e-5),
    ),
    names={
        "blocks.{i}.attn.q_norm": PerHead("model.layers.{i}.self_attn.q_layernorm.norms.{n}", lambda s: s.heads),
        "blocks.{i}.attn.k_norm": PerHead("model.layers.{i}.self_attn.k_layernorm.norms.{n}", lambda s: s.kv_heads),
    },
    defaults=sizes(50304, 2560, 6912, 32, 32, 4096, num_key_value_heads=32),
)
