"""Every family that can be read and written, by `model_type`. A family is data: see docs/pretrained.md for how to add one."""

from x_positional.pretrained.families.deepseek import DEEPSEEK_V3
from x_positional.pretrained.families.gpt2 import GPT2
from x_positional.pretrained.families.gpt_oss import GPT_OSS
from x_positional.pretrained.families.llama import LLAMA
from x_positional.pretrained.families.llama4 import LLAMA4_TEXT
from x_positional.pretrained.families.mixtral import MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE
from x_positional.pretrained.family import Family

MIXTURES: tuple[Family, ...] = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, GPT_OSS, DEEPSEEK_V3, LLAMA4_TEXT)
ALL: tuple[Family, ...] = (LLAMA, GPT2, *MIXTURES)
FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL}
