"""What the kernels behind a backend take: head widths, dtypes, masks. Facts of torch 2.9 to 2.13, no decisions.

D query and key width of a head, E value width.
"""

from dataclasses import dataclass

import torch

from x_positional.attention.backends.varlen import FLASH_MAX, HALF

FLEX_MIN = 16


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What scaled_dot_product_attention is given. masked: a mask or bias tensor; mask_grad: it is trained; grouped: fewer key
    heads than query heads."""

    qk: int
    v: int
    dtype: torch.dtype
    masked: bool = False
    mask_grad: bool = False
    grouped: bool = False
    dropout: bool = False


def sdpa_kernel(device: str, heads: Heads) -> tuple[str, list[str]]:
    """The kernel that scaled_dot_product_attention picks, and why no faster one. "math" holds the whole score matrix."""
    found = _cuda(heads) if device == "cuda" else _cpu(heads)
    reasons = []
    for name, why in found.items():
        if not why:
            return name, reasons
        reasons.append(f"{name} {' and '.join(why)}")
    return "math", reasons


def _cuda(heads: Heads) -> dict[str, list[str]]:
    equal = f"wants q, k and v equally wide, and they are {heads.qk} and {heads.v}"
    half = f"takes float16 and bfloat16, not {_name(heads.dtype)}"
    step = 8 if heads.dtype in HALF else 4
    flash = {
        equal: heads.qk != heads.v,
        f"takes heads up to {FLASH_MAX} wide, not {heads.qk}": heads.qk > FLASH_MAX,
        half: heads.dtype not in HALF,
        "takes no bias and no mask tensor": heads.masked,
    }
    efficient = {
        f"wants widths that are multiples of {step} in {_name(heads.dtype)}, not {heads.qk} and {heads.v}": bool(
            heads.qk % step or heads.v % step
        ),
        "takes no grouped key heads": heads.grouped,
        f"takes float16, bfloat16 and float32, not {_name(heads.dtype)}": heads.dtype not in (*HALF, torch.float32),
    }
    return {"flash": _true(flash), "memory-efficient": _true(efficient)}


def _cpu(heads: Heads) -> dict[str, list[str]]:
    flash = {
        f"wants q, k and v equally wide, and they are {heads.qk} and {heads.v}": heads.qk != heads.v,
        "takes no dropout": heads.dropout,
        "has no gradient for a bias": heads.mask_grad,
    }
    return {"flash": _true(flash)}


def _true(reasons: dict[str, bool]) -> list[str]:
    return [reason for reason, holds in reasons.items() if holds]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
