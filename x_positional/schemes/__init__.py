"""Position schemes, one idea per file. Importing this package registers all of them."""

from x_positional.schemes.absolute import (
    Absolute,
    LearnedAbsolute,
    ScaledSinusoidal,
    ScaledSinusoidalEmbedding,
    Sinusoidal,
    SinusoidalEmbedding,
)
from x_positional.schemes.alibi import Alibi, AlibiBias, RoundedAlibiBias, alibi_slopes
from x_positional.schemes.buckets import t5_buckets
from x_positional.schemes.cable import Cable, CableBias
from x_positional.schemes.compose import Chain
from x_positional.schemes.cope import Cope, CopeScores
from x_positional.schemes.deberta import Deberta, DebertaBias, log_buckets, log_ratio
from x_positional.schemes.distance import DistanceScheme
from x_positional.schemes.dynamic_bias import Dynamic, DynamicBias
from x_positional.schemes.fire import Fire, FireBias
from x_positional.schemes.forgetting import Forgetting, ForgettingBias
from x_positional.schemes.gated_t5 import GatedT5, GatedT5Bias
from x_positional.schemes.kerple import Kerple, KerpleBias
from x_positional.schemes.none import NoPE, NoPosition
from x_positional.schemes.relative_logits import LogScaledRelativeBias, RelativeBias, RelativeLogits
from x_positional.schemes.rotary.axial import Axial, AxialEmbedding
from x_positional.schemes.rotary.mixed import Mixed, MixedEmbedding
from x_positional.schemes.rotary.polar import Polar, PolarEmbedding
from x_positional.schemes.rotary.rope import Rope, XPos, XPosEmbedding
from x_positional.schemes.rotary.rotation import RopeEmbedding
from x_positional.schemes.rotary.scaling import (
    DefaultRope,
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    Ntk,
    NtkAlpha,
    NtkByParts,
    Proportional,
    RopeScaling,
    Yarn,
    YarnPaper,
)
from x_positional.schemes.sandwich import Sandwich, SandwichBias
from x_positional.schemes.shaw import Shaw, ShawBias
from x_positional.schemes.ssmax import ScalableSoftmax, SSMax
from x_positional.schemes.t5 import T5, T5Bias
from x_positional.schemes.temperature import LogLengthTemperature, LogN, QueryTemperature, Temperature
from x_positional.schemes.transformer_xl import TransformerXL, TransformerXLBias

__all__ = [
    "T5",
    "Absolute",
    "Alibi",
    "AlibiBias",
    "Axial",
    "AxialEmbedding",
    "Cable",
    "CableBias",
    "Chain",
    "Cope",
    "CopeScores",
    "Deberta",
    "DebertaBias",
    "DefaultRope",
    "DistanceScheme",
    "Dynamic",
    "DynamicBias",
    "DynamicNtk",
    "Fire",
    "FireBias",
    "Forgetting",
    "ForgettingBias",
    "GatedT5",
    "GatedT5Bias",
    "Kerple",
    "KerpleBias",
    "LearnedAbsolute",
    "Linear",
    "Llama3",
    "LogLengthTemperature",
    "LogN",
    "LogScaledRelativeBias",
    "LongRope",
    "Mixed",
    "MixedEmbedding",
    "NoPE",
    "NoPosition",
    "Ntk",
    "NtkAlpha",
    "NtkByParts",
    "Polar",
    "PolarEmbedding",
    "Proportional",
    "QueryTemperature",
    "RelativeBias",
    "RelativeLogits",
    "Rope",
    "RopeEmbedding",
    "RopeScaling",
    "RoundedAlibiBias",
    "SSMax",
    "Sandwich",
    "SandwichBias",
    "ScalableSoftmax",
    "ScaledSinusoidal",
    "ScaledSinusoidalEmbedding",
    "Shaw",
    "ShawBias",
    "Sinusoidal",
    "SinusoidalEmbedding",
    "T5Bias",
    "Temperature",
    "TransformerXL",
    "TransformerXLBias",
    "XPos",
    "XPosEmbedding",
    "Yarn",
    "YarnPaper",
    "alibi_slopes",
    "log_buckets",
    "log_ratio",
    "t5_buckets",
]
