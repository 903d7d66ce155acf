"""Any model for transformers: x_positional's config beside a file that tells transformers which classes of the package read it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from x_positional.config.models import ModelConfig
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.errors import PretrainedError
from x_positional.models.language import TransformerWrapper
from x_positional.models.saving import Saveable
from x_positional.pretrained.folder import MODELING
from x_positional.pretrained.native import CLASSES, PREFIX, native_config
from x_positional.pretrained.tensors.write import write_folder

CONFIG_CLASS = "XPositionalConfig"
TEXT, CAUSAL, MASKED, SEQ2SEQ = (
    "XPositionalModel",
    "XPositionalForCausalLM",
    "XPositionalForMaskedLM",
    "XPositionalForSeq2SeqLM",
)
"""Classes of `x_positional.hf`."""
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
NO_CLASS = "this model has no class for transformers"

SOURCE = f'''"""Loads this folder with the classes of the installed package x_positional."""

try:
    from x_positional.hf import {CONFIG_CLASS}, {TEXT}, {CAUSAL}, {MASKED}, {SEQ2SEQ}
except ModuleNotFoundError as error:
    if error.name not in ("x_positional", "x_positional.hf"):
        raise
    raise ImportError("this model needs the package x_positional: pip install -U 'x-positional[hf]'") from error

__all__ = ["{CONFIG_CLASS}", "{TEXT}", "{CAUSAL}", "{MASKED}", "{SEQ2SEQ}"]
'''


def save_with_code(model: Saveable, folder: Path) -> None:
    """Write a model with x_positional's own config and a modeling file that imports the package. Nothing of it is copied.

    Raises PretrainedError for a model that has no class for transformers.
    """
    config = {**native_config(model), **_special_ids(model), **code_for(model)}
    tensors = {PREFIX + name: p.detach().contiguous().cpu() for name, p in model.named_parameters()}
    config["dtype"] = str(_common_dtype(tensors)).removeprefix("torch.")
    write_folder(folder, config, tensors, texts={MODELING: SOURCE})


def code_for(model: Saveable) -> dict[str, Any]:
    """The keys of a config.json that name the classes of a model. Raises PretrainedError where there are none."""
    return class_keys(auto_classes(type(model).__name__, model.config))


def class_keys(classes: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a config.json that name its classes. classes: Auto class -> class of `x_positional.hf`."""
    module = MODELING.removesuffix(".py")
    auto_map = {auto: f"{module}.{name}" for auto, name in {"AutoConfig": CONFIG_CLASS, **classes}.items()}
    return {"architectures": [list(classes.values())[-1]], "auto_map": auto_map}


def auto_classes(name: str, config: Any) -> dict[str, str]:
    """Auto class of transformers -> class of `x_positional.hf`, the one that holds the whole model last.

    Args:
        name: The class of the model.
        config: Its config.

    Raises:
        PretrainedError: If there is none, with the reason.
    """
    if isinstance(config, Seq2SeqConfig):
        problem = _logits_problem(config.decoder)
        found = {"AutoModelForSeq2SeqLM": SEQ2SEQ}
    elif isinstance(config, ModelConfig):
        headed, causal = _has_head(name), config.layers.kind == "decoder"
        problem = _context_problem(config) or (_logits_problem(config) if headed else None)
        head = {"AutoModelForCausalLM": CAUSAL} if causal else {"AutoModelForMaskedLM": MASKED}
        found = {"AutoModel": TEXT} | (head if headed else {})
    else:
        raise PretrainedError(f"{NO_CLASS}:", [f"it is a {name}; only text models and encoder-decoders have one."])
    if problem:
        raise PretrainedError(f"{NO_CLASS}:", [problem])
    return found


def _has_head(name: str) -> bool:
    """Whether a class of text models returns logits."""
    model = CLASSES[name][0]
    return issubclass(model, TransformerWrapper) and model.has_head


def _context_problem(config: ModelConfig) -> str | None:
    if not config.layers.cross_attend and config.layers.kind != "cross_attender":
        return None
    return "its layers attend to context=, which no class of transformers passes to a text model. Use an XTransformer."


def _logits_problem(config: ModelConfig) -> str | None:
    if config.logits_dim in (None, config.num_tokens):
        return None
    return f"logits_dim={config.logits_dim} differs from num_tokens={config.num_tokens}; a language model has one logit per token."


def _special_ids(model: Saveable) -> dict[str, Any]:
    """The special tokens of a published model that was loaded."""
    hf = {} if model.origin is None else model.origin.config
    return {key: hf[key] for key in SPECIAL_IDS if hf.get(key) is not None}


def _common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """What transformers reads every parameter as: the dtype that holds all of them exactly."""
    found, *others = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    for dtype in others:
        found = torch.promote_types(found, dtype)
    return found
