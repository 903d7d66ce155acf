"""Transformers from keyword flags or a config, with every position scheme pluggable, and proof that they combine."""

from x_positional.config import ModelConfig
from x_positional.layers import CrossAttender, Decoder, Encoder
from x_positional.wrappers import TransformerWrapper, build_model

__version__ = "0.1.0"

__all__ = ["CrossAttender", "Decoder", "Encoder", "ModelConfig", "TransformerWrapper", "build_model"]
