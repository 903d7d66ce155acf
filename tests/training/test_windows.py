"""Training windows as a function of (seed, index), and validation windows that predict each id once."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from x_positional import ModelConfig, build_model
from x_positional.training.data.token_cache import Split
from x_positional.training.data.windows import Windows
from x_positional.training.evaluate import eval_windows, evaluate, xz_bits_per_byte

CPU = torch.device("cpu")
FULL = torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize(("count", "seq_len"), [(1000, 7), (8, 7), (15, 7), (14, 7), (22, 7), (999, 31)])
def test_an_epoch_visits_every_window_once_and_stays_inside(count: int, seq_len: int):
    windows = Windows(np.arange(count), seq_len, seed=3)
    for epoch in range(3):
        rows = windows.batch(epoch * len(windows), len(windows))
        assert rows.shape == (len(windows), seq_len + 1)
        assert torch.equal(rows, rows[:, :1] + torch.arange(seq_len + 1)), "a window is not one stretch of the row"
        starts = rows[:, 0].sort().values
        assert torch.equal(starts.diff(), torch.full_like(starts[1:], seq_len))
        assert 0 <= starts[0] < seq_len
        assert rows.max() < count
        assert count - 1 - int(rows.max()) <= 2 * seq_len


def test_windows_depend_on_seed_and_index_only():
    tokens = np.arange(500, dtype=np.uint16)
    whole = Windows(tokens, 9, seed=5).batch(0, 130)
    assert torch.equal(Windows(tokens, 9, seed=5).batch(100, 30), whole[100:])
    scattered = Windows(tokens, 9, seed=5)
    assert all(torch.equal(scattered.batch(i, 1)[0], whole[i]) for i in (129, 0, 77, 54))
    assert not torch.equal(Windows(tokens, 9, seed=6).batch(0, 130), whole)


def test_epochs_have_their_own_order_and_offset():
    windows = Windows(np.arange(5000), 9, seed=5)
    epochs = [windows.batch(epoch * len(windows), len(windows))[:, 0] for epoch in range(4)]
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert len({int(epoch.min()) for epoch in epochs}) > 1


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="9 tokens are fewer than one window of seq_len"):
        Windows(np.arange(9), 9, seed=0)


@pytest.mark.parametrize("count", [2, 5, 12, 13, 14, 100, 101, 257])
@pytest.mark.parametrize(("seq_len", "stride"), [(12, None), (12, 5), (12, 12), (12, 1), (13, 6)])
def test_every_id_but_the_first_is_predicted_once_with_its_context(count: int, seq_len: int, stride: int | None):
    tokens = np.arange(count)
    plan = eval_windows(count, seq_len, stride=stride)
    read = plan.read(Split(tokens, None), plan.starts)
    inputs, targets = read.inputs, read.targets
    scored = targets != -100
    assert sorted(targets[scored].tolist()) == list(range(1, count))
    assert torch.equal(inputs[scored], targets[scored] - 1)
    context = torch.arange(seq_len).expand_as(targets)[scored]
    late = targets[scored] > seq_len
    assert not late.any() or int(context[late].min()) >= seq_len - plan.stride


def test_a_limit_spreads_the_windows_over_the_whole_row():
    plan = eval_windows(10_001, 10, limit=200)
    assert len(plan.starts) == 20
    assert (plan.starts[0], plan.starts[-1]) == (0, 9990)
    assert len(eval_windows(10_001, 10, limit=10**9).starts) == 1000


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = {"dim": 16, "depth": 2, "heads": 2, "head_dim": 8, "position": "rope", "attn": {"dropout": 0.5}}
    net = build_model(ModelConfig.model_validate({"num_tokens": 64, "max_seq_len": 12, "layers": layers}))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def test_the_score_is_the_mean_loss_of_all_predictions(net: nn.Module):
    tokens = np.random.default_rng(0).integers(0, 64, 41)
    net.train()
    score = evaluate(net, Split(tokens, 123), eval_windows(41, 12), batch_size=3, device=CPU, autocast=FULL)
    assert net.training, "the mode was not put back"
    net.eval()
    losses = []
    for start in range(0, 40, 12):
        window = torch.from_numpy(tokens[start : start + 13])
        losses.append(F.cross_entropy(net(window[None, :-1])[0], window[1:], reduction="sum").item())
    assert score.tokens == 40
    assert score.loss == pytest.approx(sum(losses) / 40, rel=1e-6)
    assert score.bits["bits_per_token"] == pytest.approx(score.loss / math.log(2))
    assert score.bits["bits_per_byte"] == pytest.approx(score.loss / math.log(2) * 41 / 123)


def test_without_text_there_are_no_bits_per_byte(net: nn.Module):
    tokens = np.zeros(41, dtype=np.int64)
    score = evaluate(net, Split(tokens, None), eval_windows(41, 12), batch_size=3, device=CPU, autocast=FULL)
    assert set(score.bits) == {"bits_per_token"}


def test_xz_needs_little_for_repeats_and_all_for_noise():
    assert xz_bits_per_byte(b"abcdefgh" * 10_000) < 0.05
    noise = np.random.default_rng(0).bytes(50_000)
    assert 8.0 < xz_bits_per_byte(noise) < 8.1
