"""DeBERTa v2 and v3: BERT with disentangled attention over bucketed distances."""

from typing import Any

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Hf, Key, Only, WriteOnly, agrees
from x_positional.pretrained.families.bert import BERT, GAMMA, IDLE_BIAS, POOLER, norms, sizes
from x_positional.pretrained.tensors.layouts import qkv
from x_positional.schemes import Absolute
from x_positional.schemes import Deberta as Disentangled
from x_positional.schemes.deberta import Terms

NORMED = ("layers.norm", "emb_norm", "head.norm")
EPS = 1e-7
SINGLE: tuple[Terms, ...] = ("c2p", "p2c")
KEYS = (
    "relative_attention",
    "pos_att_type",
    "position_buckets",
    "max_relative_positions",
    "norm_rel_ebd",
    "layer_norm_eps",
    "position_biased_input",
    "share_att_key",
    "max_position_embeddings",
)


def _terms(hf: Hf) -> Terms | None:
    listed = hf.get("pos_att_type") or []
    words = {word.strip() for word in (listed.lower().split("|") if isinstance(listed, str) else listed)}
    if {"c2p", "p2c"} <= words:
        return "both"
    return next((term for term in SINGLE if term in words), None)


def _normed(hf: Hf) -> float | None:
    """The eps of the norm of the position table, None without one."""
    kinds = [word.strip() for word in str(hf.get("norm_rel_ebd") or "none").lower().split("|")]
    return hf.get("layer_norm_eps", EPS) if "layer_norm" in kinds else None


def _position_fields(hf: Hf) -> Fields:
    terms, shared = _terms(hf), bool(hf.get("share_att_key", False))
    if not hf.get("relative_attention") or terms is None:
        raise ConfigError(
            f"unsupported relative_attention={hf.get('relative_attention')}, pos_att_type={hf.get('pos_att_type')!r}: "
            "DeBERTa without relative attention is another architecture."
        )
    if not shared and terms != "both":
        raise ConfigError(
            f"unsupported pos_att_type={hf.get('pos_att_type')!r} with share_att_key=False: separate projections need both "
            "terms, c2p and p2c."
        )
    length, buckets = hf.get("max_position_embeddings", 512), hf.get("position_buckets", -1)
    furthest = hf.get("max_relative_positions", -1)
    table = Disentangled(
        num_buckets=buckets if buckets > 0 else None,
        max_distance=furthest if furthest > 0 else length,
        terms=terms,
        norm_eps=_normed(hf),
    )
    width = hf.get("hidden_size", 1536) // hf.get("num_attention_heads", 24)
    return {
        "layers.position": [table, Absolute(scale=1.0)] if hf.get("position_biased_input", True) else [table],
        "layers.attn.scale": (width * (3 if terms == "both" else 2)) ** -0.5,
        "layers.attn.position_projections": not shared,
    }


def _position_keys(fields: Fields) -> dict[str, Any]:
    match fields.get("layers.position"):
        case (Disentangled() as table, *rest) if len(rest) < 2:
            terms = list(SINGLE) if table.terms == "both" else [table.terms]
            return {
                "relative_attention": True,
                "pos_att_type": terms,
                "position_buckets": table.num_buckets or -1,
                "max_relative_positions": table.max_distance,
                "position_biased_input": bool(rest),
                "norm_rel_ebd": "none" if table.norm_eps is None else "layer_norm",
                "share_att_key": not fields.get("layers.attn.position_projections"),
            }
        case _:
            return {}


def _same_width(hf: Hf) -> Fields:
    width, other = hf.get("hidden_size", 1536), hf.get("embedding_size")
    if other not in (None, width):
        raise ConfigError(
            f"unsupported embedding_size={other} with hidden_size={width}: a projection between them is not implemented."
        )
    return {}


def _types(hf: Hf) -> Fields:
    return {"token_types": hf.get("type_vocab_size") or None}


FIELDS: tuple[Codec, ...] = (
    *sizes(1536, 24, 24, 6144, 128100),
    *norms(NORMED, "layer_norm_eps", EPS),
    Key("max_seq_len", "max_position_embeddings", 512),
    Custom(
        ("layers.position", "layers.attn.scale", "layers.attn.position_projections"),
        KEYS,
        _position_fields,
        _position_keys,
    ),
    Custom(
        ("token_types",),
        ("type_vocab_size",),
        _types,
        lambda fields: {"type_vocab_size": fields.get("token_types") or 0},
    ),
    Custom(("only embedding_size",), ("embedding_size",), _same_width, lambda fields: {}),
    WriteOnly("legacy", True),
    agrees("attention_head_size", lambda hf: hf.get("hidden_size", 1536) // hf.get("num_attention_heads", 24)),
    Only("conv_kernel_size", (0,), "the convolution at the first layer (in the xlarge models) is not implemented."),
)
LAYER = "deberta.encoder.layer.{i}.attention.self"
DEBERTA_V2 = BERT.like(
    "deberta-v2",
    "DebertaV2ForMaskedLM",
    codecs=FIELDS,
    names={
        **{
            ours: theirs.replace("bert.", "deberta.", 1)
            for ours, theirs in BERT.names.items()
            if isinstance(theirs, str) and theirs.startswith("bert.")
        },
        "schemes.0": "deberta.encoder.rel_embeddings",
        "schemes.0.norm": "deberta.encoder.LayerNorm",
        "schemes.1": "deberta.embeddings.position_embeddings",
        "blocks.{i}.attn.to_qkv": qkv(*(f"{LAYER}.{p}_proj" for p in ("query", "key", "value"))),
        "blocks.{i}.attn.position_q": f"{LAYER}.pos_query_proj",
        "blocks.{i}.attn.position_k": f"{LAYER}.pos_key_proj",
    },
    body_architecture="DebertaV2Model",
    prefix="deberta.",
    ignored_tensors=(*POOLER, IDLE_BIAS, r"^mask_predictions\."),
    legacy_names=(
        *GAMMA,
        (r"^lm_predictions\.lm_head\.(dense|LayerNorm)", r"cls.predictions.transform.\1"),
        (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
    ),
    ignored_keys=frozenset({"pooler_hidden_size", "pooler_dropout", "pooler_hidden_act"}),
)
"""A head under the name `lm_predictions` is read too; it is written under the usual name."""
