"""The training loss: cross entropy by hand, and what is not a target: padding, ignored ids, first tokens of documents."""

import math

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import NUM_TOKENS, ids, language_model, ragged
from x_positional import AutoregressiveWrapper, TransformerWrapper, XTransformer
from x_positional.errors import InputError

IGNORED = -100


@pytest.fixture(scope="module")
def wrapper() -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model("rope"), pad_value=4)


@torch.no_grad()
def surprise(net: TransformerWrapper, row: Tensor) -> list[float]:
    """-log p of each token 1 .. T-1 of a row [T], in nats, computed naively."""
    logits = net(row[None])[0].tolist()
    return [math.log(sum(math.exp(x) for x in logits[t])) - logits[t][int(row[t + 1])] for t in range(len(row) - 1)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_loss_is_the_mean_cross_entropy_by_hand(wrapper) -> None:
    tokens = ids(3, 9)
    expected = mean([nats for row in tokens for nats in surprise(wrapper.net, row)])
    assert wrapper(tokens).item() == pytest.approx(expected, abs=1e-9)
    assert wrapper(tokens.to(torch.uint8)).item() == pytest.approx(expected, abs=1e-9)
    assert expected > 2  # about log(29) or worse: these models are untrained


def test_the_last_token_is_a_target_and_no_input(wrapper) -> None:
    lengths = []
    handle = wrapper.net.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    wrapper(ids(2, 9))
    handle.remove()
    assert lengths == [8]


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_no_target_on_either_side(wrapper, left: bool) -> None:
    rows = ragged(9, 4, 6)
    tokens, mask = torch.full((3, 9), 17), torch.zeros(3, 9, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(9 - len(row), 9) if left else slice(0, len(row))
        tokens[i, place], mask[i, place] = row, True
    expected = mean([nats for row in rows for nats in surprise(wrapper.net, row)])
    assert wrapper(tokens, mask=mask).item() == pytest.approx(expected, abs=1e-9)
    positions = torch.where(mask, mask.long().cumsum(-1) - 1, -1)  # -1 means the same as the mask
    assert wrapper(tokens, positions=positions).item() == pytest.approx(expected, abs=1e-9)
    assert abs(wrapper(tokens).item() - expected) > 1e-3


def test_ignored_ids_are_no_targets_and_are_read_as_pad_value(wrapper) -> None:
    tokens = ids(2, 9)
    ignored = torch.zeros_like(tokens, dtype=torch.bool)
    ignored[0, [3, 8]] = ignored[1, 0] = True
    read = torch.where(ignored, wrapper.pad_value, tokens)
    nats = torch.tensor([surprise(wrapper.net, row) for row in read], dtype=torch.float64)
    expected = nats[~ignored[:, 1:]].mean().item()
    assert wrapper(torch.where(ignored, IGNORED, tokens)).item() == pytest.approx(expected, abs=1e-9)


def test_an_ignore_index_that_is_a_token(wrapper) -> None:
    own, tokens = AutoregressiveWrapper(wrapper.net, ignore_index=2, pad_value=4), ids(2, 9)
    tokens[0, 3] = tokens[1, 8] = 2
    read = torch.where(tokens == 2, 4, tokens)
    nats = torch.tensor([surprise(wrapper.net, row) for row in read], dtype=torch.float64)
    assert own(tokens).item() == pytest.approx(nats[tokens[:, 1:] != 2].mean().item(), abs=1e-9)


def test_the_first_token_of_a_packed_document_is_no_target(wrapper) -> None:
    lengths = [(4, 3, 2), (2, 6, 1)]
    tokens = ids(2, 9)
    documents = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in lengths])
    alone = [part for row, cut in zip(tokens, lengths, strict=True) for part in row.split(cut)]
    expected = mean([nats for part in alone for nats in surprise(wrapper.net, part)])
    assert wrapper(tokens, document_ids=documents).item() == pytest.approx(expected, abs=1e-9)
    assert abs(wrapper(tokens).item() - expected) > 1e-3
    same = wrapper(tokens, document_ids=documents[0])  # one row of documents serves every row
    assert same.item() == pytest.approx(wrapper(tokens, document_ids=documents[:1].expand(2, -1)).item(), abs=1e-12)


def test_positions_of_tokens_that_are_only_targets_are_left_out(wrapper) -> None:
    tokens, positions = ids(2, 9), torch.arange(9) * 3
    expected = torch.nn.functional.cross_entropy(
        wrapper.net(tokens[:, :-1], positions=positions[:-1]).flatten(0, 1), tokens[:, 1:].flatten()
    )
    for given in (positions, positions.expand(2, -1), positions.double()):
        assert wrapper(tokens, positions=given).item() == pytest.approx(expected.item(), abs=1e-9)
    assert abs(wrapper(tokens).item() - expected.item()) > 1e-4


def test_every_parameter_learns_from_the_loss() -> None:
    wrapper = AutoregressiveWrapper(language_model("t5"))
    wrapper(ids(3, 9)).backward()
    still = [name for name, p in wrapper.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_labels_leave_tokens_readable_that_are_no_targets(wrapper) -> None:
    tokens = ids(2, 9)
    labels = tokens.clone()
    labels[0, :4] = labels[1, :6] = labels[1, 8] = IGNORED
    logits = wrapper.net(tokens[:, :-1])
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    assert wrapper(tokens, labels=labels).item() == pytest.approx(by_hand.item(), abs=1e-12)
    assert wrapper(tokens.tolist(), labels=labels.numpy()).item() == pytest.approx(by_hand.item(), abs=1e-12)
    assert wrapper(tokens, labels=tokens).item() == wrapper(tokens).item()
    assert abs(wrapper(labels).item() - by_hand.item()) > 1e-3  # without labels, ignored ids are not read either
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 7:] = False
    hidden = labels.masked_fill(~mask, IGNORED)
    masked = torch.nn.functional.cross_entropy(
        wrapper.net(tokens[:, :-1], mask=mask[:, :-1]).flatten(0, 1), hidden[:, 1:].flatten()
    )
    assert wrapper(tokens, mask=mask, labels=labels).item() == pytest.approx(masked.item(), abs=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda w, x: w(torch.full((2, 9), IGNORED)),
        lambda w, x: w(x, labels=torch.full((2, 9), IGNORED)),
        lambda w, x: w(x, seq_lens=[1] * 9),
        lambda w, x: w(x, mask=torch.arange(9).expand(2, -1) == 0),
        lambda w, x: w(x, mask=torch.arange(9).expand(2, -1) == 8),
        lambda w, x: w(x, positions=torch.where(torch.arange(9) == 3, 0, -1)),
    ],
)
def test_a_batch_without_targets_has_a_loss_and_a_gradient_of_zero(call) -> None:
    wrapper = AutoregressiveWrapper(language_model("rope"), pad_value=4)
    loss = call(wrapper, ids(2, 9))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in wrapper.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.zeros(2, 9, dtype=torch.bool)}, "mask hides every token of the batch"),
        ({"positions": torch.full((2, 9), -1)}, "hides every token of the batch"),
        ({"labels": ids(2, 8)}, r"labels must be integers of shape \[2, 9\].*\[2, 8\]"),
        ({"labels": ids(2, 9).float()}, "labels must be integers.*torch.float32"),
        ({"labels": ids(2, 9) + NUM_TOKENS}, r"label \d+ is outside 0..28"),
        ({"labels": torch.full((2, 9), -1)}, r"label -1 is outside 0..28.*ignore_index=-100"),
        ({"labels": "abc"}, "labels must be a tensor"),
        ({"positions": torch.arange(9.0) / 0}, r"positions\[0, 0\] is nan"),
    ],
)
def test_batches_without_tokens_and_labels_that_do_not_fit_are_refused(wrapper, options, message) -> None:
    with pytest.raises(InputError, match=message):
        wrapper(ids(2, 9), **options)


def test_labels_of_a_source_model() -> None:
    sizes = {"num_tokens": NUM_TOKENS, "max_seq_len": 9, "depth": 1, "heads": 1, "attn_dim_head": 8}
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sizes.items()}
    model = XTransformer(dim=8, enc_rotary_pos_emb=True, dec_rotary_pos_emb=True, **sides)
    source, target = ids(2, 6), ids(2, 7, seed=3)
    labels = target.clone()
    labels[:, :3] = IGNORED
    by_hand = torch.nn.functional.cross_entropy(
        model.logits(source, target[:, :-1]).flatten(0, 1), labels[:, 1:].flatten()
    )
    assert model(source, target, labels=labels).item() == pytest.approx(by_hand.item(), abs=1e-6)
    assert abs(model(source, target).item() - by_hand.item()) > 1e-4


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (ids(3, 1), {}, r"at least two tokens; got \[3, 1\]"),
        (ids(5), {}, r"at least two tokens; got \[5\]"),
        (ids(0, 5), {}, "neither of them empty"),
        (ids(2, 5).float(), {}, "integer ids; got torch.float32"),
        (ids(2, 5) > 3, {}, "integer ids; got torch.bool"),
        (ids(2, 5).index_fill(1, torch.tensor([4]), NUM_TOKENS), {}, "token id 29 is outside 0..28"),  # a target only
        (ids(2, 5).index_fill(1, torch.tensor([0]), -1), {}, "token id -1 is outside"),
        (ids(2, 5), {"mask": torch.ones(2, 4, dtype=torch.bool)}, r"mask must have shape .* = \[2, 5\].*\[2, 4\]"),
        (ids(2, 5), {"mask": torch.ones(2, 5)}, r"mask must be bool.*torch.float32.*mask.bool\(\)"),
        (ids(2, 5), {"positions": torch.arange(4)}, r"positions must have shape .*tokens=5.*\[1, 4\]"),
        (ids(2, 5), {"document_ids": torch.zeros(2, 4).long()}, r"document_ids must have shape .*\[2, 5\]"),
        (ids(2, 5), {"document_ids": torch.zeros(2, 5)}, "document_ids must be integers"),
        (ids(2, 5), {"context": torch.zeros(2, 5, 26).double()}, "no cross-attention"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(wrapper, tokens: Tensor, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrapper(tokens, **options)
