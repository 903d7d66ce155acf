"""Every family that can be read and written, by `model_type`. A family is data: see docs/pretrained.md for how to add one."""

from x_positional.pretrained.families.gpt2 import GPT2
from x_positional.pretrained.families.llama import LLAMA
from x_positional.pretrained.family import Family
from x_positional.pretrained.inner import Inner

ALL: tuple[Family, ...] = (LLAMA, GPT2)
FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL}

WHOLES: tuple[Inner, ...] = ()
INNER: dict[str, Inner] = {whole.model_type: whole for whole in WHOLES}
"""Larger models of which the text model alone is read, by the `model_type` of the whole."""
