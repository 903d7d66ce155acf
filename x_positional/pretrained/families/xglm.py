"""XGLM: a decoder with sinusoidal positions that begin at 2, scaled embeddings and biases."""

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.causal import CAUSAL
from x_positional.pretrained.config_json.codecs import Fixed, Hf, Key, Only, derived, head_dim
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.bart import TABLE_BUFFERS, fixed_norms, scaled
from x_positional.pretrained.families.llama import ACTIVATIONS, tied
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import qkv
from x_positional.schemes import Sinusoidal


def _positions(hf: Hf) -> list[Sinusoidal]:
    if (hf.get("d_model") or 1024) % 2:
        raise ConfigError(
            f"unsupported d_model={hf['d_model']}: sinusoids of an odd width end with a zero in this family."
        )
    return [Sinusoidal(layout="concat", offset=2, endpoint=True)]


LAYER = "model.layers.{i}"
XGLM = Family(
    model_type="xglm",
    architecture="XGLMForCausalLM",
    codecs=(
        Key("num_tokens", "vocab_size", 256008),
        Key("max_seq_len", "max_position_embeddings", 2048),
        Key("layers.dim", "d_model", 1024),
        Key("layers.depth", "num_layers", 24),
        Key("layers.heads", "attention_heads", 16),
        head_dim(lambda hf: (hf.get("d_model") or 1024) // (hf.get("attention_heads") or 16)),
        Key("layers.ff.dim", "ffn_dim", 4096),
        Key("layers.ff.activation", "activation_function", "gelu", ACTIVATIONS),
        *fixed_norms("layers.norm"),
        *tied(True),
        CAUSAL,
        scaled(True),
        Fixed("layers.attn.bias", True),
        derived("layers.position", _positions),
        Only("pad_token_id", (1, 0, None), "the sinusoid of the position in that row would be zero: rows begin at 2."),
        Only("add_cross_attention", (False,), "a decoder with cross-attention is unsupported in this family."),
    ),
    names={
        "token_emb": "model.embed_tokens",
        "blocks.{i}.attn_residual.before": f"{LAYER}.self_attn_layer_norm",
        "blocks.{i}.attn.to_qkv": qkv(*(f"{LAYER}.self_attn.{p}_proj" for p in "qkv")),
        "blocks.{i}.attn.to_out": f"{LAYER}.self_attn.out_proj",
        "blocks.{i}.ff_residual.before": f"{LAYER}.final_layer_norm",
        "blocks.{i}.ff.up": f"{LAYER}.fc1",
        "blocks.{i}.ff.down": f"{LAYER}.fc2",
        "final_norm": "model.layer_norm",
        "to_logits": "lm_head",
    },
    aliases={"hidden_size": "d_model", "num_attention_heads": "attention_heads", "num_hidden_layers": "num_layers"},
    ignored_keys=key_names("activation_dropout layerdrop"),
    ignored_tensors=TABLE_BUFFERS,
)
