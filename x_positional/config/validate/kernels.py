"""Which head widths, dtypes and masks the kernels behind a backend support: facts of torch 2.9 to 2.13, no decisions.

D query and key width of a head, E value width.
"""

from dataclasses import dataclass

import torch

from x_positional.attention.backends.varlen import FLASH_MAX, HALF

FLEX_MIN = 16


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What scaled_dot_product_attention gets."""

    qk: int
    """Width of queries and keys."""
    v: int
    """Width of values."""
    dtype: torch.dtype
    """Of all three."""
    masked: bool = False
    """A mask or bias tensor is given."""
    mask_grad: bool = False
    """The bias needs a gradient."""
    grouped: bool = False
    """Fewer key heads than query heads."""
    dropout: bool = False
    """Attention weights are dropped out."""


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
    equal = f"needs q, k and v of one width, not {heads.qk} and {heads.v}"
    half = f"supports float16 and bfloat16, not {_name(heads.dtype)}"
    step = 8 if heads.dtype in HALF else 4
    flash = {
        equal: heads.qk != heads.v,
        f"supports heads up to {FLASH_MAX} wide, not {heads.qk}": heads.qk > FLASH_MAX,
        half: heads.dtype not in HALF,
        "supports no bias and no mask tensor": heads.masked,
    }
    efficient = {
        f"needs widths that are multiples of {step} in {_name(heads.dtype)}, not {heads.qk} and {heads.v}": bool(
            heads.qk % step or heads.v % step
        ),
        "supports no grouped key heads": heads.grouped,
        f"supports float16, bfloat16 and float32, not {_name(heads.dtype)}": heads.dtype not in (*HALF, torch.float32),
    }
    return {"flash": _true(flash), "memory-efficient": _true(efficient)}


def _cpu(heads: Heads) -> dict[str, list[str]]:
    flash = {
        f"needs q, k and v of one width, not {heads.qk} and {heads.v}": heads.qk != heads.v,
        "supports no dropout": heads.dropout,
        "has no gradient for a bias": heads.mask_grad,
    }
    return {"flash": _true(flash)}


def _true(reasons: dict[str, bool]) -> list[str]:
    return [reason for reason, holds in reasons.items() if holds]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
