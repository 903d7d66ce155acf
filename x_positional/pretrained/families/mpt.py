"""MPT: ALiBi with slopes in an order of its own, no biases, projections that may be clipped."""

import math
from typing import Any

from x_positional.pretrained.config_json.codecs import Both, Fields, Fixed, Hf, Key, Only
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.llama import tied
from x_positional.pretrained.families.sizes import even_heads
from x_positional.pretrained.family import Family
from x_positional.schemes import Alibi

WIDTH, HEADS, EXPONENT = 2048, 16, 8
INNER = {
    "attn_type": ("multihead_attention", "keys are shared between heads, for which these files have no place."),
    "prefix_lm": (False, "the start of a text would be read both ways."),
    "qk_ln": (False, "queries and keys would be normed, for which these files have no place."),
    "attn_uses_sequence_id": (False, "say document_ids= in the call instead."),
    "alibi": (True, "positions would be a learned table, for which these files have no place."),
}
"""Keys of `attn_config` -> the value that is followed, and what another one would mean."""


def mpt_slopes(heads: int, exponent: float = EXPONENT) -> tuple[float, ...]:
    """2^(-exponent h / n), h = 1..n, n the power of two from `heads` up; where that is more than the heads, every other one
    comes first: h = 2, 4, ..., then 1, 3, ... (Press et al. 2021, arXiv:2108.12409, section 3, in MPT's order)."""
    above = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-exponent * h / above) for h in range(1, above + 1)]
    return tuple(slopes if above == heads else (slopes[1::2] + slopes[::2])[:heads])


def _attention_fields(hf: Hf) -> Fields:
    inner = hf.get("attn_config") or {}
    wrong = [
        f"attn_config.{key}={inner[key]!r}: {why}"
        for key, (value, why) in INNER.items()
        if inner.get(key, value) != value
    ]
    if wrong:
        raise ValueError(" ".join(wrong))
    width, heads = hf.get("d_model", WIDTH), hf.get("n_heads", HEADS)
    return {
        "layers.position": [Alibi(slopes=mpt_slopes(heads, inner.get("alibi_bias_max", EXPONENT)))],
        "layers.attn.clip": inner.get("clip_qkv") or None,
        "layers.attn.scale": (width / heads) ** -0.5 if inner.get("softmax_scale") is None else inner["softmax_scale"],
    }


def _attention_keys(config: Fields) -> dict[str, Any]:
    """alibi_bias_max is left at its default, the only value that transformers follows."""
    scale, usual = config.get("layers.attn.scale"), (config["layers.dim"] / config["layers.heads"]) ** -0.5
    said = {} if scale == usual else {"softmax_scale": scale}
    return {"attn_config": {"clip_qkv": config.get("layers.attn.clip"), **said}}


MPT = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    base="transformer.",
    fields=(
        Key("num_tokens", "vocab_size", 50368),
        Key("max_seq_len", "max_seq_len", 2048),
        Key("layers.dim", "d_model", WIDTH),
        Key("layers.depth", "n_layers", 24),
        Key("layers.heads", "n_heads", HEADS),
        even_heads("d_model", "n_heads", (WIDTH, HEADS)),
        Both(("layers.ff.dim",), (), lambda hf: {"layers.ff.dim": 4 * hf.get("d_model", WIDTH)}, lambda config: {}),
        Both(
            ("layers.position", "layers.attn.clip", "layers.attn.scale"),
            ("attn_config",),
            _attention_fields,
            _attention_keys,
        ),
        *tied(True),
        Fixed("layers.norm.kind", "layer"),
        Fixed("layers.norm.unit_offset", False),
        Key("layers.norm.eps", "layer_norm_epsilon", 1e-5),
        Fixed("layers.kind", "decoder"),
        Fixed("layers.ff.bias", False),
        Only("expansion_ratio", (4,), "the feedforward of these files is four times as wide as the model."),
        Only("no_bias", (True,), "these files have no place for biases."),
        Only("logit_scale", (None,), "logits of these files are not scaled."),
        Only("norm_type", ("low_precision_layernorm", "layernorm"), "these files have LayerNorms."),
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
    harmless=key_names("learned_pos_emb embedding_fraction emb_pdrop init_device init_config tokenizer_name verbose"),
)
