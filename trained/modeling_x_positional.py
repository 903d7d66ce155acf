"""Loads this folder with the classes of the installed package x_positional."""

try:
    from x_positional.hf import (
        XPositionalConfig,
        XPositionalForCausalLM,
        XPositionalForMaskedLM,
        XPositionalForSeq2SeqLM,
        XPositionalModel,
    )
except ModuleNotFoundError as error:
    if error.name not in ("x_positional", "x_positional.hf"):
        raise
    raise ImportError("this model needs the package x_positional: pip install -U 'x-positional[hf]'") from error

__all__ = [
    "XPositionalConfig",
    "XPositionalForCausalLM",
    "XPositionalForMaskedLM",
    "XPositionalForSeq2SeqLM",
    "XPositionalModel",
]
