"""Known bugs of rotary-embedding-torch 0.9.1: each is still there, with the number in docs, and fixed here."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import rotary_embedding_torch as theirs
import torch

from tests.support.rotary_faults import (
    after,
    axial_interpolation,
    axial_offsets,
    bf16_call_then_float32,
    bf16_module,
    bf16_position_257,
    bf16_position_777,
    bf16_rows_lost,
    float64_queries,
    fp16_position_2049,
    learned,
    load_after_call,
    meta_device,
    offset_after_longer_call,
    position_65535,
    position_million,
    positive_seq_dim,
    rows_on_heads,
    shape,
    static_method,
    xpos_bf16,
    xpos_decode,
    xpos_history,
    xpos_offset,
    xpos_sequence_first,
)
from x_positional import rotary as ours

PAGE = Path(__file__).parents[2] / "docs" / "rotary-embedding-torch.md"


@dataclass(frozen=True)
class Fault:
    name: str  # the first column of the table in docs
    measure: Callable[[ModuleType], float]
    theirs: float  # measured; infinity: raises
    ours: float  # at most
    spread: float = 0.1


BF16, FP16, FP32 = 2**-8, 2**-11, 2e-6
ROUNDING = 0.6  # the last bit of a float32 power, which differs between processors, times the position
RANGES = torch.linspace(1, 100, 8)
FAULTS = [
    Fault("bfloat16 q, position 257", bf16_position_257, 0.29, BF16),
    Fault("bfloat16 q, position 777", bf16_position_777, 0.41, BF16),
    Fault("bfloat16 q, positions of 1024 lost", bf16_rows_lost, 511, 0),
    Fault("float16 q, position 2049", fp16_position_2049, 0.19, FP16),
    Fault("float32 after a bfloat16 call", bf16_call_then_float32, 0.72, FP32),
    Fault("module cast to bfloat16, position 1000", bf16_module, 0.54, FP32),
    Fault("meta device, then materialised", meta_device, 1.9, FP32),
    Fault("float64 q, 4096 tokens", float64_queries, 5.3e-5, 1e-11, ROUNDING),
    Fault("float32 q, position 65,535", position_65535, 1.8e-4, FP32, ROUNDING),
    Fault("float32 q, position 2^20 - 1", position_million, 7e-3, FP32, ROUNDING),
    Fault("xPos, cached keys, 64", xpos_decode(64), 0.036, 1e-5),
    Fault("xPos, cached keys, 512", xpos_decode(512), 0.19, 1e-5),
    Fault("xPos, cached keys, 2048", xpos_decode(2048), 0.39, 1e-5),
    Fault("xPos, cached keys, offset=100", xpos_offset, 0.069, 1e-5),
    Fault("xPos, cached keys, [B T H D], 3 heads", xpos_sequence_first(3), math.inf, 1e-5),
    Fault("xPos, cached keys, [B T H D], heads = tokens", xpos_sequence_first(16), 0.018, 1e-5),
    Fault("xPos, bfloat16", xpos_bf16, 0.46, 0.01),
    Fault("xPos, get_scale after a longer call", xpos_history, 0.85, 0),
    Fault("freq_ranges to 100, bfloat16", learned((2, 5, 4), RANGES, torch.bfloat16), 0.18, BF16),
    Fault("freq_ranges to 100, float16", learned((2, 5, 4), RANGES, torch.float16), 0.021, FP16),
    Fault("learned rotations, 7 rows of 1 token", learned((7, 1, 32), None, torch.float32), 1.4, FP32),
    Fault("freq_ranges, 7 rows of 1 token", learned((7, 1, 4), RANGES[:4], torch.float32), 1.3, 1e-5),
    Fault("learned rotations, 7 rows of 5 tokens", learned((7, 5, 32), None, torch.float32), math.inf, FP32),
    Fault("get_axial_freqs, offsets, square grid", axial_offsets, 10.0, 1e-6),
    Fault(
        "angles after get_axial_freqs with offsets",
        after(lambda m: m.get_axial_freqs(4, 4, offsets=(7, 10))),
        7.0,
        1e-6,
    ),
    Fault("angles after forward(t, seq_len)", after(lambda m: m(torch.tensor([5.0, 9, 2, 1]), seq_len=4)), 8.0, 1e-6),
    Fault("get_axial_freqs, interpolated, after a call", axial_interpolation, 1.5, 0),
    Fault("offset=-3 after a longer call", offset_after_longer_call(-3), math.inf, FP32),
    Fault("offset=0.5 after a longer call", offset_after_longer_call(0.5), math.inf, FP32),
    Fault("load_state_dict after a call", load_after_call, 0.92, FP32),
    Fault("odd dim", shape(5, 8, 1e4 ** -(torch.arange(0, 4, 2) / 5)), math.inf, FP32),
    Fault("dim=2", shape(2, 8, torch.ones(1)), math.inf, FP32),
    Fault(
        "freqs_for='constant', num_freqs not dim / 2",
        shape(16, 16, torch.ones(3), freqs_for="constant", num_freqs=3),
        math.inf,
        FP32,
    ),
    Fault(
        "custom_freqs, not dim / 2 of them", shape(16, 16, torch.ones(4), custom_freqs=torch.ones(4)), math.inf, FP32
    ),
    Fault("seq_dim=1 of [B T H D], 3 heads", positive_seq_dim(3), math.inf, FP32),
    Fault("seq_dim=1 of [B T H D], heads = tokens", positive_seq_dim(8), 1.1, FP32),
    Fault("apply_rotary_emb, [T R] on [B T H D], heads = tokens", rows_on_heads, 1.1, FP32),
    Fault("rotary.apply_rotary_emb without xPos", static_method, math.inf, FP32),
]


def measured(fault: Fault, library: ModuleType) -> float:
    try:
        return fault.measure(library)
    except (RuntimeError, TypeError, ZeroDivisionError, AttributeError):
        return math.inf


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_theirs_still_has_it(fault: Fault) -> None:
    """If this fails, they may have fixed it: remove the row from the page."""
    assert measured(fault, theirs) == pytest.approx(fault.theirs, rel=fault.spread)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_ours_has_not(fault: Fault) -> None:
    assert fault.measure(ours) <= fault.ours


def test_the_page_lists_them_with_their_figures() -> None:
    table = PAGE.read_text(encoding="utf-8").split("|---|---|---|\n")[1]
    figures = dict(re.findall(r"^\| (.+?) \| (\S+) \| \S+ \|$", table, re.MULTILINE))
    assert figures == {fault.name: "raises" if fault.theirs == math.inf else f"{fault.theirs:g}" for fault in FAULTS}
