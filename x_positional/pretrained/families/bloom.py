"""BLOOM: ALiBi, a norm after the embedding, fused projections with q, k, v per head."""

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.causal import causal_only
from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf, Key, derived
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import tied
from x_positional.pretrained.families.sizes import even_heads
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import grouped_qkv
from x_positional.schemes import Alibi


def _biased(hf: Hf) -> Fields:
    """Refuses the combination for which transformers omits the biases of the output projections."""
    parts = hf.get("pretraining_tp", 1)
    if hf.get("slow_but_exact") and parts != 1:
        raise ConfigError(
            f"slow_but_exact=True with pretraining_tp={parts}: transformers then omits biases. Set slow_but_exact to false."
        )
    return {}


BLOOM = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    prefix="transformer.",
    codecs=(
        Key("num_tokens", "vocab_size", 250880),
        Key("max_seq_len", "seq_length", 2048),
        Key("layers.dim", "hidden_size", 64),
        Key("layers.depth", "n_layer", 2),
        Key("layers.heads", "n_head", 8),
        even_heads("hidden_size", "n_head", (64, 8)),
        derived("layers.ff.dim", lambda hf: 4 * hf.get("hidden_size", 64)),
        *tied(True),
        *layer_norms("layer_norm_epsilon"),
        Fixed("emb_norm.kind", "layer"),
        Fixed("emb_norm.bias", True),
        Fixed("emb_norm.unit_offset", False),
        Key("emb_norm.eps", "layer_norm_epsilon", 1e-5),
        causal_only("ALiBi of this family is defined for causal attention only."),
        Fixed("layers.position", [Alibi()]),
        Key("layers.norm_place", "apply_residual_connection_post_layernorm", False, {False: "pre", True: "entry"}),
        Fixed("layers.attn.bias", True),
        Fixed("layers.ff.activation", "gelu_tanh"),
        Custom(("only slow_but_exact",), ("slow_but_exact", "pretraining_tp"), _biased, lambda fields: {}),
    ),
    names={
        "token_emb": "transformer.word_embeddings",
        "emb_norm": "transformer.word_embeddings_layernorm",
        "blocks.{i}.attn_residual.before": "transformer.h.{i}.input_layernorm",
        "blocks.{i}.attn_residual.entry": "transformer.h.{i}.input_layernorm",
        "blocks.{i}.attn.to_qkv": grouped_qkv("transformer.h.{i}.self_attention.query_key_value"),
        "blocks.{i}.attn.to_out": "transformer.h.{i}.self_attention.dense",
        "blocks.{i}.ff_residual.before": "transformer.h.{i}.post_attention_layernorm",
        "blocks.{i}.ff_residual.entry": "transformer.h.{i}.post_attention_layernorm",
        "blocks.{i}.ff.up": "transformer.h.{i}.mlp.dense_h_to_4h",
        "blocks.{i}.ff.down": "transformer.h.{i}.mlp.dense_4h_to_h",
        "final_norm": "transformer.ln_f",
        "to_logits": "lm_head",
    },
    aliases={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"},
    ignored_keys=key_names(
        "attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi "
        "skip_bias_add skip_bias_add_qkv unk_token_id hidden_dropout attention_dropout"
    ),
)
