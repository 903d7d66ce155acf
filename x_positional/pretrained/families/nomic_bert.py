"""Nomic BERT: BERT with RoPE, a gated feedforward, and fused query, key and value projections."""

from x_positional.pretrained.config_json.codecs import Codec, Fixed, Key, Only, agrees
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.bert import BERT, IDLE_BIAS, POOLER, sizes
from x_positional.pretrained.families.llama import ROPE
from x_positional.pretrained.tensors.layouts import Joined

ACTIVATION = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}
SIZES: tuple[Codec, ...] = (
    *(codec for codec in sizes(768, 12, 12, 3072, 30528) if "layers.head_dim" not in codec.sets),
    Key("max_seq_len", "max_position_embeddings", 2048),
    Key("layers.head_dim", "head_dim", lambda hf: hf["hidden_size"] // hf["num_attention_heads"]),
)
UNREAD = {
    "activation_function": ("swiglu",),
    "causal": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "parallel_block": (False,),
    "parallel_block_tied_norm": (False,),
    "prenorm": (False,),
    "qkv_proj_bias": (False,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "use_rms_norm": (False,),
}
"""Keys of the code that precedes transformers -> the values that transformers computes."""


NOMIC_BERT = BERT.like(
    "nomic_bert",
    "NomicBertForMaskedLM",
    codecs=(
        *SIZES,
        ROPE,
        Fixed("layers.attn.bias", False),
        Fixed("layers.ff.bias", False),
        Fixed("layers.ff.glu", True),
        Key("layers.ff.activation", "hidden_act", "silu", ACTIVATION),
        Key("head.activation", "hidden_act", "silu", ACTIVATION),
        *(Only(key, values, "transformers ignores this key.") for key, values in UNREAD.items()),
        agrees("layer_norm_epsilon", lambda hf: hf.get("layer_norm_eps", 1e-12)),
    ),
    names={
        "token_emb": "nomic_bert.embeddings.word_embeddings",
        "token_type_emb": "nomic_bert.embeddings.token_type_embeddings",
        "schemes.0": None,
        "emb_norm": "nomic_bert.emb_ln",
        "blocks.{i}.attn.to_qkv": "nomic_bert.encoder.layers.{i}.attn.Wqkv",
        "blocks.{i}.attn.to_out": "nomic_bert.encoder.layers.{i}.attn.out_proj",
        "blocks.{i}.attn_residual.outer": "nomic_bert.encoder.layers.{i}.norm1",
        "blocks.{i}.ff.up": Joined(
            ("nomic_bert.encoder.layers.{i}.mlp.fc11", "nomic_bert.encoder.layers.{i}.mlp.fc12")
        ),
        "blocks.{i}.ff.down": "nomic_bert.encoder.layers.{i}.mlp.fc2",
        "blocks.{i}.ff_residual.outer": "nomic_bert.encoder.layers.{i}.norm2",
        "head.norm": "cls.predictions.transform.layer_norm",
    },
    defaults={"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12},
    older_names={
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
    },
    ignored_keys=key_names(
        "dense_seq_output fused_bias_fc fused_dropout_add_ln max_trained_positions pad_vocab_size_multiple "
        "use_flash_attn use_xentropy"
    ),
    body_architecture="NomicBertModel",
    prefix="nomic_bert.",
    ignored_tensors=(*POOLER, IDLE_BIAS, r"inv_freq$"),
)
