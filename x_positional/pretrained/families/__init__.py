"""All supported families, by `model_type`. A family is data: docs/pretrained.md shows how to add one."""

from x_positional.pretrained.families.apertus import APERTUS
from x_positional.pretrained.families.arcee import ARCEE
from x_positional.pretrained.families.bart import BART
from x_positional.pretrained.families.bert import BERT, CAMEMBERT, ROBERTA, XLM_ROBERTA, XLM_ROBERTA_XL
from x_positional.pretrained.families.bigcode import GPT_BIGCODE
from x_positional.pretrained.families.bloom import BLOOM
from x_positional.pretrained.families.clip import CLIP, CLIP_TEXT, CLIP_VISION
from x_positional.pretrained.families.cohere import COHERE, COHERE2
from x_positional.pretrained.families.deberta import DEBERTA_V2
from x_positional.pretrained.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, KIMI_K2
from x_positional.pretrained.families.deit import DEIT
from x_positional.pretrained.families.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from x_positional.pretrained.families.dinov3 import DINOV3_VIT
from x_positional.pretrained.families.distilbert import DISTILBERT
from x_positional.pretrained.families.electra import ELECTRA
from x_positional.pretrained.families.ernie import ERNIE4_5, ERNIE4_5_MOE
from x_positional.pretrained.families.eurobert import EUROBERT
from x_positional.pretrained.families.exaone import EXAONE4
from x_positional.pretrained.families.falcon import FALCON
from x_positional.pretrained.families.gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_TEXT
from x_positional.pretrained.families.glm import GLM, GLM4
from x_positional.pretrained.families.glm_moe import DOTS1, GLM4_MOE
from x_positional.pretrained.families.gpt2 import GPT2
from x_positional.pretrained.families.gpt_neo import GPT_NEO
from x_positional.pretrained.families.gpt_neox import GPT_NEOX
from x_positional.pretrained.families.gpt_oss import GPT_OSS
from x_positional.pretrained.families.gptj import CODEGEN, GPTJ
from x_positional.pretrained.families.granite import GRANITE, GRANITEMOE
from x_positional.pretrained.families.helium import HELIUM
from x_positional.pretrained.families.hunyuan import HUNYUAN_V1_DENSE
from x_positional.pretrained.families.internlm3 import INTERNLM3
from x_positional.pretrained.families.llama import LLAMA
from x_positional.pretrained.families.llama4 import LLAMA4, LLAMA4_TEXT
from x_positional.pretrained.families.marian import M2M_100, MARIAN, PEGASUS
from x_positional.pretrained.families.mbart import MBART
from x_positional.pretrained.families.ministral import MINISTRAL, MINISTRAL3, MISTRAL3
from x_positional.pretrained.families.mixtral import MINIMAX_M2, MIXTRAL, OLMOE
from x_positional.pretrained.families.modernbert import MODERNBERT
from x_positional.pretrained.families.mpnet import MPNET
from x_positional.pretrained.families.mpt import MPT
from x_positional.pretrained.families.nanochat import NANOCHAT
from x_positional.pretrained.families.nemotron import NEMOTRON
from x_positional.pretrained.families.nomic_bert import NOMIC_BERT
from x_positional.pretrained.families.olmo import OLMO, OLMO2, OLMO3
from x_positional.pretrained.families.opt import OPT
from x_positional.pretrained.families.persimmon import PERSIMMON
from x_positional.pretrained.families.phi import PHI, PHI3
from x_positional.pretrained.families.qwen import MIMO, MISTRAL, QWEN2, QWEN3
from x_positional.pretrained.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from x_positional.pretrained.families.qwen_vl import (
    QWEN2_5_VL,
    QWEN2_5_VL_TEXT,
    QWEN2_VL,
    QWEN2_VL_TEXT,
    QWEN3_VL,
    QWEN3_VL_MOE,
    QWEN3_VL_MOE_TEXT,
    QWEN3_VL_TEXT,
)
from x_positional.pretrained.families.roformer import ROFORMER
from x_positional.pretrained.families.seed_oss import SEED_OSS
from x_positional.pretrained.families.siglip import SIGLIP, SIGLIP_TEXT, SIGLIP_VISION
from x_positional.pretrained.families.smollm3 import SMOLLM3
from x_positional.pretrained.families.stablelm import STABLELM
from x_positional.pretrained.families.starcoder2 import STARCODER2
from x_positional.pretrained.families.t5 import MT5, T5, UMT5
from x_positional.pretrained.families.t5gemma import T5GEMMA
from x_positional.pretrained.families.vit import VIT
from x_positional.pretrained.families.xglm import XGLM
from x_positional.pretrained.family import Family
from x_positional.pretrained.nested import NestedModel

DENSE = (
    MISTRAL,
    QWEN2,
    QWEN3,
    PHI,
    PHI3,
    GEMMA,
    GEMMA2,
    GEMMA3_TEXT,
    COHERE,
    COHERE2,
    OLMO,
    OLMO2,
    OLMO3,
    SMOLLM3,
    STABLELM,
    GRANITE,
    STARCODER2,
    GLM,
    GLM4,
    NEMOTRON,
    QWEN2_VL_TEXT,
    QWEN2_5_VL_TEXT,
    QWEN3_VL_TEXT,
    MINISTRAL,
    MINISTRAL3,
    SEED_OSS,
    EXAONE4,
    ERNIE4_5,
    MIMO,
    INTERNLM3,
    HUNYUAN_V1_DENSE,
    ARCEE,
    HELIUM,
    NANOCHAT,
    PERSIMMON,
    APERTUS,
)
MIXTURES = (
    MIXTRAL,
    OLMOE,
    QWEN2_MOE,
    QWEN3_MOE,
    GPT_OSS,
    DEEPSEEK_V3,
    LLAMA4_TEXT,
    DEEPSEEK_V2,
    KIMI_K2,
    GLM4_MOE,
    QWEN3_VL_MOE_TEXT,
    MINIMAX_M2,
    DOTS1,
    ERNIE4_5_MOE,
    GRANITEMOE,
)
OLDER = (GPT_BIGCODE, GPT_NEO, GPTJ, CODEGEN, GPT_NEOX, OPT, BLOOM, MPT, FALCON, XGLM)
ENCODERS = (
    BERT,
    ROBERTA,
    XLM_ROBERTA,
    CAMEMBERT,
    XLM_ROBERTA_XL,
    MODERNBERT,
    NOMIC_BERT,
    DEBERTA_V2,
    DISTILBERT,
    ELECTRA,
    MPNET,
    ROFORMER,
    EUROBERT,
)
SEQ2SEQ = (T5, MT5, UMT5, T5GEMMA, BART, MBART, MARIAN, PEGASUS, M2M_100)
VISION = (VIT, DEIT, DINOV2, DINOV2_WITH_REGISTERS, DINOV3_VIT, CLIP_VISION, SIGLIP_VISION)
TEXT_TOWERS = (CLIP_TEXT, SIGLIP_TEXT)
ALL: tuple[Family, ...] = (LLAMA, GPT2, *DENSE, *MIXTURES, *OLDER, *ENCODERS, *SEQ2SEQ, *VISION, *TEXT_TOWERS)
FAMILIES: dict[str, Family] = {family.model_type: family for family in ALL}

MULTIMODAL: tuple[NestedModel, ...] = (GEMMA3, LLAMA4, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, MISTRAL3)
NESTED: dict[str, NestedModel] = {model.model_type: model for model in MULTIMODAL}
"""Multimodal models of which only the text model is read, by the `model_type` of the whole model."""

TOWERS: dict[str, tuple[NestedModel, ...]] = {towers[0].model_type: towers for towers in (CLIP, SIGLIP)}
"""The towers of models of which one tower is read, by the `model_type` of the whole model."""
