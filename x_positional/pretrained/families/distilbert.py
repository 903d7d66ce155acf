"""DistilBERT: half of the layers of BERT, without token types."""

from x_positional.pretrained.config_json.codecs import Fixed, Key, Only, head_dim
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.bert import BERT, IDLE_BIAS, NORMED, POOLER
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.tensors.layouts import qkv

LAYER = "distilbert.transformer.layer.{i}"
DISTILBERT = BERT.like(
    "distilbert",
    "DistilBertForMaskedLM",
    codecs=(
        Key("layers.dim", "dim", 768),
        Key("layers.depth", "n_layers", 6),
        Key("layers.heads", "n_heads", 12),
        head_dim(lambda hf: (hf.get("dim") or 768) // (hf.get("n_heads") or 12)),
        Key("layers.ff.dim", "hidden_dim", 3072),
        *(Fixed(f"{place}.eps", 1e-12) for place in NORMED),
        Only("sinusoidal_pos_embds", (False, True), "it must be a bool."),
        Fixed("token_types", None),
        Key("layers.ff.activation", "activation", "gelu", ACTIVATIONS),
        Key("head.activation", "activation", "gelu", ACTIVATIONS),
    ),
    names={
        "token_emb": "distilbert.embeddings.word_embeddings",
        "token_type_emb": None,
        "schemes.0": "distilbert.embeddings.position_embeddings",
        "emb_norm": "distilbert.embeddings.LayerNorm",
        "blocks.{i}.attn.to_qkv": qkv(*(f"{LAYER}.attention.{p}_lin" for p in "qkv")),
        "blocks.{i}.attn.to_out": f"{LAYER}.attention.out_lin",
        "blocks.{i}.attn_residual.outer": f"{LAYER}.sa_layer_norm",
        "blocks.{i}.ff.up": f"{LAYER}.ffn.lin1",
        "blocks.{i}.ff.down": f"{LAYER}.ffn.lin2",
        "blocks.{i}.ff_residual.outer": f"{LAYER}.output_layer_norm",
        "head.linear": "vocab_transform",
        "head.norm": "vocab_layer_norm",
        "to_logits": "vocab_projector",
        "to_logits.bias": "vocab_projector.bias",
        "tied_bias": "vocab_projector.bias",
    },
    body_architecture="DistilBertModel",
    prefix="distilbert.",
    ignored_tensors=(*POOLER, IDLE_BIAS),
    copies={},
    aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    ignored_keys=key_names("qa_dropout seq_classif_dropout tie_weights_"),
)
"""Sinusoidal tables are stored, so that both kinds of positions are read from the checkpoint."""
