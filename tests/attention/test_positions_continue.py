"""Positions that were given, and what follows them in a cache and in generation."""

import pytest
import torch

from tests.support.small_models import close, decoder, ids
from x_positional import AutoregressiveWrapper
from x_positional.errors import InputError, PositionError
from x_positional.schemes.multimodal import Image, Text, multimodal_positions

MROPE = {"kind": "rope", "sections": (2, 1, 1)}


ROWS = [[Text(2), Image(2, 3), Text(1)], [Text(1), Image(3, 2), Text(2)]]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_text_goes_on_after_an_image(chunk: int) -> None:
    net, tokens = decoder(MROPE), ids(2, 9 + 5)
    found = multimodal_positions(ROWS)
    after = (found.positions.amax(dim=(1, 2)) + 1)[:, None] + torch.arange(5)
    want = net(tokens, positions=torch.cat([found.positions, after[..., None].expand(-1, -1, 3)], dim=1))
    assert (after[:, 0] == 9 + found.offsets.flatten()).all()
    cache = net.new_cache(2)
    close(net(tokens[:, :9], positions=found.positions, cache=cache), want[:, :9])
    for i in range(9, 14, chunk):
        close(net(tokens[:, i : i + chunk], cache=cache), want[:, i : i + chunk])


@torch.no_grad()
@pytest.mark.parametrize("position", ["rope", "alibi", "t5", "sinusoidal", "forgetting"])
def test_a_cache_goes_on_after_the_largest_position(position: str) -> None:
    net, tokens = decoder([position, "rope"] if position == "forgetting" else position), ids(2, 9)
    given = torch.tensor([[3, 9, 4, 11, 12, 0], [0, 1, 2, 30, 31, 33]])
    want = net(tokens, positions=torch.cat([given, torch.tensor([[13, 14, 15], [34, 35, 36]])], dim=1))
    cache = net.new_cache(2)
    net(tokens[:, :6], positions=given, cache=cache)
    cache.reorder(torch.tensor([1, 0]))
    got = torch.cat([net(tokens[[1, 0], 6:8], cache=cache), net(tokens[[1, 0], 8:], cache=cache)], dim=1)
    close(got, want[[1, 0], 6:])


@torch.no_grad()
def test_padding_is_no_position() -> None:
    net, tokens = decoder("rope"), ids(2, 8)
    given, mask = torch.tensor([[5, 6, 7, 50], [1, 2, 3, 4]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    cache = net.new_cache(2)
    net(tokens[:, :4], positions=given, mask=mask, cache=cache)
    got = net(tokens[:, 4:], cache=cache)
    alone = net(tokens[:1, [0, 1, 2, 4, 5, 6, 7]], positions=torch.tensor([5, 6, 7, 8, 9, 10, 11]))
    close(got[0], alone[0, 3:])


@pytest.mark.parametrize("options", [{}, {"cache_kv": False}, {"return_cache": True}], ids=str)
def test_generation_goes_on_after_an_image(options: dict) -> None:
    net, tokens = decoder(MROPE), ids(2, 9)
    found = multimodal_positions(ROWS)
    wrapper = AutoregressiveWrapper(net)
    new = wrapper.generate(tokens, 6, temperature=0, positions=found.positions, **options)
    new = new[0] if "return_cache" in options else new
    text, positions = tokens, found.positions
    for step in range(6):
        with torch.no_grad():
            best = net(text, positions=positions)[:, -1].argmax(-1)
        assert (best == new[:, step]).all(), step
        text = torch.cat([text, best[:, None]], dim=1)
        positions = torch.cat([positions, positions.amax((1, 2), keepdim=True).expand(-1, 1, 3) + 1], dim=1)
    assert not torch.equal(new, wrapper.generate(tokens, 6, temperature=0))


def test_what_has_no_next_is_refused() -> None:
    net, tokens = decoder("rope"), ids(1, 4)
    cache = net.new_cache(1)
    net(tokens, positions=torch.rand(1, 4), cache=cache)
    with pytest.raises(InputError, match="have no next position"):
        net(tokens, cache=cache)
    with pytest.raises(InputError, match=r"positions of prompts are torch\.float32"):
        AutoregressiveWrapper(net).generate(tokens, 3, positions=torch.rand(1, 4))
    with pytest.raises(
        PositionError, match=r"positions have 2 axes, but RopeEmbedding takes 3. Pass \[batch, tokens\] or"
    ):
        decoder(MROPE)(tokens, positions=torch.zeros(1, 4, 2, dtype=torch.long))


@torch.no_grad()
def test_minus_one_on_every_axis_is_no_token() -> None:
    net, tokens = decoder(MROPE), ids(1, 5)
    positions = torch.arange(5)[None, :, None].repeat(1, 1, 3)
    masked, coordinate = positions.clone(), positions.clone()
    masked[0, 2], coordinate[0, 2, 1] = -1, -1
    want = net(tokens, positions=positions, mask=torch.tensor([[1, 1, 0, 1, 1]]).bool())
    close(net(tokens, positions=masked)[:, 3:], want[:, 3:])
    moved = net(tokens, positions=coordinate + 1)  # only distances count: one axis at -1 is a place like any other
    close(net(tokens, positions=coordinate), moved)
