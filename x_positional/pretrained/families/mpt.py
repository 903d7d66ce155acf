"""MPT: ALiBi with slopes in another order, no biases, optionally clipped projections."""

import math
from typing import Any

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.causal import causal_only
from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf, Key, Only, derived
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.llama import tied
from x_positional.pretrained.families.sizes import even_heads
from x_positional.pretrained.family import Family
from x_positional.schemes import Alibi

WIDTH, HEADS, EXPONENT = 2048, 16, 8
ATTENTION_KEYS = {
    "attn_type": ("multihead_attention", "shared key heads are unsupported in this family."),
    "prefix_lm": (False, "bidirectional attention over a prefix is unsupported."),
    "qk_ln": (False, "norms of queries and keys are unsupported in this family."),
    "attn_uses_sequence_id": (False, "pass document_ids= to the model instead."),
    "alibi": (True, "learned positions are unsupported in this family."),
}
"""Key of `attn_config` -> the supported value, and why others are unsupported."""


def mpt_slopes(heads: int, exponent: float = EXPONENT) -> tuple[float, ...]:
    """2^(-exponent h / n), h = 1..n, n = `heads` rounded up to a power of two. If n > heads: h = 2, 4, ..., then 1, 3, ...
    (Press et al. 2021, arXiv:2108.12409, section 3, in MPT's order).
    """
    above = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-exponent * h / above) for h in range(1, above + 1)]
    return tuple(slopes if above == heads else (slopes[1::2] + slopes[::2])[:heads])


def _attention_fields(hf: Hf) -> Fields:
    inner = hf.get("attn_config") or {}
    wrong = [
        f"attn_config.{key}={inner[key]!r}: {why}"
        for key, (value, why) in ATTENTION_KEYS.items()
        if inner.get(key, value) != value
    ]
    if wrong:
        raise ConfigError(" ".join(wrong))
    width, heads = hf.get("d_model", WIDTH), hf.get("n_heads", HEADS)
    return {
        "layers.position": [Alibi(slopes=mpt_slopes(heads, inner.get("alibi_bias_max", EXPONENT)))],
        "layers.attn.clip": inner.get("clip_qkv") or None,
        "layers.attn.scale": (width / heads) ** -0.5 if inner.get("softmax_scale") is None else inner["softmax_scale"],
    }


def _attention_keys(fields: Fields) -> dict[str, Any]:
    """alibi_bias_max is left at its default, the only value that transformers implements."""
    scale, default = fields.get("layers.attn.scale"), (fields["layers.dim"] / fields["layers.heads"]) ** -0.5
    own = {} if scale == default else {"softmax_scale": scale}
    return {"attn_config": {"clip_qkv": fields.get("layers.attn.clip"), **own}}


MPT = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    prefix="transformer.",
    codecs=(
        Key("num_tokens", "vocab_size", 50368),
        Key("max_seq_len", "max_seq_len", 2048),
        Key("layers.dim", "d_model", WIDTH),
        Key("layers.depth", "n_layers", 24),
        Key("layers.heads", "n_heads", HEADS),
        even_heads("d_model", "n_heads", (WIDTH, HEADS)),
        derived("layers.ff.dim", lambda hf: 4 * hf.get("d_model", WIDTH)),
        Custom(
            ("layers.position", "layers.attn.clip", "layers.attn.scale"),
            ("attn_config",),
            _attention_fields,
            _attention_keys,
        ),
        *tied(True),
        Fixed("layers.norm.kind", "layer"),
        Fixed("layers.norm.unit_offset", False),
        Key("layers.norm.eps", "layer_norm_epsilon", 1e-5),
        causal_only("ALiBi of this family is defined for causal attention only."),
        Fixed("layers.ff.bias", False),
        Only("expansion_ratio", (4,), "transformers' feedforward is always four times as wide as the model."),
        Only("no_bias", (True,), "biases are unsupported in this family."),
        Only("logit_scale", (None,), "scaled logits are unsupported in this family."),
        Only("norm_type", ("low_precision_layernorm", "layernorm"), "other norms are unsupported in this family."),
    ),
    names={
        "token_emb": "transformer.wte",
        "blocks.{i}.attn_residual.before": "transformer.blocks.{i}.norm_1",
        "blocks.{i}.attn.to_qkv": "transformer.blocks.{i}.attn.Wqkv",
        "blocks.{i}.attn.to_out": "transformer.blocks.{i}.attn.out_proj",
        "blocks.{i}.ff_residual.before": "transformer.blocks.{i}.norm_2",
        "blocks.{i}.ff.up": "transformer.blocks.{i}.ffn.up_proj",
        "blocks.{i}.ff.down": "transformer.blocks.{i}.ffn.down_proj",
        "final_norm": "transformer.norm_f",
        "to_logits": "lm_head",
    },
    aliases={"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    ignored_keys=key_names(
        "learned_pos_emb embedding_fraction emb_pdrop init_device init_config tokenizer_name verbose"
    ),
)
