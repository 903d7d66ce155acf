"""Transformers from keyword flags or a config, with every position scheme pluggable, and proof that they combine."""

import sys
from typing import NoReturn

from x_positional.config.flags.missing import CLASSES
from x_positional.config.models import ModelConfig
from x_positional.config.validate import Report, check
from x_positional.config.vision import VisionConfig
from x_positional.errors import (
    ArgumentError,
    BackendError,
    CacheError,
    ConfigError,
    ContractError,
    ConversionError,
    DamagedCheckpoint,
    FlagError,
    IncompatibleConfig,
    InputError,
    MainProcessFailed,
    MissingExtra,
    NonFiniteLoss,
    PositionError,
    PretrainedError,
    ProcessLost,
    RopeError,
    SamplingError,
    UserError,
    XPositionalError,
)
from x_positional.generation.contrast import ContrastWith
from x_positional.generation.proposals import DraftModel, PromptLookup
from x_positional.generation.step.exported import ExportedStep, export_step
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.continuous import ContinuousTransformerWrapper
from x_positional.models.continuous_autoregressive import ContinuousAutoregressiveWrapper
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.models.quantize import quantize
from x_positional.models.seq2seq import XTransformer
from x_positional.models.sharding import materialize, shard
from x_positional.models.stacks import CrossAttender, Decoder, Encoder
from x_positional.models.vision import ViTransformerWrapper
from x_positional.modules.stack import set_activation_checkpointing
from x_positional.pretrained import from_pretrained, load_tokenizer
from x_positional.pretrained.x_transformers import form_of, from_x_transformers
from x_positional.schemes import (
    T5,
    Absolute,
    Alibi,
    Chain,
    Cope,
    Dynamic,
    Forgetting,
    NoPE,
    Polar,
    Rope,
    ScaledSinusoidal,
    Sinusoidal,
    XPos,
)
from x_positional.schemes.base import AttentionContext, Bias, Capabilities, Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig

__version__ = "0.1.0"

__all__ = [
    "T5",
    "Absolute",
    "Alibi",
    "ArgumentError",
    "AttentionContext",
    "AutoregressiveWrapper",
    "BackendError",
    "Bias",
    "CacheError",
    "Capabilities",
    "Chain",
    "ConfigError",
    "ContinuousAutoregressiveWrapper",
    "ContinuousTransformerWrapper",
    "ContractError",
    "ContrastWith",
    "ConversionError",
    "Cope",
    "CrossAttender",
    "DamagedCheckpoint",
    "Decoder",
    "Dims",
    "DraftModel",
    "Dynamic",
    "Encoder",
    "ExportedStep",
    "FlagError",
    "Forgetting",
    "IncompatibleConfig",
    "InputError",
    "MainProcessFailed",
    "MissingExtra",
    "ModelConfig",
    "NoPE",
    "NonFiniteLoss",
    "Polar",
    "PositionError",
    "PositionScheme",
    "PretrainedError",
    "ProcessLost",
    "PromptLookup",
    "Report",
    "Rope",
    "RopeError",
    "SamplingError",
    "ScaledSinusoidal",
    "SchemeConfig",
    "Sinusoidal",
    "TransformerWrapper",
    "UserError",
    "ViTransformerWrapper",
    "VisionConfig",
    "XPos",
    "XPositionalError",
    "XTransformer",
    "build_model",
    "check",
    "export_step",
    "form_of",
    "from_pretrained",
    "from_x_transformers",
    "load_tokenizer",
    "materialize",
    "quantize",
    "set_activation_checkpointing",
    "shard",
]


def __getattr__(name: str) -> NoReturn:
    """Classes of x-transformers and transformers that x_positional does not have: the error tells what to use."""
    text = f"module 'x_positional' has no attribute {name!r}"
    if name not in CLASSES:
        raise AttributeError(text)
    # `from x_positional import name` replaces the text of an AttributeError by its own, and keeps that of an ImportError
    imported = sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap"
    raise (ImportError if imported else AttributeError)(f"{text}. {CLASSES[name]}", name=name)
