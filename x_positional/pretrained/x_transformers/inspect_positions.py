"""The flags of a stack's position scheme, read from module instances of x-transformers.

D head dim, R rotated width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from x_positional.pretrained.x_transformers.module_specs import XT
from x_positional.pretrained.x_transformers.reader import Attributes, ModuleReader, class_of
from x_positional.schemes import alibi_slopes

BASE = 10_000.0
CLOSE = 1e-6


def rotary_table(width: int, rescale: float = 1.0) -> Tensor:
    """[R/2] frequencies as x-transformers computes them."""
    base = BASE if rescale == 1.0 else BASE * rescale ** (width / (width - 2))
    return 1.0 / base ** (torch.arange(0, width, 2).float() / width)


def polar_table(width: int) -> Tensor:
    """[D] frequencies of polar embeddings, as x-transformers computes them."""
    return 1.0 / BASE ** (torch.arange(0, width).float() / width)


def xpos_table(width: int) -> Tensor:
    """[R/2] bases of the decay of xPos, as x-transformers computes them."""
    return (torch.arange(0, width, 2) + 0.4 * width) / (1.4 * width)


def rescale_of(table: Tensor) -> float | None:
    """The rotary_base_rescale_factor that gives this frequency table.

    The shortest decimal that gives it bit for bit, else the closest factor; None if no factor gives the table.
    """
    table, width = table.detach().cpu(), 2 * table.shape[0]
    if torch.equal(rotary_table(width).to(table.dtype), table):
        return 1.0
    if width < 4 or table.dtype not in (torch.float32, torch.float64):
        return None
    solved = BASE ** -((width - 2) / width) / table[-1].double().item()
    for digits in range(1, 10):
        short = float(f"{solved:.{digits}g}")
        if torch.equal(rotary_table(width, short).to(table.dtype), table):
            return short
    return solved if torch.allclose(rotary_table(width, solved).to(table.dtype), table, rtol=CLOSE, atol=0) else None


def shortest(number: Tensor) -> float:
    """The shortest decimal that rounds to this scalar tensor in its dtype."""
    full = number.item()
    tries = (float(f"{full:.{digits}g}") for digits in range(1, 10))
    return next((short for short in tries if torch.tensor(short, dtype=number.dtype) == number), full)


def position_flags(reader: ModuleReader, attrs: Attributes, path: str, head_dim: int) -> dict[str, Any]:
    """The flags of a stack's rotary, polar and relative-bias modules."""
    flags: dict[str, Any] = {}
    if attrs["rotary_pos_emb"] is not None:
        flags |= _rotary(reader, attrs["rotary_pos_emb"], f"{path}rotary_pos_emb", head_dim)
    if attrs["polar_pos_emb"] is not None and reader.attributes(attrs["polar_pos_emb"], f"{path}polar_pos_emb"):
        flags["polar_pos_emb"] = True
    bias = attrs["rel_pos"]
    if bias is not None:
        inspector = BIASES.get(class_of(bias))
        inner = reader.attributes(bias, f"{path}rel_pos")
        if inspector is not None and inner:
            flags |= {**reader.flags(bias, inner), **inspector(reader, inner, f"{path}rel_pos", head_dim)}
    return flags


def _rotary(reader: ModuleReader, module: nn.Module, path: str, head_dim: int) -> dict[str, Any]:
    attrs = reader.attributes(module, path)
    if not attrs:
        return {}
    table, xpos = attrs["inv_freq"], attrs["scale"] is not None
    rescale, width = rescale_of(table), 2 * table.shape[0]
    if rescale is None:
        reader.unsupported(
            f"{path}.inv_freq",
            "matches no rotary_base_rescale_factor, because it was changed or rounded to half precision. "
            "Pass the keyword arguments and the state dict instead, with inv_freq in float32",
        )
    flags = {
        "rotary_xpos" if xpos else "rotary_pos_emb": True,
        "rotary_base_rescale_factor": rescale or 1.0,
        "rotary_interpolation_factor": attrs["interpolation_factor"],
    }
    if xpos:
        flags["rotary_xpos_scale_base"] = attrs["scale_base"]
    return flags if width == head_dim // 2 else {**flags, "rotary_emb_dim": width}


def _t5(reader: ModuleReader, attrs: Attributes, path: str, head_dim: int) -> dict[str, Any]:
    reader.expect(
        attrs["scale"] == head_dim**0.5, path, f"has scale={attrs['scale']}, but x-transformers uses sqrt(head_dim)"
    )
    return {"rel_pos_bias": True}


def _dynamic(reader: ModuleReader, attrs: Attributes, path: str, head_dim: int) -> dict[str, Any]:
    first, *_ = mlp = list(attrs["mlp"])
    return {
        "dynamic_pos_bias": True,
        "dynamic_pos_bias_mlp_depth": len(mlp) - 1,
        "dynamic_pos_bias_norm": len(first) == 3,
    }


def _alibi(reader: ModuleReader, attrs: Attributes, path: str, head_dim: int) -> dict[str, Any]:
    """Custom slopes are passed as slopes=; their count then sets the number of heads."""
    slopes, count = attrs["slopes"].detach().flatten().cpu(), attrs["heads"]
    usual = torch.tensor(alibi_slopes(count)).to(slopes.dtype)
    if slopes.shape != usual.shape or not torch.allclose(usual, slopes, rtol=CLOSE, atol=0):
        custom = {"slopes": [shortest(slope) for slope in slopes]}
        return {"alibi_pos_bias": True, "alibi_num_heads": None, "rel_pos_kwargs": custom}
    return {"alibi_pos_bias": True, "alibi_num_heads": None if count == attrs["total_heads"] else count}


BIASES = {
    XT + "RelativePositionBias": _t5,
    XT + "DynamicPositionBias": _dynamic,
    XT + "AlibiPositionalBias": _alibi,
}
