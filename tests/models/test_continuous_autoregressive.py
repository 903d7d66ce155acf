"""Loss and generation of floats: against full passes, each row alone, and x-transformers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.test_continuous import series
from tests.support.generation_models import SCHEMES, TABLES, equal, perturbed
from tests.support.length_scalings import dynamic
from x_positional import ContinuousAutoregressiveWrapper, ContinuousTransformerWrapper, Decoder, Encoder, Rope
from x_positional.errors import FlagError, InputError

WIDTH, STEPS = 5, 6


def build(
    position: str | Rope = "rope", layers=Decoder, *, max_seq_len: int = 24, **flags
) -> ContinuousTransformerWrapper:
    torch.manual_seed(0)
    sizes = {"dim": 26, "depth": 2, "heads": 3, "attn_kv_heads": 1, "attn_dim_head": 12}
    stack = layers(**sizes, position=position, **flags)
    model = ContinuousTransformerWrapper(attn_layers=stack, dim_in=WIDTH, dim_out=WIDTH, max_seq_len=max_seq_len)
    return perturbed(model)


@torch.no_grad()
def alone(net: ContinuousTransformerWrapper, prompt: Tensor, steps: int, **inputs: Tensor) -> Tensor:
    """[T I] -> [N I] by one full pass per token."""
    row = prompt[None]
    for _ in range(steps):
        row = torch.cat([row, net(row, **inputs)[:, -1:]], dim=1)
    return row[0, len(prompt) :]


@pytest.mark.parametrize("cache_kv", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_ragged_prompts_equal_each_alone(scheme: str, cache_kv: bool) -> None:
    net = build(scheme)
    prompts = [series(n, WIDTH, seed=n) for n in (3, 7, 4)]
    got = ContinuousAutoregressiveWrapper(net).generate(prompts, STEPS, cache_kv=cache_kv)
    equal(got, torch.stack([alone(net, prompt, STEPS) for prompt in prompts]))


def test_forms_of_prompts_and_streams() -> None:
    net = build()
    wrapper, batch = ContinuousAutoregressiveWrapper(net), series(3, 7, WIDTH)
    lengths = torch.tensor([3, 7, 4])
    rows = [row[:n] for row, n in zip(batch, lengths, strict=True)]
    want = wrapper.generate(rows, STEPS)
    equal(wrapper.generate(batch, STEPS, prompt_lens=lengths), want)
    equal(torch.stack(list(wrapper.stream(rows, STEPS)), dim=1), want)
    one = wrapper.generate(batch[1], STEPS)
    assert one.shape == (STEPS, WIDTH)
    equal(one, want[1])
    assert wrapper.generate(batch, 0).shape == (3, 0, WIDTH)
    wrapper.train()
    equal(wrapper.generate(rows, STEPS), want)
    assert net.training


@pytest.mark.parametrize("cache_kv", [True, False])
def test_context_windows_and_frequencies_that_follow_the_length(cache_kv: bool) -> None:
    prompts = [series(n, WIDTH, seed=n) for n in (3, 7)]
    net, context = build(cross_attend=True), series(2, 4, 26)
    got = ContinuousAutoregressiveWrapper(net).generate(prompts, STEPS, context=context, cache_kv=cache_kv)
    want = [alone(net, prompt, STEPS, context=row[None]) for prompt, row in zip(prompts, context, strict=True)]
    equal(got, torch.stack(want))
    for policy in ("recompute", "fixed"):
        net = build(Rope(scaling=dynamic(length_policy=policy)))
        got = ContinuousAutoregressiveWrapper(net).generate(prompts, STEPS, cache_kv=cache_kv)
        single = [
            ContinuousAutoregressiveWrapper(net).generate(prompt, STEPS, cache_kv=not cache_kv) for prompt in prompts
        ]
        equal(got, torch.stack(single))
        if policy == "recompute":
            equal(got[0], alone(net, prompts[0], STEPS))
    long, window = build("alibi", max_seq_len=8), build("alibi", max_seq_len=8, window=8)
    window.load_state_dict(long.state_dict())
    got = ContinuousAutoregressiveWrapper(long).generate(prompts[1], STEPS, cache_kv=cache_kv)
    equal(got, alone(window, prompts[1], STEPS))
    free = ContinuousAutoregressiveWrapper(long).generate(
        prompts[1], STEPS, cache_kv=cache_kv, restrict_to_max_seq_len=False
    )
    equal(free, alone(long, prompts[1], STEPS))


def test_the_loss_by_hand() -> None:
    net, x = build(), series(3, 7, WIDTH)
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    errors = (net(x[:, :-1], mask=mask[:, :-1]) - x[:, 1:]).square()
    rows = [errors[0], errors[1, :2]]
    found = ContinuousAutoregressiveWrapper(net)(x, mask=mask)
    equal(found, torch.cat(rows).mean())
    equal(
        ContinuousAutoregressiveWrapper(net, equal_loss_weight_batch=True)(x, mask), sum(row.mean() for row in rows) / 2
    )
    equal(ContinuousAutoregressiveWrapper(net)(x), F.mse_loss(net(x[:, :-1]), x[:, 1:]))
    equal(ContinuousAutoregressiveWrapper(net, use_l1_loss=True)(x), F.l1_loss(net(x[:, :-1]), x[:, 1:]))
    huber = ContinuousAutoregressiveWrapper(net, nn.SmoothL1Loss(reduction="none"))
    equal(huber(x), F.smooth_l1_loss(net(x[:, :-1]), x[:, 1:]))
    empty = ContinuousAutoregressiveWrapper(net)(x[2:], mask[2:])
    empty.backward()
    assert float(empty.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_packed_documents_count_as_each_alone() -> None:
    net, x = build(), series(1, 9, WIDTH)
    wrapper = ContinuousAutoregressiveWrapper(net)
    packed = wrapper(x, seq_lens=[4, 5])
    equal(packed, (wrapper(x[:, :4]) * 3 + wrapper(x[:, 4:]) * 4) / 7)
    times = torch.rand(1, 9, dtype=torch.float64).cumsum(-1)
    equal(wrapper(x, positions=times), F.mse_loss(net(x[:, :-1], positions=times[:, :-1]), x[:, 1:]))


def test_loss_and_series_of_x_transformers() -> None:
    from x_transformers import continuous
    from x_transformers import x_transformers as xt

    from x_positional import from_x_transformers

    torch.manual_seed(0)
    layers = xt.Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, rotary_pos_emb=True)
    net = continuous.ContinuousTransformerWrapper(dim_in=3, dim_out=3, max_seq_len=16, attn_layers=layers).eval()
    theirs, ours = (
        continuous.ContinuousAutoregressiveWrapper(net),
        ContinuousAutoregressiveWrapper(from_x_transformers(net)),
    )
    x = torch.randn(2, 8, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.generate(x, 4), theirs.generate(x, 4, cache_kv=False), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"start_tokens": torch.zeros(2, 4)},
            r"start_tokens must be floats \[tokens, 5\] or \[batch, tokens, 5\], not empty",
        ),
        ({"start_tokens": torch.zeros(2, 4, 5).long()}, "of torch.int64"),
        ({"start_tokens": [[1.0]]}, r"start_tokens\[0\] must be a float tensor \[tokens, 5\]; got list"),
        ({"start_tokens": []}, "the list of prompts is empty. Give at least one."),
        ({"start_tokens": [series(2, 5)], "prompt_lens": [2]}, "a list of prompts has lengths already. Leave it out."),
        ({"start_tokens": series(2, 4, 5), "prompt_lens": [2, 9]}, "prompt_lens must be from 1 to 4"),
        ({"start_tokens": series(2, 4, 5), "seq_len": -1}, "seq_len=-1 must be an integer of at least 0"),
        ({"start_tokens": series(2, 4, 5), "cache_kv": 1}, "cache_kv=1 must be a bool"),
    ],
)
def test_prompts_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ContinuousAutoregressiveWrapper(build()).generate(**{"seq_len": 3, **options})


def test_models_and_losses_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="layers of kind 'encoder' attend to the tokens they would predict"):
        ContinuousAutoregressiveWrapper(build(layers=Encoder))
    narrow = ContinuousTransformerWrapper(dim_in=5, dim_out=3, attn_layers=Decoder(26, 1, heads=2, position="rope"))
    with pytest.raises(InputError, match="outputs have 3 channels and inputs 5"):
        ContinuousAutoregressiveWrapper(narrow)
    with pytest.raises(InputError, match="got Linear"):
        ContinuousAutoregressiveWrapper(nn.Linear(2, 2))
    with pytest.raises(InputError, match="both set the loss"):
        ContinuousAutoregressiveWrapper(build(), nn.MSELoss(reduction="none"), True)
    with pytest.raises(InputError, match="Use reduction='none'"):
        ContinuousAutoregressiveWrapper(build(), nn.MSELoss())(series(2, 4, WIDTH))
    with pytest.raises(InputError, match="at least two tokens"):
        ContinuousAutoregressiveWrapper(build())(series(2, 1, WIDTH))
    with pytest.raises(FlagError, match=r"rollout_steps=2 is refused\. There is no loss of rollouts"):
        ContinuousAutoregressiveWrapper(build())(series(2, 4, WIDTH), rollout_steps=2, lens=None)
    with pytest.raises(InputError, match="positions end at 8"):
        ContinuousAutoregressiveWrapper(build(TABLES[0], max_seq_len=8)).generate(series(4, WIDTH), 9)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"mask": torch.zeros(2, 6, dtype=torch.bool)}, "mask hides every token"),
        (
            {"positions": torch.tensor([[0.0, 1.0, 2.0, float("nan"), 4.0, 5.0]]).expand(2, -1)},
            "must be a finite number",
        ),
    ],
)
def test_a_loss_refuses_what_it_cannot_read(given: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        ContinuousAutoregressiveWrapper(build())(series(2, 6, WIDTH), **given)
