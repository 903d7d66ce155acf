"""`is_causal`: a decoder whose config sets it to false attends in both directions in transformers, as embedding models do."""

from collections.abc import Callable
from typing import Any

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.codecs import Custom, Fields, Hf

KEY, KIND = "is_causal", "layers.kind"


def is_causal(hf: Hf) -> bool:
    """Whether a decoder is causal. null is false, as in transformers; an omitted key is true."""
    return bool(hf.get(KEY, True))


def _to_fields(hf: Hf) -> Fields:
    return {KIND: "decoder" if is_causal(hf) else "encoder"}


def _to_hf(fields: Fields) -> dict[str, Any]:
    return {KEY: False} if fields.get(KIND) == "encoder" else {}


CAUSAL = Custom((KIND,), (KEY,), _to_fields, _to_hf)
"""A decoder, or an encoder where `is_causal` is false."""


def causal_only(why: str) -> Custom:
    """A decoder that cannot be followed where `is_causal` is false. why: the end of the error message."""

    def to_fields(hf: Hf) -> Fields:
        if not is_causal(hf):
            raise ConfigError(f"{KEY}={hf[KEY]}: {why}")
        return {KIND: "decoder"}

    return Custom((KIND,), (KEY,), to_fields, lambda fields: {})


CAUSAL_WITHOUT_PADDING = "transformers attends in both directions in this family only where a row has padding."
"""Why a family is causal only."""


def direction_problems(hf: Hf, kind: str) -> list[str]:
    """Problems of the key in a model that is no decoder alone: which attention it changes depends on the kernel.

    Args:
        hf: The config.
        kind: Of the model: `encoder`, `vision` and `seq2seq` are checked, and `decoder` follows the key.
    """
    if kind == "decoder" or KEY not in hf or (kind != "seq2seq" and not is_causal(hf)):
        return []
    effect = (
        "makes an encoder causal in some implementations of attention"
        if is_causal(hf)
        else "lets the decoder look ahead"
    )
    return [f"{KEY}={hf[KEY]}: in transformers it {effect}. Remove it, or pass ignore=({KEY!r},)."]


def bidirectional_windows(fields: Fields, change: Callable[[int], int]) -> Fields:
    """Windows of an encoder changed: in transformers, a bidirectional window does not count the token itself."""
    if fields.get(KIND) != "encoder":
        return fields
    out = dict(fields)
    if out.get("layers.window"):
        out["layers.window"] = change(out["layers.window"])
    if "each.window" in out:
        out["each.window"] = [window and change(window) for window in out["each.window"]]
    return out
