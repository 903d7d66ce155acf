"""T5Gemma: an encoder and a decoder like Gemma 2, with cross-attention between norms; each has a config and an embedding."""

from x_positional.pretrained.config_json.codecs import Codec, Custom, Fixed, Key
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.nested_sides import NestedSide
from x_positional.pretrained.families.gemma import GEMMA2
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import Joined, Layout, qkv

LEFT_OUT = {
    "layers.kind",
    "tie_embedding",
    "tie_embedding_scale",
    "only use_bidirectional_attention",
    "only pretraining_tp",
}
"""Fields of Gemma 2 that a side sets in its own way."""


def _side(kind: str, left_out: tuple[str, ...] = (), more: tuple[Codec, ...] = ()) -> NestedSide:
    """A side with Gemma 2's settings."""
    kept = tuple(codec for codec in GEMMA2.codecs if not {*LEFT_OUT, *left_out} & set(codec.sets))
    return NestedSide(kind, (*kept, Fixed("layers.kind", kind), *more), f"{kind}.", GEMMA2.defaults)


def _names(side: str, theirs: str) -> dict[str, str | Layout]:
    layer = f"model.{theirs}.layers.{{i}}"
    return {
        f"{side}.token_emb": f"model.{theirs}.embed_tokens",
        f"{side}.blocks.{{i}}.attn_residual.before": f"{layer}.pre_self_attn_layernorm",
        f"{side}.blocks.{{i}}.attn.to_qkv": qkv(*(f"{layer}.self_attn.{p}_proj" for p in "qkv")),
        f"{side}.blocks.{{i}}.attn.to_out": f"{layer}.self_attn.o_proj",
        f"{side}.blocks.{{i}}.attn_residual.after": f"{layer}.post_self_attn_layernorm",
        f"{side}.blocks.{{i}}.ff_residual.before": f"{layer}.pre_feedforward_layernorm",
        f"{side}.blocks.{{i}}.ff.up": Joined((f"{layer}.mlp.up_proj", f"{layer}.mlp.gate_proj")),
        f"{side}.blocks.{{i}}.ff.down": f"{layer}.mlp.down_proj",
        f"{side}.blocks.{{i}}.ff_residual.after": f"{layer}.post_feedforward_layernorm",
        f"{side}.final_norm": f"model.{theirs}.norm",
    }


CROSS = "model.decoder.layers.{i}"
T5GEMMA = Family(
    model_type="t5gemma",
    architecture="T5GemmaForConditionalGeneration",
    body_architecture="T5GemmaEncoderModel",
    kind="seq2seq",
    codecs=(
        _side("encoder", ("logits_softcap",)),
        _side("decoder", (), (Fixed("layers.cross_attend", True), Fixed("tie_embedding_scale", 1.0))),
        Custom(
            ("decoder.layers.context_dim",),
            ("encoder",),
            lambda hf: {"decoder.layers.context_dim": (hf.get("encoder") or {}).get("hidden_size") or 2304},
            lambda fields: {},
        ),
        Key("decoder.tie_embedding", "tie_word_embeddings", True),
        Fixed("tie_token_emb", False),
    ),
    names={
        **_names("encoder", "encoder"),
        **_names("decoder.net", "decoder"),
        "decoder.net.to_logits": "lm_head.out_proj",
        "decoder.net.blocks.{i}.cross_residual.before": f"{CROSS}.pre_cross_attn_layernorm",
        "decoder.net.blocks.{i}.cross.to_q": f"{CROSS}.cross_attn.q_proj",
        "decoder.net.blocks.{i}.cross.to_kv": Joined((f"{CROSS}.cross_attn.k_proj", f"{CROSS}.cross_attn.v_proj")),
        "decoder.net.blocks.{i}.cross.to_out": f"{CROSS}.cross_attn.o_proj",
        "decoder.net.blocks.{i}.cross_residual.after": f"{CROSS}.post_cross_attn_layernorm",
    },
    ignored_keys=key_names(
        "dropout_rate classifier_dropout_rate vocab_size add_cross_attention cross_attention_hidden_size hidden_act "
        "tie_word_embeddings final_logit_softcapping"
    ),
    ignored_tensors=(r"rotary_emb\.inv_freq$",),
)
"""The keys beside `encoder` and `decoder` are about training, but for the tie of the head to the decoder's embedding."""
