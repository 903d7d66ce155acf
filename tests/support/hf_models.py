"""Models of x_positional in transformers, for tests of `x_positional.hf`."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.perturbing import perturb
from tests.support.published.compare import quietly
from tests.support.small_models import NUM_TOKENS, SIDE, decoder
from x_positional import Encoder, TransformerWrapper, XTransformer

CAUSAL: dict[str, dict[str, Any]] = {
    "rope": {},
    "alibi": {"position": "alibi"},
    "t5": {"position": "t5"},
    "cope": {"position": "cope"},
    "forgetting": {"position": "forgetting"},
    "pattern": {"position": None, "pattern": [{"position": "rope", "window": 3}, {"position": "cope"}]},
}
"""Flags of small decoders."""


def encoder(position: str = "rope", **flags: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = Encoder(dim=24, depth=2, heads=3, attn_dim_head=8, position=position)
    model = TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=40, attn_layers=layers, **flags).eval()
    perturb(model)
    return model


def seq2seq(position: str = "rope", **flags: Any) -> XTransformer:
    torch.manual_seed(0)
    side = {**SIDE, "position": position, "depth": 2}
    sides = {f"{name}_{key}": value for name in ("enc", "dec") for key, value in side.items()}
    model = XTransformer(dim=24, **{**sides, **flags}).eval()
    perturb(model)
    return model


def loaded(model: Any, auto: str = "AutoModelForCausalLM", **settings: Any) -> Any:
    """What an Auto class makes of the folder that a model is written to with code=True."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, format="hf", code=True)
        return load(folder, auto, **settings)


def load(folder: str | Path, auto: str = "AutoModelForCausalLM", **settings: Any) -> Any:
    return quietly(getattr(transformers, auto).from_pretrained, folder, trust_remote_code=True, **settings)


def causal(name: str, **changes: Any) -> tuple[TransformerWrapper, Any]:
    """A small decoder, and the same in transformers."""
    model = decoder(**{**CAUSAL[name], **changes})
    return model, loaded(model)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Any:
    """Another attribute for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
