"""Registers the classes with the Auto classes of transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from x_positional.hf.configuration import XPositionalConfig
from x_positional.hf.language import XPositionalForCausalLM, XPositionalForMaskedLM, XPositionalModel
from x_positional.hf.seq2seq import XPositionalForSeq2SeqLM
from x_positional.pretrained.native import NATIVE


def register() -> None:
    """May be called again."""
    AutoConfig.register(NATIVE, XPositionalConfig, exist_ok=True)
    for auto, model in (
        (AutoModel, XPositionalModel),
        (AutoModelForCausalLM, XPositionalForCausalLM),
        (AutoModelForMaskedLM, XPositionalForMaskedLM),
        (AutoModelForSeq2SeqLM, XPositionalForSeq2SeqLM),
    ):
        auto.register(XPositionalConfig, model, exist_ok=True)
