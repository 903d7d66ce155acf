"""Rope with sections (M-RoPE, its interleaved order, VideoRoPE) against explicit loops, and where it must be plain RoPE.

B batch, T tokens, H heads, D head dim, A position axes, F pairs.
"""

import cmath
import math
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.support.axial_positions import coordinates, dims
from tests.support.naive_attention import Row, attended, dot, naive, one_layer, random_qkv, worst
from tests.support.planning import plan_of
from tests.support.rounding import assert_same
from x_positional import Decoder, TransformerWrapper
from x_positional.errors import PositionError
from x_positional.schemes import (
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    Ntk,
    NtkAlpha,
    NtkByParts,
    Proportional,
    Rope,
    RopeEmbedding,
    XPos,
    Yarn,
    YarnPaper,
)

HEADS, HEAD_DIM = 2, 24
TIGHT = 1e-6

VARIANTS = {
    "contiguous": Rope(sections=(2, 5, 5)),
    "contiguous, interleaved pairs, partial": Rope(sections=(1, 3, 4), dim=16, interleaved=True),
    "two axes": Rope(sections=(5, 7), theta=500.0),
    "four axes": Rope(sections=(3, 3, 4, 2)),
    "interleaved": Rope(sections=(5, 3, 4), section_order="interleaved"),
    "interleaved, interleaved pairs, partial": Rope(
        sections=(4, 3, 2), section_order="interleaved", fraction=0.75, interleaved=True
    ),
    "video": Rope(sections=(4, 4, 4), section_order="video"),
    "video, interleaved pairs, interpolated": Rope(
        sections=(6, 3, 3), section_order="video", interleaved=True, interpolation_factor=4.0
    ),
    "last head": Rope(sections=(2, 5, 5), heads=1, base_rescale_factor=3.0),
}


def axes_of_pairs(config: Rope) -> list[int]:
    """Which axis turns pair 0, 1, 2, ...: written out one pair after the other."""
    left, count = list(config.sections), len(config.sections)
    out = []
    for f in range(sum(config.sections)):
        if config.section_order == "contiguous":
            axis = next(a for a in range(count) if left[a])
        elif config.section_order == "video":  # height, width, height, width, ... and then time
            axis = 1 + f % (count - 1) if sum(left[1:]) else 0
        else:  # time, height, width, time, height, width, ... and time in place of what is used up
            axis = f % count if left[f % count] else 0
        left[axis] -= 1
        out.append(axis)
    return out


def frequencies(config: Rope, R: int) -> list[float]:
    base = config.theta * config.base_rescale_factor ** (R / (R - 2))
    return [base ** (-2 * i / R) / config.interpolation_factor for i in range(R // 2)]


def rotated(x: Row, position: Sequence[float], head: int, config: Rope) -> list[float]:
    if config.heads is not None and head < HEADS - config.heads:
        return list(x)
    R, out = config.dim or int(len(x) * (config.fraction or 1)), list(x)
    for f, (frequency, axis) in enumerate(zip(frequencies(config, R), axes_of_pairs(config), strict=True)):
        first, second = (2 * f, 2 * f + 1) if config.interleaved else (f, f + R // 2)
        turned = complex(x[first], x[second]) * cmath.exp(1j * position[axis] * frequency)
        out[first], out[second] = turned.real, turned.imag
    return out


def logits(config: Rope, positions: Tensor):
    at = positions.tolist()

    def of(query: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        turned = rotated(query, at[b][m], h, config)
        pairs = zip(keys, seen, strict=True)
        return [dot(turned, rotated(key, at[b][n], h, config)) / math.sqrt(len(query)) for key, n in pairs]

    return of


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_sections_in_attention(config: Rope, causal: bool) -> None:
    qkv, positions = random_qkv(HEADS, HEAD_DIM), coordinates(len(config.sections))
    found = attended(one_layer(config, HEADS, HEAD_DIM, causal=causal), qkv, positions)
    assert worst(found, naive(qkv, logits(config, positions), causal)) < TIGHT


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (1,) * 9])
def test_sections_in_chunks_at_far_and_fractional_positions(config: Rope, chunks: tuple[int, ...]) -> None:
    qkv, positions = random_qkv(HEADS, HEAD_DIM), coordinates(len(config.sections), 2**20 - 90, 2**20).double() + 0.25
    found = attended(one_layer(config, HEADS, HEAD_DIM), qkv, positions, chunks)
    assert worst(found, naive(qkv, logits(config, positions))) < TIGHT


@pytest.mark.parametrize(
    ("config", "order"),
    [
        (Rope(sections=(16, 24, 24)), "t" * 16 + "h" * 24 + "w" * 24),  # Qwen2-VL
        (Rope(sections=(24, 20, 20), section_order="interleaved"), "thw" * 20 + "tttt"),  # Qwen3-VL
        (Rope(sections=(11, 11, 10), section_order="interleaved"), "thw" * 10 + "th"),  # Qwen3.5
        (Rope(sections=(16, 24, 24), section_order="video"), "hw" * 24 + "t" * 16),  # VideoRoPE
    ],
)
def test_published_orders(config: Rope, order: str) -> None:
    """One axis at 1 and the others at 0: only that axis's pairs turn."""
    width = 2 * sum(config.sections)
    scheme = RopeEmbedding(width, sections=config.sections, section_order=config.section_order)
    positions = torch.eye(3)[None]
    turned = scheme.tables(positions).k_sin[0, 0, :, width // 2 :] != 0
    assert ["".join("thw"[int(a)] for a in turned.long().argmax(0))] == [order]
    assert (turned.sum(0) == 1).all()


SCALINGS = {
    "linear": Linear(factor=4),
    "ntk": Ntk(factor=4),
    "ntk_alpha": NtkAlpha(alpha=50),
    "proportional": Proportional(fraction=0.5),
    "llama3": Llama3(original_max_position_embeddings=64),
    "yarn": Yarn(factor=4, original_max_position_embeddings=64),
    "yarn_paper": YarnPaper(factor=4, original_max_position_embeddings=64),
    "by_parts": NtkByParts(factor=4, original_max_position_embeddings=64),
    "dynamic": DynamicNtk(original_max_position_embeddings=64, length=200),
    "dynamic, recomputed": DynamicNtk(original_max_position_embeddings=64, length_policy="recompute"),
    "longrope": LongRope(
        short_factor=(1.0,) * 12,
        long_factor=tuple(1 + i / 3 for i in range(12)),
        factor=4.0,
        original_max_position_embeddings=64,
        length_policy="recompute",
    ),
}


@pytest.mark.parametrize("scaling", [None, *SCALINGS.values()], ids=["none", *SCALINGS])
@pytest.mark.parametrize("order", ["contiguous", "interleaved", "video"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_equal_positions_are_plain_rope_under_every_scaling(scaling, order: str, interleaved: bool) -> None:
    """To the last bit, given with axes or without; and one axis alone is plain RoPE on its pairs."""
    shared = {"theta": 700.0, "interleaved": interleaved, "scaling": scaling}
    plain, ours = RopeEmbedding(24, **shared), RopeEmbedding(24, sections=(4, 4, 4), section_order=order, **shared)
    at = torch.tensor([[0, 1, 2, 63, 64, 255, 256, 131_071]])
    want, alike = plain.tables(at), at[..., None].expand(-1, -1, 3)
    for found in (ours.tables(alike), ours.tables(at)):
        assert torch.equal(found.q_cos, want.q_cos)
        assert torch.equal(found.k_sin, want.k_sin)
    uneven = torch.stack([at, at.flip(1), at.roll(1, 1)], -1)
    tables, order_of = ours.tables(uneven), axes_of_pairs(Rope(sections=(4, 4, 4), section_order=order))
    for f, axis in enumerate(order_of):
        channels = [2 * f, 2 * f + 1] if interleaved else [f, f + 12]
        single = plain.tables(uneven[..., axis])
        assert torch.equal(tables.q_sin[..., channels], single.q_sin[..., channels])


@pytest.mark.parametrize("order", ["contiguous", "interleaved", "video"])
def test_a_model_reads_text_as_plain_rope_does(order: str) -> None:
    def model(**fields) -> TransformerWrapper:
        torch.manual_seed(0)
        stack = Decoder(dim=24, depth=2, heads=2, attn_dim_head=24, position=Rope(**fields))
        return TransformerWrapper(num_tokens=17, max_seq_len=32, attn_layers=stack).eval()

    tokens = torch.arange(11)[None] % 17
    plain, ours = model(), model(sections=(4, 4, 4), section_order=order)
    with torch.no_grad():
        assert torch.equal(ours(tokens), plain(tokens))
        text = torch.arange(11)[None, :, None].expand(-1, -1, 3)
        assert_same(ours(tokens, positions=text), plain(tokens))
        assert worst(ours(tokens, positions=text * torch.tensor([1, 50, 2])), plain(tokens)) > 1e-2


FAR = [255, 256, 257, 777, 4095, 65_535, 131_071, 2**20 - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["contiguous", "interleaved", "video"])
def test_angles_of_a_narrow_model(dtype: torch.dtype, order: str) -> None:
    stack = Decoder(dim=32, depth=2, heads=2, attn_dim_head=24, position=Rope(sections=(4, 4, 4), section_order=order))
    stack.to(dtype)
    positions = torch.stack([torch.tensor(FAR).roll(i) for i in range(3)], -1)[None]
    tables = plan_of(stack, len(FAR), dtype, positions).layers[1].tables
    config = Rope(sections=(4, 4, 4), section_order=order)
    pairs = list(zip(frequencies(config, 24), axes_of_pairs(config), strict=True))
    angles = [[position[axis] * f for f, axis in pairs] for position in positions[0].tolist()]
    turns = torch.tensor([[cmath.exp(1j * a) for a in row] for row in angles], dtype=torch.complex128)
    assert worst(tables.q_cos[0, 0, :, :12], turns.real) < TIGHT
    assert worst(tables.k_sin[0, 0, :, 12:], turns.imag) < TIGHT


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Rope(sections=(4, 4, 3)), r"sections=\(4, 4, 3\) sum to 11, and there are 12 pairs. Make them sum to 12"),
        (Rope(sections=(4, 4, 4), dim=16), "sum to 12, and there are 8 pairs"),
        (Rope(sections=(12,)), "two or more numbers above 0"),
        (Rope(sections=(12, 0)), "two or more numbers above 0"),
        (Rope(sections=(2, 5, 5), section_order="interleaved"), "which needs 15 pairs. Give axis 0 a larger section"),
        (Rope(sections=(2, 4, 6), section_order="video"), r"sections must be equal. Use \(2, 5, 5\)"),
        (Rope(section_order="video"), "needs sections. Set sections"),
        (XPos(sections=(4, 4, 4)), "the decay needs a single distance. Use rope"),
    ],
)
def test_what_cannot_work(config: Rope, words: str) -> None:
    (problem,) = config.problems(dims(24))
    assert re.search(words, problem), problem


def test_positions_with_other_axes_are_refused() -> None:
    stack = Decoder(dim=24, depth=2, heads=2, attn_dim_head=24, position=Rope(sections=(4, 4, 4)))
    model = TransformerWrapper(num_tokens=17, max_seq_len=32, attn_layers=stack)
    tokens = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(PositionError, match="positions have 2 axes, but RopeEmbedding takes 3"):
        model(tokens, positions=torch.zeros(2, 5, 2))
    with pytest.raises(PositionError, match="positions have 4 axes, but RopeEmbedding takes 3"):
        model(tokens, positions=torch.zeros(2, 5, 4))
