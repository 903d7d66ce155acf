"""BART: learned positions with two unused rows at the start of the table, post-norm."""

from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Fixed, Hf, Key, derived
from x_positional.pretrained.config_json.encoder_decoder import for_both, for_decoder, for_encoder
from x_positional.pretrained.families.bert import TIED
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import Joined, Layout, Reshaped, qkv
from x_positional.schemes import Absolute

DIM = 1024


def scaled(default: bool) -> Codec:
    """Whether embeddings are multiplied by the root of their width."""

    def to_fields(hf: Hf) -> Fields:
        on = default if hf.get("scale_embedding") is None else hf["scale_embedding"]
        return {"emb_scale": hf.get("d_model", DIM) ** 0.5 if on else None}

    return Custom(
        ("emb_scale",),
        ("scale_embedding",),
        to_fields,
        lambda fields: {"scale_embedding": fields.get("emb_scale") is not None},
    )


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
    Fixed("layers.attn.bias", True),
    scaled(False),
)
POST: tuple[Codec, ...] = (Fixed("layers.norm_place", "post"),)
LEARNED: tuple[Codec, ...] = (Fixed("layers.position", [Absolute(offset=2, scale=1.0)]),)


def fixed_norms(*places: str) -> tuple[Codec, ...]:
    """LayerNorms with gain, bias and torch's eps."""
    values = {"kind": "layer", "bias": True, "unit_offset": False, "eps": 1e-5}
    return tuple(Fixed(f"{place}.{name}", value) for place in places for name, value in values.items())


def bart_codecs(*both: Codec, decoder: tuple[Codec, ...] = (Fixed("logits_bias", True),)) -> tuple[Codec, ...]:
    """Codecs of an encoder-decoder with BART's keys. both: further codecs of either side."""
    return (
        *for_both((*SHARED, *both)),
        Fixed("tie_token_emb", True),
        *for_encoder(_side("encoder")),
        *for_decoder((*_side("decoder"), Fixed("layers.cross_attend", True), *TIED, *decoder)),
    )


def _names(side: str, theirs: str, norm: str) -> dict[str, str | Layout]:
    """Names of one side. norm: which norm of a branch it has."""
    layer = f"model.{theirs}.layers.{{i}}"
    return {
        f"{side}.blocks.{{i}}.attn.to_qkv": qkv(*(f"{layer}.self_attn.{p}_proj" for p in "qkv")),
        f"{side}.blocks.{{i}}.attn.to_out": f"{layer}.self_attn.out_proj",
        f"{side}.blocks.{{i}}.attn_residual.{norm}": f"{layer}.self_attn_layer_norm",
        f"{side}.blocks.{{i}}.ff.up": f"{layer}.fc1",
        f"{side}.blocks.{{i}}.ff.down": f"{layer}.fc2",
        f"{side}.blocks.{{i}}.ff_residual.{norm}": f"{layer}.final_layer_norm",
    }


BIAS = Reshaped("final_logits_bias", ours=lambda sizes: (-1,), theirs=lambda sizes: (1, -1))
CROSS = "model.decoder.layers.{i}.encoder_attn"
SIDES = {"encoder": "encoder", "decoder.net": "decoder"}
"""Side of x_positional -> side of the published names."""
EMB_NORMS = {f"{ours}.emb_norm": f"model.{theirs}.layernorm_embedding" for ours, theirs in SIDES.items()}
TABLES = {f"{ours}.schemes.0": f"model.{theirs}.embed_positions" for ours, theirs in SIDES.items()}
FINAL_NORMS = {f"{ours}.final_norm": f"model.{theirs}.layer_norm" for ours, theirs in SIDES.items()}
TABLE_BUFFERS = (r"embed_positions\.weights?$",)
"""Sinusoids of older files, which are computed."""


def bart_names(norm: str) -> dict[str, str | Layout]:
    """Names of what all models like BART have. norm: which norm of a branch they have, `outer` or `before`."""
    return {
        "encoder.token_emb": "model.shared",
        "decoder.net.to_logits.bias": BIAS,
        "decoder.net.to_logits": "lm_head",
        "decoder.net.tied_bias": BIAS,
        **_names("encoder", "encoder", norm),
        **_names("decoder.net", "decoder", norm),
        "decoder.net.blocks.{i}.cross.to_q": f"{CROSS}.q_proj",
        "decoder.net.blocks.{i}.cross.to_kv": Joined((f"{CROSS}.k_proj", f"{CROSS}.v_proj")),
        "decoder.net.blocks.{i}.cross.to_out": f"{CROSS}.out_proj",
        f"decoder.net.blocks.{{i}}.cross_residual.{norm}": "model.decoder.layers.{i}.encoder_attn_layer_norm",
    }


BART = Family(
    model_type="bart",
    architecture="BartForConditionalGeneration",
    kind="seq2seq",
    codecs=bart_codecs(*fixed_norms("layers.norm", "emb_norm"), *POST, *LEARNED),
    names={**bart_names("outer"), **EMB_NORMS, **TABLES},
    optional={"decoder.logits_bias": "final_logits_bias"},
    copies={f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")},
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    },
    ignored_keys=frozenset(
        {
            "_num_labels",
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
