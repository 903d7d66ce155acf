"""How a living stack knows position, in x-transformers' flags.

R rotated width, H heads.
"""

from typing import Any

import torch
from torch import Tensor, nn

from x_positional.pretrained.x_transformers.module_specs import XT
from x_positional.pretrained.x_transformers.reader import Members, Reader, class_of
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
    """[R/2] what decays in xPos, as x-transformers computes it."""
    return (torch.arange(0, width, 2) + 0.4 * width) / (1.4 * width)


def rescale_of(table: Tensor) -> float | None:
    """The rotary_base_rescale_factor of a table of frequencies: the shortest number that gives it bit by bit, or the
    nearest; None where no number gives it."""
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
    """The shortest decimal of a number that was rounded to float32."""
    full = number.item()
    tries = (float(f"{full:.{digits}g}") for digits in range(1, 10))
    return next((short for short in tries if torch.tensor(short, dtype=number.dtype) == number), full)


def position_flags(read: Reader, held: Members, path: str, head_dim: int) -> dict[str, Any]:
    """The flags of a stack's rotary, polar and distance modules."""
    flags: dict[str, Any] = {}
    if held["rotary_pos_emb"] is not None:
        flags |= _rotary(read, held["rotary_pos_emb"], f"{path}rotary_pos_emb", head_dim)
    if held["polar_pos_emb"] is not None and read.members(held["polar_pos_emb"], f"{path}polar_pos_emb"):
        flags["polar_pos_emb"] = True
    bias = held["rel_pos"]
    if bias is not None:
        reader = BIASES.get(class_of(bias))
        known = read.members(bias, f"{path}rel_pos")
        if reader is not None and known:
            flags |= {**read.said(bias, known), **reader(read, known, f"{path}rel_pos", head_dim)}
    return flags


def _rotary(read: Reader, module: nn.Module, path: str, head_dim: int) -> dict[str, Any]:
    held = read.members(module, path)
    if not held:
        return {}
    table, xpos = held["inv_freq"], held["scale"] is not None
    rescale, width = rescale_of(table), 2 * table.shape[0]
    if rescale is None:
        read.strange(
            f"{path}.inv_freq",
            "holds frequencies that no rotary_base_rescale_factor gives, or that were rounded. "
            "Give the flags and the state dict, with rotary frequencies in float32",
        )
    flags = {
        "rotary_xpos" if xpos else "rotary_pos_emb": True,
        "rotary_base_rescale_factor": rescale or 1.0,
        "rotary_interpolation_factor": held["interpolation_factor"],
    }
    if xpos:
        flags["rotary_xpos_scale_base"] = held["scale_base"]
    return flags if width == head_dim // 2 else {**flags, "rotary_emb_dim": width}


def _t5(read: Reader, held: Members, path: str, head_dim: int) -> dict[str, Any]:
    read.expect(held["scale"] == head_dim**0.5, path, f"has scale={held['scale']}, and not that of its heads")
    return {"rel_pos_bias": True}


def _dynamic(read: Reader, held: Members, path: str, head_dim: int) -> dict[str, Any]:
    first, *_ = mlp = list(held["mlp"])
    return {
        "dynamic_pos_bias": True,
        "dynamic_pos_bias_mlp_depth": len(mlp) - 1,
        "dynamic_pos_bias_norm": len(first) == 3,
    }


def _alibi(read: Reader, held: Members, path: str, head_dim: int) -> dict[str, Any]:
    """Slopes of one's own say themselves how many heads have one."""
    slopes, count = held["slopes"].detach().flatten().cpu(), held["heads"]
    usual = torch.tensor(alibi_slopes(count)).to(slopes.dtype)
    if slopes.shape != usual.shape or not torch.allclose(usual, slopes, rtol=CLOSE, atol=0):
        own = {"slopes": [shortest(slope) for slope in slopes]}
        return {"alibi_pos_bias": True, "alibi_num_heads": None, "rel_pos_kwargs": own}
    return {"alibi_pos_bias": True, "alibi_num_heads": None if count == held["total_heads"] else count}


BIASES = {
    XT + "RelativePositionBias": _t5,
    XT + "DynamicPositionBias": _dynamic,
    XT + "AlibiPositionalBias": _alibi,
}
