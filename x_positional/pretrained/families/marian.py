"""Marian (Opus-MT): BART with sinusoidal positions and without a norm of the embeddings; and Pegasus and M2M-100 (NLLB), whose
norms come before the branches.
"""

from dataclasses import replace
from typing import Any

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf, Key, Only, agrees
from x_positional.pretrained.config_json.encoder_decoder import for_both
from x_positional.pretrained.families.bart import (
    BART,
    FINAL_NORMS,
    POST,
    TABLE_BUFFERS,
    TABLES,
    bart_codecs,
    bart_names,
    fixed_norms,
    scaled,
)
from x_positional.pretrained.families.llama import activations
from x_positional.schemes import Absolute, Sinusoidal

MARIAN = replace(
    BART,
    model_type="marian",
    architecture="MarianMTModel",
    codecs=(
        *bart_codecs(*fixed_norms("layers.norm"), *POST, Fixed("layers.position", [Sinusoidal(layout="concat")])),
        Only(
            "share_encoder_decoder_embeddings",
            (True,),
            "separate embeddings of encoder and decoder are unsupported in this family.",
        ),
        agrees("decoder_vocab_size", lambda hf: hf.get("vocab_size") or 58101),
        *for_both((Key("num_tokens", "vocab_size", 58101),)),
    ),
    names=bart_names("outer"),
    ignored_tensors=(*BART.ignored_tensors, *TABLE_BUFFERS),
)
PEGASUS = replace(
    BART,
    model_type="pegasus",
    architecture="PegasusForConditionalGeneration",
    codecs=bart_codecs(*fixed_norms("layers.norm"), Fixed("layers.position", [Absolute(scale=1.0)])),
    names={**bart_names("before"), **FINAL_NORMS, **TABLES},
)
"""Its sinusoids are stored, and read from the checkpoint."""


def _position_fields(hf: Hf) -> Fields:
    if (hf.get("d_model") or 1024) % 2:
        raise ConfigError(
            f"unsupported d_model={hf['d_model']}: sinusoids of an odd width end with a zero in this family."
        )
    pad = hf.get("pad_token_id", 1)
    return {"layers.position": [Sinusoidal(layout="concat", offset=(1 if pad is None else pad) + 1, endpoint=True)]}


def _position_keys(fields: Fields) -> dict[str, Any]:
    match fields.get("layers.position"):
        case (Sinusoidal(offset=offset),):
            return {"pad_token_id": offset - 1}
        case _:
            return {}


M2M_100 = replace(
    BART,
    model_type="m2m_100",
    architecture="M2M100ForConditionalGeneration",
    codecs=(
        *bart_codecs(
            *fixed_norms("layers.norm"),
            Custom(("layers.position",), ("pad_token_id",), _position_fields, _position_keys),
            decoder=(),
        ),
        *for_both(
            (
                Key("num_tokens", "vocab_size", 128112),
                Key("layers.ff.activation", "activation_function", "relu", activations("relu")),
                scaled(True),
            )
        ),
    ),
    names={
        **{ours: theirs for ours, theirs in bart_names("before").items() if "bias" not in ours},
        **FINAL_NORMS,
    },
    optional={},
    ignored_tensors=(*BART.ignored_tensors, *TABLE_BUFFERS),
)
"""Positions count tokens without padding and begin after the id of padding."""
