"""T5 1.0 and 1.1 (Flan), mT5 and UMT5: bucketed relative bias, unscaled scores, RMS norms, no biases."""

from typing import Any

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Fixed, Hf, Key
from x_positional.pretrained.config_json.encoder_decoder import for_both, for_decoder, for_encoder
from x_positional.pretrained.families.llama import rms_norms
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import ByGate, Joined, Layout, Same, qkv
from x_positional.schemes import T5 as Buckets

T5_ACTIVATIONS = {
    "relu": "relu",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


KEYS = ("relative_attention_num_buckets", "relative_attention_max_distance")


def _feedforward_fields(hf: Hf, default: str) -> Fields:
    """`gated-gelu` is the tanh approximation; `gelu`, and `gated-` with any other activation, are literal."""
    projection = hf.get("feed_forward_proj") or default
    *gated, word = projection.split("-")
    word = hf.get("dense_act_fn") or ("gelu_new" if projection == "gated-gelu" else word)
    if word not in T5_ACTIVATIONS or gated not in ([], ["gated"]):
        raise ConfigError(
            f"unsupported feed_forward_proj={projection!r} (dense_act_fn={word!r}); supported: {', '.join(T5_ACTIVATIONS)}, "
            "optionally preceded by gated-."
        )
    glu = bool(gated) if hf.get("is_gated_act") is None else hf["is_gated_act"]
    return {"layers.ff.activation": T5_ACTIVATIONS[word], "layers.ff.glu": glu}


def _feedforward_keys(fields: Fields) -> dict[str, Any]:
    glu, activation = fields.get("layers.ff.glu"), fields.get("layers.ff.activation")
    plain = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
    gated = {"gelu_tanh": "gelu", "gelu": "gelu_python"}
    word = (gated if glu else plain).get(str(activation), str(activation))
    return {"feed_forward_proj": f"gated-{word}" if glu else word}


def buckets(per_layer: bool = False) -> Codec:
    """The bias of distances. per_layer: each layer has a table of its own."""

    def to_fields(hf: Hf) -> Fields:
        count, furthest = hf.get(KEYS[0]) or 32, hf.get(KEYS[1]) or 128
        return {"layers.position": [Buckets(num_buckets=count, max_distance=furthest, per_layer=per_layer)]}

    return Custom(("layers.position",), KEYS, to_fields, _bucket_keys)


def _bucket_keys(fields: Fields) -> dict[str, Any]:
    match fields.get("layers.position"):
        case (Buckets(num_buckets=count, max_distance=furthest),):
            return {KEYS[0]: count, KEYS[1]: furthest}
        case _:
            return {}


def _head_fields(hf: Hf) -> Fields:
    """T5 1.0 scales the input of the head; T5 1.1 and UMT5 disable that with `tie_word_embeddings: false`. Whether the head is
    really tied to the embedding is inferred from the tensors.
    """
    scaled = hf.get("scale_decoder_outputs")
    if scaled is None:
        scaled = hf.get("tie_word_embeddings") is not False
    return {"tie_embedding": True, "logits_scale": hf.get("d_model", 512) ** -0.5 if scaled else None}


HEAD = Custom(
    ("tie_embedding", "logits_scale"),
    ("tie_word_embeddings", "scale_decoder_outputs"),
    _head_fields,
    lambda fields: {"tie_word_embeddings": fields.get("logits_scale") is not None},
)


def feedforward(default: str) -> Codec:
    """The activation, and whether the feedforward is gated. default: of `feed_forward_proj`."""
    return Custom(
        ("layers.ff.activation", "layers.ff.glu"),
        ("feed_forward_proj", "dense_act_fn", "is_gated_act"),
        lambda hf: _feedforward_fields(hf, default),
        _feedforward_keys,
    )


SIDE: tuple[Codec, ...] = (
    Key("num_tokens", "vocab_size", 32128),
    Key("max_seq_len", "n_positions", 512),
    Key("layers.dim", "d_model", 512),
    Key("layers.heads", "num_heads", 8),
    Key("layers.head_dim", "d_kv", 64),
    Key("layers.ff.dim", "d_ff", 2048),
    feedforward("relu"),
    Fixed("layers.ff.bias", False),
    *rms_norms("layer_norm_epsilon", 1e-6),
    Fixed("layers.attn.scale", 1.0),
    buckets(),
)
DECODER: tuple[Codec, ...] = (
    Fixed("layers.kind", "decoder"),
    Fixed("layers.cross_attend", True),
    Fixed("tie_embedding_scale", 1.0),
)


def _names(side: str, theirs: str, feedforward: int) -> dict[str, str | Layout]:
    """Names of one side. feedforward: its index among the layers of a block."""
    block = f"{theirs}.block.{{i}}.layer"
    dense = f"{block}.{feedforward}.DenseReluDense"
    return {
        f"{side}.schemes.0": f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{side}.blocks.{{i}}.attn_residual.before": f"{block}.0.layer_norm",
        f"{side}.blocks.{{i}}.attn.to_qkv": qkv(*(f"{block}.0.SelfAttention.{p}" for p in "qkv")),
        f"{side}.blocks.{{i}}.attn.to_out": f"{block}.0.SelfAttention.o",
        f"{side}.blocks.{{i}}.ff_residual.before": f"{block}.{feedforward}.layer_norm",
        f"{side}.blocks.{{i}}.ff.up": ByGate(Same(f"{dense}.wi"), Joined((f"{dense}.wi_1", f"{dense}.wi_0"))),
        f"{side}.blocks.{{i}}.ff.down": f"{dense}.wo",
        f"{side}.final_norm": f"{theirs}.final_layer_norm",
    }


CROSS = "decoder.block.{i}.layer.1"
T5 = Family(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    body_architecture="T5EncoderModel",
    kind="seq2seq",
    prefix="",
    codecs=(
        *for_both(SIDE),
        Fixed("tie_token_emb", True),
        *for_encoder((Fixed("layers.kind", "encoder"), Key("layers.depth", "num_layers", 6))),
        *for_decoder(
            (
                *DECODER,
                Key("layers.depth", "num_decoder_layers", lambda hf: hf.get("num_layers", 6)),
                HEAD,
            )
        ),
    ),
    names={
        "encoder.token_emb": "shared",
        "decoder.net.to_logits": "lm_head",
        **_names("encoder", "encoder", 1),
        **_names("decoder.net", "decoder", 2),
        "decoder.net.blocks.{i}.cross_residual.before": f"{CROSS}.layer_norm",
        "decoder.net.blocks.{i}.cross.to_q": f"{CROSS}.EncDecAttention.q",
        "decoder.net.blocks.{i}.cross.to_kv": Joined((f"{CROSS}.EncDecAttention.k", f"{CROSS}.EncDecAttention.v")),
        "decoder.net.blocks.{i}.cross.to_out": f"{CROSS}.EncDecAttention.o",
    },
    copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
    inferred=("decoder.tie_embedding",),
    ignored_tensors=(r"EncDecAttention\.relative_attention_bias",),
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
    ignored_keys=frozenset({"dropout_rate", "classifier_dropout", "output_past"}),
)
MT5 = T5.like(
    "mt5",
    "MT5ForConditionalGeneration",
    body_architecture="MT5EncoderModel",
    codecs=(
        *for_both(
            (
                Key("num_tokens", "vocab_size", 250112),
                Key("layers.heads", "num_heads", 6),
                Key("layers.ff.dim", "d_ff", 1024),
                feedforward("gated-gelu"),
            )
        ),
        *for_encoder((Key("layers.depth", "num_layers", 8),)),
        *for_decoder(
            (
                Key("layers.depth", "num_decoder_layers", lambda hf: hf.get("num_layers", 8)),
                Fixed("logits_scale", None),
                Fixed("tie_embedding", True),
            )
        ),
    ),
    ignored_keys=T5.ignored_keys | {"tie_word_embeddings", "tokenizer_class"},
)
UMT5 = MT5.like(
    "umt5",
    "UMT5ForConditionalGeneration",
    body_architecture="UMT5EncoderModel",
    codecs=(
        *for_both((buckets(per_layer=True),)),
        *for_decoder((HEAD,)),
    ),
    names={
        "encoder.schemes.0": None,
        "decoder.net.schemes.0": None,
        "encoder.schemes.{i}": "encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias",
        "decoder.net.schemes.{i}": "decoder.block.{i}.layer.0.SelfAttention.relative_attention_bias",
    },
    ignored_keys=(MT5.ignored_keys - {"tie_word_embeddings"}) | {"scalable_attention"},
)
