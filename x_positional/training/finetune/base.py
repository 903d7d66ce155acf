"""The model that a run starts from: its config, its weights, its adapters, and what identifies it."""

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from x_positional.config.models import ModelConfig, plain
from x_positional.errors import PretrainedError, UserError
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.pretrained.adapters import add_adapters
from x_positional.pretrained.api import config_of, load_source
from x_positional.pretrained.folder import CONFIG
from x_positional.pretrained.source import Source, open_source
from x_positional.training.config import TrainConfig
from x_positional.training.load import config_of_fields

LORA_LR, FULL_LR = 2e-4, 2e-5
"""Default learning rates: of adapters, and of a model's own parameters."""
BLOCK, BLOCKS = 1 << 16, 64
"""Bytes of a block, and blocks of a file, that identify it."""


def base_source(name: str) -> Source:
    """The opened checkpoint that `init.source` names. Raises `UserError`."""
    try:
        return open_source(name)
    except PretrainedError as error:
        raise UserError(f"init.source: {error}") from error


def base_config(source: Source) -> ModelConfig:
    """The config of a model to fine-tune. Raises `UserError` for models that do not predict the next token."""
    config = config_of(source)
    if not isinstance(config, ModelConfig) or config.layers.kind != "decoder":
        kind = source.config.get("model_type")
        raise UserError(f"{source.path} contains a {kind} model, which does not predict the next token")
    return config


def finetune_config(name: str, overrides: Mapping[str, Any], *, lora: bool) -> TrainConfig:
    """The run that fine-tunes a model on conversations.

    Args:
        name: A folder of a published model, a GGUF file, a run, or a model name on the Hub.
        overrides: Dotted keys of `TrainConfig`, as in `load_config`; `data.path` is needed.
        lora: Train adapters.

    Raises:
        UserError: The model cannot be read or does not predict the next token, or with every problem of the overrides.
    """
    source = base_source(name)
    adapters = lora or any(key == "lora" or key.startswith("lora.") for key in overrides)
    optimizer = {"lr": LORA_LR if adapters else FULL_LR, "betas": [0.9, 0.999], "weight_decay": 0.0}
    run = {"dir": "runs/finetune", "batch_size": 8, "eval_first": True, "eval_tokens": None, "log_every": 1}
    raw = {
        "model": plain(base_config(source)),
        "init": {"source": str(source.path.resolve())},
        "chat": {},
        "optimizer": optimizer,
        "run": run,
        **({"lora": {}} if adapters else {}),
    }
    return config_of_fields(raw, overrides, name)


def initial_model(config: TrainConfig) -> TransformerWrapper:
    """The model before the first step: random, or read from `init.source`, with adapters where the run trains them. A random
    one that will be sharded is on the meta device: `Engine` draws its values.

    Raises:
        UserError: `init.source` cannot be read, or is not a model of `config.model`.
    """
    if config.init is None:
        with torch.device("meta") if config.run.parallel == "fsdp" else nullcontext():
            return build_model(config.model)
    source = base_source(config.init.source)
    net = load_source(source, torch.float32)
    if not isinstance(net, TransformerWrapper) or not net.has_head or net.config != config.model:
        raise UserError(
            f"init.source={config.init.source} is not the model that the model section describes; leave the model section "
            "to `x-positional finetune`, or set init.source to a checkpoint of that model"
        )
    if config.lora is not None:
        add_adapters(net, **config.lora.model_dump())
    return net


def source_fingerprint(name: str) -> str:
    """`weights_fingerprint` of the checkpoint that `init.source` names. Raises `UserError`."""
    return weights_fingerprint(base_source(name).path)


def weights_fingerprint(path: Path) -> str:
    """Identifies the weights in a folder or file by blocks of its files, so that it is fast for large ones."""
    files = [*sorted(path.glob("*.safetensors")), path / CONFIG] if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in filter(Path.is_file, files):
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            for place in range(BLOCKS):
                stream.seek(place * max(size - BLOCK, 0) // max(BLOCKS - 1, 1))
                digest.update(stream.read(BLOCK))
    return digest.hexdigest()[:16]
