"""Every family that can be read and written, by `model_type`. A family is data: see docs/pretrained.md for how to add one."""

from x_positional.pretrained.families.bigcode import GPT_BIGCODE
from x_positional.pretrained.families.bloom import BLOOM
from x_positional.pretrained.families.falcon import FALCON
from x_positional.pretrained.families.gpt2 import GPT2
from x_positional.pretrained.families.gpt_neo import GPT_NEO
from x_positional.pretrained.families.gpt_neox import GPT_NEOX
from x_positional.pretrained.families.gptj import CODEGEN, GPTJ
from x_positional.pretrained.families.llama import LLAMA
from x_positional.pretrained.families.mpt import MPT
from x_positional.pretrained.families.opt import OPT
from x_positional.pretrained.family import Family

ALL: tuple[Family, ...] = (LLAMA, GPT2, GPT_BIGCODE, GPT_NEO, GPTJ, CODEGEN, GPT_NEOX, OPT, BLOOM, MPT, FALCON)
FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL}
