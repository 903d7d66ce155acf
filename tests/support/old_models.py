"""The models and the run whose checkpoints are kept in tests/fixtures, built through the public API alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.perturbing import perturb
from x_positional import (
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHAPE = {"dim": 24, "depth": 2, "heads": 3, "head_dim": 8, "ff": {"mult": 2}}
TOKENS, LENGTH = 13, 32
GLU = {"glu": True, "activation": "silu", "bias": False, "mult": 2}
LLAMA = {**SHAPE, "heads": 4, "kv_heads": 2, "head_dim": 6, "norm": {"kind": "rms", "unit_offset": False}, "ff": GLU}


def language(kind: type = Decoder, position: Any = "rope", **flags: Any) -> TransformerWrapper:
    layers = kind(**{**SHAPE, **flags}, position=position)
    return TransformerWrapper(num_tokens=TOKENS, max_seq_len=LENGTH, attn_layers=layers)


def latent(position: Any) -> TransformerWrapper:
    position = {"kind": "rope", "dim": 4} if position == "rope" else position  # no other width can be rotated
    moe = {"experts": 3, "top_k": 2, "shared": 8, "shared_gate": True}
    mla = {"kv_rank": 10, "rope_dim": 4, "q_rank": 7}
    return language(position=position, attn={"mla": mla}, ff={"glu": True, "mult": 2, "moe": moe})


def continuous(position: Any = "rope") -> ContinuousTransformerWrapper:
    layers = Encoder(**SHAPE, position=position)
    return ContinuousTransformerWrapper(dim_in=5, dim_out=6, max_seq_len=LENGTH, attn_layers=layers)


def vision(position: Any = "rope") -> ViTransformerWrapper:
    layers = Encoder(**SHAPE, position=position)
    return ViTransformerWrapper(image_size=12, patch_size=4, num_classes=5, attn_layers=layers)


def seq2seq(position: Any = "t5") -> XTransformer:
    side = {"num_tokens": TOKENS, "max_seq_len": LENGTH, "depth": 1, "heads": 3, "head_dim": 8}
    sides = {f"{name}_{key}": value for name in ("enc", "dec") for key, value in side.items()}
    return XTransformer(dim=24, enc_position="rope", dec_position=position, **sides)


def decoder_layers(position: Any = "rope") -> Decoder:
    return Decoder(**SHAPE, position=position)


def cross_attender(position: Any = "none") -> CrossAttender:
    return CrossAttender(**SHAPE, position=position)


def _llama() -> TransformerWrapper:
    layers = Decoder(**LLAMA, position={"kind": "rope", "theta": 500.0})
    return TransformerWrapper(num_tokens=TOKENS, max_seq_len=LENGTH, attn_layers=layers)


SAVED: dict[str, tuple[str, Callable[[], Any]]] = {
    "native_rope": ("native", language),
    "native_chain": ("native", lambda: language(position=["absolute", "t5"])),
    "native_seq2seq": ("native", seq2seq),
    "native_vision": ("native", vision),
    "hf_llama": ("hf", _llama),
}
"""Name of a checkpoint -> its form, and the model that it holds."""

CLASSES: dict[str, Callable[[Any], nn.Module]] = {
    "TransformerWrapper(Decoder)": lambda position: language(position=position),
    "TransformerWrapper(Encoder)": lambda position: language(Encoder, position),
    "TransformerWrapper(biases, qk_norm, sandwich, layer norm)": lambda position: language(
        position=position, attn={"bias": True, "qk_norm": "rms"}, norm_place="sandwich", norm="layer", kv_heads=1
    ),
    "TransformerWrapper(latent attention, experts)": latent,
    "ContinuousTransformerWrapper": continuous,
    "ViTransformerWrapper": vision,
    "XTransformer": seq2seq,
    "Decoder": decoder_layers,
    "CrossAttender": cross_attender,
}
"""Every kind of model, by position scheme."""

NEEDS: dict[str, Any] = {
    "log_n": {"kind": "log_n", "trained": 4},
    "temperature": {"kind": "temperature", "scale": 0.1, "floor_scale": 0.7, "offset": 1.0},
}
"""Schemes that have no defaults."""


def moved(model: nn.Module) -> Any:
    """In eval mode, with every parameter moved off its start."""
    perturb(model)
    return model.eval()


def _ids(seed: int) -> Tensor:
    return torch.randint(0, TOKENS, (2, 9), generator=torch.Generator().manual_seed(seed))


def outputs(model: Any) -> Tensor:
    """The logits of a model, for inputs that are always the same."""
    noise = torch.Generator().manual_seed(3)
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        if isinstance(model, XTransformer):
            return model.decoder.net(_ids(1), context=model.encoder(_ids(2), return_embeddings=True))
        if isinstance(model, ViTransformerWrapper):
            return model(torch.randn(2, 3, 12, 12, generator=noise).to(dtype))
        if isinstance(model, ContinuousTransformerWrapper):
            return model(torch.randn(2, 9, 5, generator=noise).to(dtype))
        return model(_ids(1))


def keys(model: nn.Module) -> list[str]:
    """ "name shape" of every tensor in the state dict, sorted."""
    return sorted(f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items())


RUN = {
    "model": {
        "num_tokens": 256,
        "max_seq_len": 17,
        "emb_dropout": 0.1,
        "layers": {
            "dim": 16,
            "depth": 1,
            "heads": 2,
            "head_dim": 8,
            "position": "rope",
            "attn": {"dropout": 0.1},
            "ff": {"dropout": 0.1, "mult": 2},
        },
    },
    "data": {"path": "sums.txt", "val_fraction": 0.1},
    "optimizer": {"lr": 5e-3, "warmup_steps": 2},
    "run": {
        "dir": "run",
        "steps": 8,
        "batch_size": 3,
        "accumulate": 2,
        "seed": 7,
        "device": "cpu",
        "log_every": 1,
        "eval_every": 4,
        "save_every": 4,
        "stop_after": 4,
    },
}
"""A run of eight steps that stopped after four, with paths relative to its folder."""
