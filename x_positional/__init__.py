"""Transformers from keyword flags or a config, with every position scheme pluggable, and proof that they combine."""

from x_positional.config import ModelConfig
from x_positional.continuous import ContinuousTransformerWrapper
from x_positional.generate import AutoregressiveWrapper
from x_positional.layers import CrossAttender, Decoder, Encoder
from x_positional.porting import ConversionError, from_x_transformers
from x_positional.pretrained import PretrainedError, from_pretrained, load_tokenizer
from x_positional.scheme import AttentionContext, Bias, Capabilities, Dims, PositionScheme
from x_positional.schemes import (
    T5,
    Absolute,
    Alibi,
    Chain,
    CopeConfig,
    Dynamic,
    ForgettingConfig,
    NoPEConfig,
    PolarConfig,
    Rope,
    ScaledSinusoidalConfig,
    SinusoidalConfig,
    XPos,
)
from x_positional.seq2seq import XTransformer
from x_positional.validate import IncompatibleConfig, Report, check
from x_positional.vision import ViTransformerWrapper
from x_positional.vision_config import VisionConfig
from x_positional.wrappers import TransformerWrapper, build_model

__version__ = "0.1.0"

__all__ = [
    "T5",
    "Absolute",
    "Alibi",
    "AttentionContext",
    "AutoregressiveWrapper",
    "Bias",
    "Capabilities",
    "Chain",
    "ContinuousTransformerWrapper",
    "ConversionError",
    "CopeConfig",
    "CrossAttender",
    "Decoder",
    "Dims",
    "Dynamic",
    "Encoder",
    "ForgettingConfig",
    "IncompatibleConfig",
    "ModelConfig",
    "NoPEConfig",
    "PolarConfig",
    "PositionScheme",
    "PretrainedError",
    "Report",
    "Rope",
    "ScaledSinusoidalConfig",
    "SinusoidalConfig",
    "TransformerWrapper",
    "ViTransformerWrapper",
    "VisionConfig",
    "XPos",
    "XTransformer",
    "build_model",
    "check",
    "from_pretrained",
    "from_x_transformers",
    "load_tokenizer",
]
