"""BART: learned positions with two unused rows at the start of the table, post-norm."""

from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Fixed, Hf, Key, Only, derived
from x_positional.pretrained.config_json.encoder_decoder import for_both, for_decoder, for_encoder
from x_positional.pretrained.families.bert import TIED, norms
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import Joined, Layout, Reshaped, qkv
from x_positional.schemes import Absolute

DIM = 1024


def _scaled(hf: Hf) -> Fields:
    return {"emb_scale": hf.get("d_model", DIM) ** 0.5 if hf.get("scale_embedding") else None}


def _side(name: str) -> tuple[Codec, ...]:
    """Codecs whose keys differ between encoder and decoder."""
    heads = f"{name}_attention_heads"

    return (
        Fixed("layers.kind", name),
        Key("layers.depth", f"{name}_layers", 12),
        Key("layers.heads", heads, 16),
        derived("layers.head_dim", lambda hf: hf.get("d_model", DIM) // (hf.get(heads) or 16)),
        Key("layers.ff.dim", f"{name}_ffn_dim", 4096),
    )


SHARED: tuple[Codec, ...] = (
    Key("num_tokens", "vocab_size", 50265),
    Key("max_seq_len", "max_position_embeddings", DIM),
    Key("layers.dim", "d_model", DIM),
    Key("layers.ff.activation", "activation_function", "gelu", ACTIVATIONS),
    *(codec for codec in norms(("layers.norm", "emb_norm"), "", 1e-5) if not codec.sets[0].endswith(".eps")),
    Fixed("layers.norm.eps", 1e-5),
    Fixed("emb_norm.eps", 1e-5),
    Fixed("layers.norm_place", "post"),
    Fixed("layers.attn.bias", True),
    Fixed("layers.position", [Absolute(offset=2, scale=1.0)]),
    Custom(
        ("emb_scale",),
        ("scale_embedding",),
        _scaled,
        lambda fields: {"scale_embedding": fields.get("emb_scale") is not None},
    ),
)


def _names(side: str, theirs: str) -> dict[str, str | Layout]:
    layer = f"model.{theirs}.layers.{{i}}"
    return {
        f"{side}.schemes.0": f"model.{theirs}.embed_positions",
        f"{side}.emb_norm": f"model.{theirs}.layernorm_embedding",
        f"{side}.blocks.{{i}}.attn.to_qkv": qkv(*(f"{layer}.self_attn.{p}_proj" for p in "qkv")),
        f"{side}.blocks.{{i}}.attn.to_out": f"{layer}.self_attn.out_proj",
        f"{side}.blocks.{{i}}.attn_residual.outer": f"{layer}.self_attn_layer_norm",
        f"{side}.blocks.{{i}}.ff.up": f"{layer}.fc1",
        f"{side}.blocks.{{i}}.ff.down": f"{layer}.fc2",
        f"{side}.blocks.{{i}}.ff_residual.outer": f"{layer}.final_layer_norm",
    }


BIAS = Reshaped("final_logits_bias", ours=lambda sizes: (-1,), theirs=lambda sizes: (1, -1))
CROSS = "model.decoder.layers.{i}.encoder_attn"

BART = Family(
    model_type="bart",
    architecture="BartForConditionalGeneration",
    kind="seq2seq",
    codecs=(
        *for_both(SHARED),
        Fixed("tie_token_emb", True),
        Only("is_causal", (True,), "decoders of encoder-decoders are causal."),
        *for_encoder(_side("encoder")),
        *for_decoder((*_side("decoder"), Fixed("layers.cross_attend", True), *TIED, Fixed("logits_bias", True))),
    ),
    names={
        "encoder.token_emb": "model.shared",
        "decoder.net.to_logits.bias": BIAS,
        "decoder.net.to_logits": "lm_head",
        "decoder.net.tied_bias": BIAS,
        **_names("encoder", "encoder"),
        **_names("decoder.net", "decoder"),
        "decoder.net.blocks.{i}.cross.to_q": f"{CROSS}.q_proj",
        "decoder.net.blocks.{i}.cross.to_kv": Joined((f"{CROSS}.k_proj", f"{CROSS}.v_proj")),
        "decoder.net.blocks.{i}.cross.to_out": f"{CROSS}.out_proj",
        "decoder.net.blocks.{i}.cross_residual.outer": "model.decoder.layers.{i}.encoder_attn_layer_norm",
    },
    optional={"decoder.logits_bias": "final_logits_bias"},
    copies={f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")},
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    },
    ignored_keys=frozenset(
        {
            "activation_dropout",
            "add_bias_logits",
            "add_final_layer_norm",
            "classif_dropout",
            "classifier_dropout",
            "decoder_layerdrop",
            "encoder_layerdrop",
            "extra_pos_embeddings",
            "force_bos_token_to_be_generated",
            "init_std",
            "normalize_before",
            "normalize_embedding",
            "save_step",
            "static_position_embeddings",
        }
    ),
    ignored_tensors=(r"(encoder|decoder)\.version$",),
)
"""Keys of the code that precedes transformers (`normalize_before`, ...) are ignored there too: mBART, which they were for, has
its own model_type."""
