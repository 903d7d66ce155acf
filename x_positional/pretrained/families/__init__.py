"""Every family that can be read and written, by `model_type`. A family is data: see docs/pretrained.md for how to add one."""

from x_positional.pretrained.families.bart import BART
from x_positional.pretrained.families.bert import BERT, ROBERTA, XLM_ROBERTA
from x_positional.pretrained.families.gpt2 import GPT2
from x_positional.pretrained.families.llama import LLAMA
from x_positional.pretrained.families.modernbert import MODERNBERT
from x_positional.pretrained.families.nomic_bert import NOMIC_BERT
from x_positional.pretrained.families.t5 import MT5, T5
from x_positional.pretrained.family import Family

ENCODERS: tuple[Family, ...] = (BERT, ROBERTA, XLM_ROBERTA, MODERNBERT, NOMIC_BERT)
SEQ2SEQ: tuple[Family, ...] = (T5, MT5, BART)
ALL: tuple[Family, ...] = (LLAMA, GPT2, *ENCODERS, *SEQ2SEQ)
FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL}
