"""OPT: learned positions with two unused rows; the 350m model is post-norm with narrower embeddings."""

from typing import Any

from x_positional.pretrained.config_json.causal import CAUSAL
from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Fixed, Hf, Key
from x_positional.pretrained.families.llama import ACTIVATIONS, tied
from x_positional.pretrained.families.sizes import even_heads
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import qkv
from x_positional.schemes import Absolute

BETWEEN = {"emb_proj_bias": False, "emb_proj_first": True, "logits_proj": True}
"""The projections between embeddings and model where their widths differ."""


def _width_fields(hf: Hf) -> Fields:
    width = hf.get("hidden_size", 768)
    emb_dim = hf.get("word_embed_proj_dim") or width
    return {"emb_dim": emb_dim} | ({} if emb_dim == width else BETWEEN)


def _affine_fields(hf: Hf) -> Fields:
    """Norms with gain and bias, or with neither."""
    affine = hf.get("layer_norm_elementwise_affine", True)
    return {"layers.norm.gain": affine, "layers.norm.bias": affine, "layers.norm.unit_offset": not affine}


def _final_fields(hf: Hf) -> Fields:
    return {"layers.final_norm": hf.get("do_layer_norm_before", True) and not hf.get("_remove_final_layer_norm", False)}


def _final_keys(fields: Fields) -> dict[str, Any]:
    return {"_remove_final_layer_norm": fields["layers.norm_place"] == "pre" and not fields["layers.final_norm"]}


NORMS: tuple[Codec, ...] = (
    Fixed("layers.norm.kind", "layer"),
    Fixed("layers.norm.eps", 1e-5),
    Key("layers.norm_place", "do_layer_norm_before", True, {True: "pre", False: "post"}),
    Custom(
        ("layers.norm.gain", "layers.norm.bias"),
        ("layer_norm_elementwise_affine",),
        _affine_fields,
        lambda fields: {"layer_norm_elementwise_affine": fields["layers.norm.gain"]},
    ),
    Custom(("layers.final_norm",), ("_remove_final_layer_norm",), _final_fields, _final_keys),
)

OPT = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    codecs=(
        Key("num_tokens", "vocab_size", 50272),
        Key("max_seq_len", "max_position_embeddings", 2048),
        Key("layers.dim", "hidden_size", 768),
        Key("layers.depth", "num_hidden_layers", 12),
        Key("layers.heads", "num_attention_heads", 12),
        even_heads("hidden_size", "num_attention_heads", (768, 12)),
        Key("layers.ff.dim", "ffn_dim", 3072),
        Key("layers.ff.activation", "activation_function", "relu", ACTIVATIONS),
        Custom(
            ("emb_dim", *BETWEEN),
            ("word_embed_proj_dim",),
            _width_fields,
            lambda fields: {"word_embed_proj_dim": fields["emb_dim"]},
        ),
        *tied(True),
        *NORMS,
        Fixed("layers.position", [Absolute(offset=2, scale=1.0)]),
        CAUSAL,
        Key("layers.attn.bias", "enable_bias", True),
        Key("layers.ff.bias", "enable_bias", True),
    ),
    names={
        "token_emb": "model.decoder.embed_tokens",
        "schemes.0": "model.decoder.embed_positions",
        "project_emb": "model.decoder.project_in",
        "blocks.{i}.attn_residual.before": "model.decoder.layers.{i}.self_attn_layer_norm",
        "blocks.{i}.attn_residual.outer": "model.decoder.layers.{i}.self_attn_layer_norm",
        "blocks.{i}.attn.to_qkv": qkv(*(f"model.decoder.layers.{{i}}.self_attn.{p}_proj" for p in "qkv")),
        "blocks.{i}.attn.to_out": "model.decoder.layers.{i}.self_attn.out_proj",
        "blocks.{i}.ff_residual.before": "model.decoder.layers.{i}.final_layer_norm",
        "blocks.{i}.ff_residual.outer": "model.decoder.layers.{i}.final_layer_norm",
        "blocks.{i}.ff.up": "model.decoder.layers.{i}.fc1",
        "blocks.{i}.ff.down": "model.decoder.layers.{i}.fc2",
        "final_norm": "model.decoder.final_layer_norm",
        "project_out": "model.decoder.project_out",
        "to_logits": "lm_head",
    },
    ignored_keys=frozenset(("layerdrop", "init_std", "activation_dropout", "init_bias")),
)
