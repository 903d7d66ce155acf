"""Positions of text with images and video: against loops written out, transformers where it is right, and through models.

B batch, T tokens.
"""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.rounding import assert_same
from x_positional import Decoder, TransformerWrapper
from x_positional.schemes import Rope
from x_positional.schemes.multimodal import Image, Segment, Text, Video, multimodal_positions

Triple = tuple[int, int, int]

ROWS: dict[str, list[Segment]] = {
    "text": [Text(4)],
    "image between text": [Text(3), Image(2, 5), Text(4)],
    "image first": [Image(4, 3), Text(2)],
    "images side by side": [Text(1), Image(2, 2), Image(1, 6), Text(0), Image(3, 1), Text(2)],
    "video between text": [Text(3), Video(10, 2, 2), Text(3)],
    "video last": [Text(6), Image(3, 3), Text(1), Video(2, 4, 3)],
    "wide video first": [Video(2, 2, 9), Text(5), Video(3, 7, 1), Text(1)],
    "empty": [],
}


def slow(
    row: list[Segment], layout: str = "grid", delta: int = 2, seconds: float | None = None
) -> tuple[list[Triple], int]:
    """(time, height, width) of one token after another, and the position after the last."""
    out: list[Triple] = []
    start = 0
    for segment in row:
        first = len(out)
        if isinstance(segment, Text):
            out += [(start + i,) * 3 for i in range(segment.length)]
        else:
            frames = segment.frames if isinstance(segment, Video) else 1
            for t, h, w in itertools.product(range(frames), range(segment.height), range(segment.width)):
                step = (
                    t if seconds is None or isinstance(segment, Image) else int(t * segment.seconds_per_grid * seconds)
                )
                if layout == "grid":
                    out.append((start + step, start + h, start + w))
                else:
                    now = start + delta * step
                    out.append((now, now + h - (segment.height - 1) // 2, now + w - (segment.width - 1) // 2))
        new = out[first:]
        if new:
            start = 1 + max(max(p) if layout == "grid" else p[0] for p in new)
    low = min([0, *(c for p in out for c in p)])
    return [(t - low, h - low, w - low) for t, h, w in out], start - low


@pytest.mark.parametrize("layout", ["grid", "diagonal"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("length", [None, 70])
def test_a_batch_is_its_rows(layout: str, padding: str, length: int | None) -> None:
    found = multimodal_positions(list(ROWS.values()), layout=layout, padding=padding, length=length)
    longest = length or max(len(slow(row)[0]) for row in ROWS.values())
    assert found.positions.shape == (len(ROWS), longest, 3)
    assert found.positions.dtype == found.offsets.dtype == torch.long
    for row, positions, offset in zip(ROWS.values(), found.positions.tolist(), found.offsets.tolist(), strict=True):
        want, after = slow(row, layout)
        filling = [[-1] * 3] * (longest - len(want))
        want_rows = [list(p) for p in want]
        assert positions == (filling + want_rows if padding == "left" else want_rows + filling)
        assert offset == after - len(want)


@pytest.mark.parametrize("delta", [1, 2, 5])
@pytest.mark.parametrize("name", ROWS)
def test_the_diagonal_layout(name: str, delta: int) -> None:
    found = multimodal_positions([ROWS[name]], layout="diagonal", delta=delta)
    assert [tuple(p) for p in found.positions[0].tolist()] == slow(ROWS[name], "diagonal", delta)[0]


def test_published_examples() -> None:
    """Text(3), a video of 3 frames of 2 x 2, text: positions by hand, in both layouts."""
    row = [Text(3), Video(3, 2, 2), Text(2)]
    grid = multimodal_positions([row])
    assert grid.positions[0, 3:15].T.tolist() == [
        [3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5],
        [3, 3, 4, 4] * 3,
        [3, 4] * 6,
    ]
    assert grid.positions[0, 15:, 0].tolist() == [6, 7]
    assert grid.offsets.tolist() == [8 - 17]
    diagonal = multimodal_positions([row], layout="diagonal")
    assert diagonal.positions[0, 3:15].T.tolist() == [
        [3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 7],
        [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8],
        [3, 4, 3, 4, 5, 6, 5, 6, 7, 8, 7, 8],
    ]
    assert diagonal.positions[0, 15:, 0].tolist() == [8, 9]


def test_time_by_the_clock() -> None:
    """fps 1 and patches of 2 frames: 2 seconds a grid, 25 tokens a second, 50 apart; fractions are rounded down."""
    found = multimodal_positions([[Text(1), Video(3, 1, 2, seconds_per_grid=2.0), Text(1)]], tokens_per_second=25)
    assert found.positions[0, :, 0].tolist() == [0, 1, 1, 51, 51, 101, 101, 102]
    assert found.offsets.tolist() == [103 - 8]
    row = [Text(2), Video(9, 2, 3, seconds_per_grid=0.4), Image(2, 2), Video(4, 1, 1, seconds_per_grid=1.0)]
    found = multimodal_positions([row], tokens_per_second=2)
    assert [tuple(p) for p in found.positions[0].tolist()] == slow(row, seconds=2)[0]
    assert found.positions[0, 2:56:6, 0].tolist() == [2, 2, 3, 4, 5, 6, 6, 7, 8]


@pytest.mark.parametrize("layout", ["grid", "diagonal"])
@pytest.mark.parametrize("name", ROWS)
def test_order_is_kept(name: str, layout: str) -> None:
    """Time never goes back; text comes after all it follows; the decode offset goes on from it."""
    row = ROWS[name]
    found = multimodal_positions([row], layout=layout)
    positions = found.positions[0]
    assert (positions[:, 0].diff() >= 0).all()
    assert (positions >= 0).all()
    at = 0
    for segment in row:
        count = segment.length if isinstance(segment, Text) else segment.height * segment.width
        count *= segment.frames if isinstance(segment, Video) else 1
        before, mine = positions[:at], positions[at : at + count]
        if at and count:
            seen = before if layout == "grid" else before[:, :1]
            assert mine[:, 0].min() == seen.max() + 1
        at += count
    if at:
        last = positions if layout == "grid" else positions[:, :1]
        assert len(positions) + found.offsets.item() == last.max() + 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Text(-1), "length=-1: expected an integer of at least 0"),
        (lambda: Image(0, 3), "height=0: expected an integer of at least 1"),
        (lambda: Video(2, 2.5, 0), "height=2.5, width=0"),
        (lambda: Video(2, 2, 2, seconds_per_grid=0.0), "seconds_per_grid=0.0 must be above 0"),
        (lambda: multimodal_positions([]), "rows is empty"),
        (
            lambda: multimodal_positions([[Text(3)]], length=2),
            "length=2 is shorter than the longest row, which has 3 tokens",
        ),
        (lambda: multimodal_positions([[Text(3)]], delta=3), "delta=3 needs layout='diagonal'"),
        (lambda: multimodal_positions([[Text(3)]], layout="diagonal", delta=0), "delta=0 must be"),
        (lambda: multimodal_positions([[Text(3)]], layout="diagonal", delta=1.5), "delta=1.5 must be"),
        (lambda: multimodal_positions([[Video(1, 1, 1, 2.0)]]), "seconds_per_grid needs tokens_per_second"),
        (
            lambda: multimodal_positions([[Video(1, 1, 1)]], tokens_per_second=2),
            "needs seconds_per_grid on every video",
        ),
        (lambda: multimodal_positions([[Text(1)]], tokens_per_second=0), "tokens_per_second=0 must be above 0"),
    ],
)
def test_what_cannot_be_placed(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def theirs(rows: list[list[Segment]], tokens_per_second: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [3 B T] and offsets of Qwen2.5-VL in transformers, right padded."""
    modeling = pytest.importorskip(
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", reason="the oracle is transformers"
    )
    model, kinds, grids, seconds = modeling.Qwen2_5_VLModel, [], {1: [], 2: []}, []
    for row in rows:
        mine: list[int] = []
        for segment in row:
            if isinstance(segment, Text):
                mine += [0] * segment.length
                continue
            kind, frames = (2, segment.frames) if isinstance(segment, Video) else (1, 1)
            grids[kind].append([frames, 2 * segment.height, 2 * segment.width])
            mine += [kind] * frames * segment.height * segment.width
            seconds += [segment.seconds_per_grid] if isinstance(segment, Video) else []
        kinds.append(mine)
    longest = max(map(len, kinds))
    mask = torch.tensor([[1] * len(mine) + [0] * (longest - len(mine)) for mine in kinds])
    types = torch.tensor([mine + [0] * (longest - len(mine)) for mine in kinds])
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=tokens_per_second)
    self = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    self.get_vision_position_ids = lambda *args, **named: model.get_vision_position_ids(self, *args, **named)
    images, videos = (torch.tensor(grids[kind]) if grids[kind] else None for kind in (1, 2))
    clock = torch.tensor(seconds) if seconds else None
    return model.get_rope_index(self, torch.zeros_like(types), types, images, videos, clock, mask)


def test_transformers_agrees_where_no_text_follows_a_video() -> None:
    rows = [
        [Text(3), Image(2, 5), Text(4), Image(3, 3), Text(2)],
        [Text(7), Video(4, 2, 3, seconds_per_grid=1.5)],
        [Text(2), Image(1, 4), Text(1), Video(9, 3, 2, seconds_per_grid=0.4)],
        [Text(5)],
    ]
    found, (want, deltas) = multimodal_positions(rows, tokens_per_second=2), theirs(rows, 2)
    real = found.positions[..., 0] != -1
    assert torch.equal(found.positions[real], want.permute(1, 2, 0)[real])
    assert torch.equal(found.offsets, deltas[:, 0])


def test_text_after_a_video_does_not_fall_into_it() -> None:
    """transformers 5.24 starts it inside the video, and goes on decoding from elsewhere."""
    rows: list[list[Segment]] = [[Text(3), Video(10, 2, 2, seconds_per_grid=0.5), Text(3)]]
    found, (want, _) = multimodal_positions(rows, tokens_per_second=2), theirs(rows, 2)
    assert found.positions[0, -3:, 0].tolist() == [13, 14, 15]
    assert found.offsets.item() + found.positions.shape[1] == 16
    assert want[0, 0, -3:].tolist() == [5, 6, 7]


def model_with(order: str) -> TransformerWrapper:
    torch.manual_seed(3)
    stack = Decoder(dim=24, depth=2, heads=2, attn_dim_head=24, position=Rope(sections=(4, 4, 4), section_order=order))
    return TransformerWrapper(num_tokens=31, max_seq_len=64, attn_layers=stack).eval()


@pytest.mark.parametrize("order", ["contiguous", "interleaved", "video"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("layout", ["grid", "diagonal"])
@torch.no_grad()
def test_ragged_prompts_with_images_decode_like_each_row_alone(order: str, padding: str, layout: str) -> None:
    """A padded batch is prefilled in two chunks and decoded by the offsets; each row alone, in one pass, says the same."""
    rows: list[list[Segment]] = [
        [Text(3), Video(4, 2, 2), Text(2)],
        [Text(5)],
        [Image(3, 4), Text(1)],
        [Text(1), Video(2, 1, 3)],
    ]
    found, model, steps = multimodal_positions(rows, layout=layout, padding=padding), model_with(order), 5
    lengths = (found.positions[..., 0] != -1).sum(1)
    T = found.positions.shape[1]
    prompts = torch.randint(0, 31, (4, T), generator=torch.Generator().manual_seed(1))
    later = torch.randint(0, 31, (4, steps), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache(4)
    for cut in (slice(0, 7), slice(7, T)):
        model(prompts[:, cut], positions=found.positions[:, cut], cache=cache)
    index = lengths[:, None] + torch.arange(steps)
    got = [
        model(later[:, i : i + 1], positions=(index + found.offsets[:, None])[:, i : i + 1], cache=cache)
        for i in range(steps)
    ]
    for b, row in enumerate(rows):
        own = found.positions[b][found.positions[b, :, 0] != -1]
        tokens = torch.cat([prompts[b][found.positions[b, :, 0] != -1], later[b]])[None]
        _, after = slow(row, layout)
        on = torch.arange(after, after + steps)[:, None].expand(-1, 3)
        alone = model(tokens, positions=torch.cat([own, on])[None])
        assert_same(torch.cat(got, 1)[b], alone[0, -steps:])


def test_the_page_about_axes_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "axes.md").read_text()
    shown: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, shown)
    assert shown["logits"].isfinite().all()
    assert shown["placed"].positions.shape == (2, 36, 3)
