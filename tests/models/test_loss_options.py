"""What a loss is computed of: masks of targets, reductions, counted targets, label smoothing and z-loss, by a formula in Python."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.draws import draws
from tests.support.generation_models import NUM_TOKENS, ids, language_model, perturbed
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper, XTransformer
from x_positional.errors import InputError
from x_positional.modules import cross_entropy

LENGTH, IGNORED = 10, -100
PARTS = {"label_smoothing": 0.15, "z_loss": 0.03}


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three tokens, for any vocabulary."""
    monkeypatch.setattr(cross_entropy, "ROWS", 3)
    monkeypatch.setattr(cross_entropy, "FEWEST", 0)
    monkeypatch.setattr(cross_entropy, "FEWEST_RECOMPUTED", 0)


@pytest.fixture(params=["whole", "chunks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "chunks":
        small_chunks(monkeypatch)
    return request.param


def wrapper_of(**flags: Any) -> AutoregressiveWrapper:
    torch.manual_seed(0)
    layers = Decoder(dim=8, depth=1, heads=2, attn_dim_head=4, position="rope")
    net = TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=LENGTH, attn_layers=layers, **flags)
    return AutoregressiveWrapper(perturbed(net, size=0.3))


@pytest.fixture
def wrapper() -> AutoregressiveWrapper:
    return wrapper_of()


def nats(logits: list[float], target: int, label_smoothing: float = 0.0, z_loss: float = 0.0) -> float:
    """The loss of one target, from the formulas of the papers."""
    normalizer = math.log(math.fsum(math.exp(x) for x in logits))
    smoothed = math.fsum(normalizer - x for x in logits) / len(logits)
    own = normalizer - logits[target]
    return (1 - label_smoothing) * own + label_smoothing * smoothed + z_loss * normalizer**2


@torch.no_grad()
def by_hand(logits: Tensor, tokens: Tensor, counts: Tensor, **parts: float) -> Tensor:
    """[B T-1]: the loss of tokens [B T] where counts [B T], 0 elsewhere."""
    rows = [
        [nats(logits[b, t - 1].tolist(), int(row[t]), **parts) if counts[b, t] else 0.0 for t in range(1, len(row))]
        for b, row in enumerate(tokens)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def gradients(module: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return found


def close(found: Any, wanted: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def chosen() -> Tensor:
    """[3 10] a mask of targets."""
    return torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.6


@pytest.mark.parametrize("parts", [{}, PARTS, {"label_smoothing": 1.0}, {"z_loss": 1e-4}])
def test_every_reduction_by_hand(way: str, wrapper: AutoregressiveWrapper, parts: dict[str, float]) -> None:
    tokens, counts = ids(3, LENGTH), chosen()
    want = by_hand(wrapper.net(tokens[:, :-1]), tokens, counts, **parts)
    given = {"loss_mask": counts, **parts}
    close(wrapper(tokens, reduction="none", **given), want)
    close(wrapper(tokens, reduction="sum", **given), want.sum())
    close(wrapper(tokens, **given), want.sum() / counts[:, 1:].sum())
    close(wrapper(tokens, num_targets=7, **given), want.sum() / 7)
    assert wrapper.count_targets(tokens, loss_mask=counts) == counts[:, 1:].sum()


@pytest.mark.parametrize("flags", [{}, {"logits_softcap": 2.0, "logits_bias": True}, {"tie_embedding": True}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_those_of_the_formula(way: str, flags: dict[str, Any], reduction: Any) -> None:
    """The formula is differentiated by autograd in float64; "none" has another weight for each token."""
    wrapper, tokens, counts = wrapper_of(**flags), ids(3, LENGTH), chosen()
    weights = torch.linspace(0.5, 2, 27, dtype=torch.float64).view(3, 9) if reduction == "none" else 1.0
    (wrapper(tokens, loss_mask=counts, reduction=reduction, **PARTS) * weights).sum().backward()
    found = gradients(wrapper)
    logits = wrapper.net(tokens[:, :-1])
    log_p, normalizer = logits.log_softmax(-1), logits.logsumexp(-1)
    each = -(1 - 0.15) * log_p.gather(-1, tokens[:, 1:, None])[..., 0] - 0.15 * log_p.mean(-1) + 0.03 * normalizer**2
    each = each * counts[:, 1:]
    (each.sum() / counts[:, 1:].sum() if reduction == "mean" else (each * weights).sum()).backward()
    close(found, gradients(wrapper))


def test_the_parts_agree_with_torch(way: str, wrapper: AutoregressiveWrapper) -> None:
    tokens = ids(3, LENGTH)
    logits, targets = wrapper.net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
    want = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.15)
    close(wrapper(tokens, label_smoothing=0.15), want)
    close(wrapper(tokens, **PARTS), want + 0.03 * logits.logsumexp(-1).square().mean())


def test_a_loss_mask_combines_with_everything_else(way: str, wrapper: AutoregressiveWrapper) -> None:
    """A token counts where the mask, its label, its row and its document all let it."""
    tokens, counts = ids(3, LENGTH), chosen()
    labels = tokens.masked_fill(torch.arange(LENGTH) == 4, IGNORED)
    mask = torch.arange(LENGTH) < torch.tensor([[10], [4], [7]])
    left = torch.arange(LENGTH) >= torch.tensor([[0], [6], [3]])
    for shown in (mask, left):
        starts = shown & ~shown.roll(1, 1)
        starts[:, 0] = False
        wanted = counts & (labels != IGNORED) & shown & ~starts
        want = by_hand(wrapper.net(tokens[:, :-1], mask=shown[:, :-1]), tokens, wanted)
        positions = torch.where(shown, shown.long().cumsum(-1) - 1, -1)
        for given in ({"mask": shown}, {"positions": positions}):
            given |= {"labels": labels, "loss_mask": counts}
            close(wrapper(tokens, reduction="none", **given), want)
            assert wrapper.count_targets(tokens, **given) == wanted[:, 1:].sum()
    documents = torch.tensor([0] * 4 + [1] * 6).expand(3, -1)
    wanted = counts & (torch.arange(LENGTH) != 4)
    want = by_hand(wrapper.net(tokens[:, :-1], document_ids=documents[:, :-1]), tokens, wanted)
    close(wrapper(tokens, reduction="none", seq_lens=[4, 6], loss_mask=counts), want)
    assert wrapper.count_targets(tokens, seq_lens=[4, 6], loss_mask=counts) == wanted[:, 1:].sum()
    as_labels = wrapper(tokens, labels=tokens.masked_fill(~counts, IGNORED), **PARTS)
    close(wrapper(tokens.tolist(), loss_mask=counts.tolist(), **PARTS), as_labels, atol=0)


@pytest.mark.parametrize("ignored", [-1, 2])
def test_any_ignore_index(way: str, wrapper: AutoregressiveWrapper, ignored: int) -> None:
    own, tokens = AutoregressiveWrapper(wrapper.net, ignore_index=ignored), ids(3, LENGTH)
    tokens[:, 3:6] = ignored
    counts = tokens != ignored
    want = by_hand(wrapper.net(tokens.masked_fill(~counts, 0)[:, :-1]), tokens, counts, **PARTS)
    close(own(tokens, reduction="none", **PARTS), want)
    assert own.count_targets(tokens) == counts[:, 1:].sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ragged_micro_batches_equal_one_batch(way: str, dtype: torch.dtype) -> None:
    """Rows with 1 to 9 targets, in micro-batches of one row, of two and of a row without any: loss and gradients to 1e-6."""
    wrapper, tokens = wrapper_of().to(dtype), ids(6, LENGTH)
    counts = torch.arange(LENGTH) >= torch.tensor([[9], [1], [4], [10], [7], [2]])
    whole = wrapper(tokens, loss_mask=counts, **PARTS)
    whole.backward()
    want, losses = gradients(wrapper), []
    parts = [(tokens[rows], counts[rows]) for rows in ([0], [1, 2], [3], [4, 5])]
    total = sum(wrapper.count_targets(part, loss_mask=of_part) for part, of_part in parts)
    for part, of_part in parts:
        losses.append(wrapper(part, loss_mask=of_part, num_targets=total, **PARTS))
        losses[-1].backward()
    atol = 1e-12 if dtype == torch.float64 else 1e-6
    close(sum(losses), whole, atol)
    close(gradients(wrapper), want, atol)
    means = torch.stack([wrapper(part, loss_mask=of_part, **PARTS) for part, of_part in parts])
    assert (means.mean() - whole).abs() > 1e-3, "the mean of means is another loss"


@pytest.mark.parametrize("total", [0, torch.tensor(0)])
def test_without_targets_the_loss_is_zero_and_a_wrong_total_shows(way: str, wrapper: Any, total: Any) -> None:
    tokens, nothing = ids(3, LENGTH), torch.zeros(3, LENGTH, dtype=torch.bool)
    for given in ({}, {"num_targets": total}, {"num_targets": 5}, {"reduction": "sum"}, {"reduction": "none"}):
        loss = wrapper(tokens, loss_mask=nothing, **given, **PARTS)
        loss.sum().backward()
        assert not loss.any()
        assert not any(g.any() for g in gradients(wrapper))
    assert wrapper(tokens, num_targets=total).isinf(), "targets divided by none"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_half_precision_sums_in_float32(way: str, dtype: torch.dtype, reduction: Any) -> None:
    """The loss follows the logits, which are rounded, without further rounding: to 27 additions in float32."""
    wrapper, tokens = wrapper_of().to(dtype), ids(3, LENGTH)
    want = by_hand(wrapper.net(tokens[:, :-1]).double(), tokens, torch.ones(3, LENGTH), **PARTS)
    want = {"mean": want.mean(), "sum": want.sum(), "none": want}[reduction].float()
    found = wrapper(tokens, reduction=reduction, **PARTS)
    assert found.dtype == torch.float32
    close(found, want, atol=27 * 2**-23 * want.max().item())


def test_an_encoder_decoder(way: str) -> None:
    sizes = {"num_tokens": NUM_TOKENS, "max_seq_len": LENGTH, "depth": 1, "heads": 1, "attn_dim_head": 8}
    sides = {f"{side}_{key}": value for side in ("enc", "dec") for key, value in sizes.items()}
    model = perturbed(XTransformer(dim=8, enc_position="rope", dec_position="rope", **sides))
    source, target, counts = ids(3, 6), ids(3, LENGTH, seed=3), chosen()
    source_mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    logits = model.logits(source, target[:, :-1], mask=source_mask)
    want = by_hand(logits, target, counts, **PARTS)
    given = {"mask": source_mask, "loss_mask": counts, **PARTS}
    close(model(source, target, reduction="none", **given), want)
    total = model.decoder.count_targets(target, loss_mask=counts)
    close(model(source, target, num_targets=2 * total, **given), want.sum() / (2 * total))


@pytest.mark.parametrize("given", draws([PARTS], [PARTS, {"reduction": "none", **PARTS}]))
def test_compiled_in_one_graph(monkeypatch: pytest.MonkeyPatch, wrapper: AutoregressiveWrapper, given: Any) -> None:
    small_chunks(monkeypatch)
    torch._dynamo.reset()
    tokens, counts = ids(3, LENGTH), chosen()
    compiled = torch.compile(wrapper, fullgraph=True, backend="eager")
    options = given if "reduction" in given else {"num_targets": torch.tensor(7), **given}
    for module in (wrapper, compiled):
        module(tokens, loss_mask=counts, **options).sum().backward()
    close(compiled(tokens, loss_mask=counts, **options), wrapper(tokens, loss_mask=counts, **options))
    assert compiled(tokens, loss_mask=counts, **options).isfinite().all()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss_mask": torch.ones(2, 8, dtype=torch.bool)},
            r"loss_mask must be torch.bool of shape \[2, 9\].*\[2, 8\]",
        ),
        ({"loss_mask": torch.ones(2, 9)}, r"loss_mask must be torch.bool.*torch.float32.*use .bool\(\)"),
        ({"loss_mask": "abc"}, "loss_mask must be a tensor"),
        ({"reduction": "average"}, "reduction='average' is unknown; there are: mean, none, sum"),
        ({"reduction": "means"}, "did you mean 'mean'?"),
        ({"reduction": None}, "reduction=None is unknown; use one of"),
        ({"reduction": "sum", "num_targets": 3}, "reduction='sum' divides by nothing. Leave one of them out"),
        ({"num_targets": -1}, "num_targets must be one number of at least 0.*count_targets.*got -1"),
        ({"num_targets": math.nan}, "num_targets must be one number.*got nan"),
        ({"num_targets": True}, "num_targets must be one number.*got True"),
        ({"num_targets": torch.ones(2)}, r"num_targets must be one number.*torch.float32 of shape \[2\]"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5 must be a number from 0 to 1"),
        ({"label_smoothing": math.nan}, "label_smoothing=nan must be"),
        ({"label_smoothing": torch.tensor(0.1)}, r"label_smoothing=tensor\(0.1000\) must be a number"),
        ({"z_loss": -1e-4}, "z_loss=-0.0001 must be a finite number of at least 0"),
        ({"z_loss": math.inf}, "z_loss=inf must be a finite number"),
        (
            {"labels": ids(2, 9) + NUM_TOKENS, "loss_mask": torch.ones(9), "reduction": 1, "z_loss": "a"},
            r"(?s)the loss cannot be computed:\n.*reduction=1 .*z_loss='a'.*label \d+ is outside.*loss_mask must be torch.bool",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AutoregressiveWrapper(language_model())(ids(2, 9), **options)


def test_counting_checks_what_the_loss_checks() -> None:
    with pytest.raises(InputError, match=r"loss_mask must be torch\.bool"):
        AutoregressiveWrapper(language_model()).count_targets(ids(2, 9), loss_mask=torch.ones(2, 9))
