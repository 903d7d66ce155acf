"""Packed rows said by the lengths of their documents; positions that start again, or go on."""

import pytest
import torch

from tests.support.rounding import assert_same
from tests.support.small_models import decoder, ids
from x_positional import AutoregressiveWrapper, ContinuousTransformerWrapper, Decoder
from x_positional.errors import InputError


@torch.no_grad()
@pytest.mark.parametrize("position", ["rope", "alibi", "sinusoidal", "cope", "forgetting"])
@pytest.mark.parametrize("seq_lens", [[[3, 1, 5], [9]], [[2, 7], [8, 1]]], ids=str)
def test_documents_of_these_lengths_equal_each_alone(position: str, seq_lens: list[list[int]]) -> None:
    net, tokens = decoder(position), ids(2, 9)
    packed = net(tokens, seq_lens=seq_lens)
    for row, lengths in enumerate(seq_lens):
        start = 0
        for length in lengths:
            piece = slice(start, start + length)
            alone = net(tokens[row : row + 1, piece])[0]
            assert_same(packed[row, piece], alone)
            start += length


@torch.no_grad()
def test_one_list_is_for_every_row_and_every_class_takes_it() -> None:
    net, tokens, documents = decoder("sinusoidal"), ids(2, 9), torch.tensor([0] * 4 + [1] * 5)
    for lengths in ([4, 5], torch.tensor([4, 5]), [[4, 5], [4, 5]]):
        assert torch.equal(net(tokens, seq_lens=lengths), net(tokens, document_ids=documents))
    x = torch.randn(2, 9, 24)
    assert torch.equal(net.attn_layers(x, seq_lens=[4, 5]), net.attn_layers(x, document_ids=documents))
    wrapper = AutoregressiveWrapper(net)
    assert torch.equal(wrapper(tokens, seq_lens=[4, 5]), wrapper(tokens, document_ids=documents))
    series = ContinuousTransformerWrapper(dim_in=24, max_seq_len=9, attn_layers=Decoder(dim=24, depth=2, heads=3))
    assert torch.equal(series(x, seq_lens=[4, 5]), series(x, document_ids=documents))


@torch.no_grad()
def test_positions_start_again_or_go_on() -> None:
    tokens, lengths = ids(1, 9), [4, 5]
    absolute, relative = decoder("sinusoidal"), decoder("rope")
    for net, matters in ((absolute, True), (relative, False)):
        again = net(tokens, seq_lens=lengths)
        on = net(tokens, seq_lens=lengths, positions=torch.arange(9))
        assert bool((again - on).abs().max() > 1e-3) is matters
        alone = net(tokens[:, 4:], positions=torch.arange(4, 9))
        assert_same(on[:, 4:], alone)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seq_lens": [4, 4]}, r"add up to the 9 tokens of a row; \[4, 4\] adds up to 8"),
        ({"seq_lens": [[4, 5]]}, "seq_lens has 1 rows, but the batch has 2"),
        ({"seq_lens": [0, 9]}, "positive integers"),
        ({"seq_lens": [4.5, 4.5]}, "positive integers"),
        ({"seq_lens": [4, 5], "document_ids": torch.zeros(9, dtype=torch.long)}, "both specify where documents end"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(given: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decoder()(ids(2, 9), **given)
