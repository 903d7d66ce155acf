"""The two models of each row: ours and x-transformers', from the same flags where both spell them alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import x_positional as ours

VOCAB, DIM, DEPTH, HEADS = 8192, 512, 6, 8


@dataclass(frozen=True)
class Row:
    """One scheme. flash: whether x-transformers can run it fused (ours chooses by itself)."""

    flags: dict[str, Any]
    wrapper: dict[str, Any]
    flash: bool = True


def _row(flash: bool = True, wrapper: dict[str, Any] | None = None, **flags: Any) -> Row:
    return Row(flags, wrapper or {}, flash)


NO_TABLE = {"use_abs_pos_emb": False}
ROWS: dict[str, Row] = {
    "none": _row(wrapper=NO_TABLE),
    "absolute": _row(),
    "scaled_sinusoidal": _row(wrapper={"scaled_sinu_pos_emb": True}),
    "rope": _row(rotary_pos_emb=True),
    "xpos": _row(rotary_xpos=True),
    "polar": _row(polar_pos_emb=True),
    "alibi": _row(alibi_pos_bias=True, wrapper=NO_TABLE),
    "t5": _row(rel_pos_bias=True, flash=False),
    "dynamic": _row(dynamic_pos_bias=True, wrapper=NO_TABLE, flash=False),
    "cope": _row(attn_use_cope=True, wrapper=NO_TABLE, flash=False),
    "forgetting": _row(attn_data_dependent_alibi=True, wrapper=NO_TABLE),
}


def build_ours(row: Row, max_seq_len: int) -> nn.Module:
    """An AutoregressiveWrapper of this library."""
    layers = ours.Decoder(dim=DIM, depth=DEPTH, heads=HEADS, **row.flags)
    net = ours.TransformerWrapper(num_tokens=VOCAB, max_seq_len=max_seq_len, attn_layers=layers, **row.wrapper)
    return ours.AutoregressiveWrapper(net)


def build_theirs(row: Row, max_seq_len: int) -> nn.Module:
    """The same from x-transformers, fused where it can be."""
    import x_transformers as peer

    layers = peer.Decoder(dim=DIM, depth=DEPTH, heads=HEADS, attn_flash=row.flash, **row.flags)
    net = peer.TransformerWrapper(num_tokens=VOCAB, max_seq_len=max_seq_len, attn_layers=layers, **row.wrapper)
    return peer.AutoregressiveWrapper(net)


BUILDERS: dict[str, Callable[[Row, int], nn.Module]] = {"ours": build_ours, "theirs": build_theirs}


def make(library: str, scheme: str, max_seq_len: int, device: torch.device) -> nn.Module:
    """A freshly initialised model, the same seed for both libraries."""
    torch.manual_seed(0)
    return BUILDERS[library](ROWS[scheme], max_seq_len).to(device)
