"""Published models in and out: a folder of config.json and safetensors to a model, and back."""

from x_positional.models.saving import register_writer
from x_positional.pretrained.api import Origin, from_pretrained
from x_positional.pretrained.export import save_hf
from x_positional.pretrained.families import FAMILIES
from x_positional.pretrained.family import Family
from x_positional.pretrained.native import save_native
from x_positional.pretrained.source import load_tokenizer

# The formats of `model.save_pretrained`: see register_writer for why they are registered here.
register_writer("hf", save_hf)
register_writer("native", save_native)

__all__ = ["FAMILIES", "Family", "Origin", "from_pretrained", "load_tokenizer"]
