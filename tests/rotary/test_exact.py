"""What the drop-in guarantees beyond the library it replaces: exact angles, no cache, translation, gradients."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import rotary_embedding_torch as theirs
import torch
from torch import Tensor, nn
from torch.func import functional_call

from x_positional.rotary import RotaryEmbedding, apply_learned_rotations, apply_rotary_emb

FAR = [255, 256, 257, 4095, 65535, 2**20 - 1]


def on_meta() -> RotaryEmbedding:
    with torch.device("meta"):
        model = nn.Sequential(RotaryEmbedding(16, theta=5e5))
    return model.to_empty(device="cpu")[0]


def there_and_back() -> RotaryEmbedding:
    return RotaryEmbedding(16, theta=5e5).to("meta").to_empty(device="cpu")


def buffers_cast() -> RotaryEmbedding:
    module = RotaryEmbedding(16, theta=5e5)
    for tensor in (*module.buffers(), *module.parameters()):
        tensor.data = tensor.data.bfloat16()
    return module


def copied() -> RotaryEmbedding:
    return pickle.loads(pickle.dumps(copy.deepcopy(RotaryEmbedding(16, theta=5e5)).half()))


TREATED = {
    "plain": lambda: RotaryEmbedding(16, theta=5e5),
    "half": lambda: RotaryEmbedding(16, theta=5e5).half(),
    "bfloat16 and back": lambda: nn.Sequential(RotaryEmbedding(16, theta=5e5)).bfloat16().float()[0],
    "buffers cast": buffers_cast,
    "meta": on_meta,
    "to meta and back": there_and_back,
    "copied": copied,
}


@pytest.mark.parametrize("position", FAR)
@pytest.mark.parametrize("treated", TREATED)
@pytest.mark.parametrize("autocast", [False, True])
def test_angles_are_exact_far_out(position: int, treated: str, autocast: bool) -> None:
    module, x = TREATED[treated](), torch.tensor([1.0, 0.0]).repeat(8)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = module.rotate_queries_or_keys(x, offset=position)
    angles = [position * 5e5 ** (-2 * i / 16) for i in range(8)]
    right = torch.tensor([part for a in angles for part in (math.cos(a), math.sin(a))], dtype=torch.float64)
    assert got.dtype == torch.float32
    assert (got[0].double() - right).abs().max() <= 1e-6


@pytest.mark.parametrize("position", [*FAR, 2**25 + 1, 4095.7])
def test_interpolated_and_fractional_positions_are_exact(position: float) -> None:
    module, x = RotaryEmbedding(16, interpolate_factor=3.0), torch.tensor([1.0, 0.0]).repeat(8)[None]
    angles = [position / 3 * 1e4 ** (-2 * i / 16) for i in range(8)]
    right = torch.tensor([part for a in angles for part in (math.cos(a), math.sin(a))], dtype=torch.float64)
    assert (module.rotate_queries_or_keys(x, offset=position)[0].double() - right).abs().max() <= 1e-6


def test_bfloat16_angles_are_exact_to_their_last_bit() -> None:
    """Rotations that a layer predicts in bfloat16 are exact angles: the cosine adds no error."""
    rotations, x = (torch.randn(5, 4) * 30).bfloat16(), torch.randn(5, 8)
    wide = apply_learned_rotations(rotations.double(), x.double())
    assert (apply_learned_rotations(rotations, x) - wide).abs().max() < 1e-6
    assert (apply_rotary_emb(rotations.repeat_interleave(2, -1), x) - wide).abs().max() < 1e-6


def test_xpos_scale_of_an_odd_dim() -> None:
    scale = RotaryEmbedding(7, use_xpos=True).get_scale(torch.arange(9))
    right = [[((2 * i / 7 + 0.4) / 1.4) ** ((t - 4) / 512) for i in (0, 0, 1, 1, 2, 2)] for t in range(9)]
    torch.testing.assert_close(scale, torch.tensor(right), rtol=1e-6, atol=0)


def test_float64_positions_keep_public_angles_exact() -> None:
    positions = torch.tensor(FAR, dtype=torch.float64)
    freqs = RotaryEmbedding(16)(positions)
    right = torch.tensor([[p * 1e4 ** (-2 * (i // 2) / 16) for i in range(16)] for p in FAR], dtype=torch.float64)
    torch.testing.assert_close(freqs, right, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shift", [1, 7, 1000, 2**17])
@pytest.mark.parametrize(
    "config", [{}, {"interpolate_factor": 2.0}, {"theta_rescale_factor": 4.0}, {"learned_freq": True}]
)
def test_scores_see_distances_only(shift: int, config: dict) -> None:
    module = RotaryEmbedding(16, **config)
    q, k = torch.randn(2, 2, 9, 20, generator=torch.Generator().manual_seed(shift)).double().unbind(0)
    scores = [
        module.rotate_queries_or_keys(q, offset=c) @ module.rotate_queries_or_keys(k, offset=c).mT for c in (0, shift)
    ]
    assert (scores[0] - scores[1]).abs().max() < 1e-8
    unrotated = (q @ k.mT - scores[0]).abs()
    assert unrotated.max() > 0.1


@pytest.mark.parametrize("use_xpos", [False, True])
@pytest.mark.parametrize("new", [1, 4, 23])
def test_cached_keys_give_the_scores_of_the_whole_sequence(use_xpos: bool, new: int) -> None:
    module = RotaryEmbedding(16, use_xpos=use_xpos, xpos_scale_base=32)
    q, k = torch.randn(2, 2, 3, 23, 20, generator=torch.Generator().manual_seed(0)).unbind(0)
    whole_q, whole_k = module.rotate_queries_and_keys(q, k)
    some_q, some_k = module.rotate_queries_with_cached_keys(q[..., -new:, :], k)
    torch.testing.assert_close(some_q @ some_k.mT, (whole_q @ whole_k.mT)[..., -new:, :], rtol=1e-5, atol=1e-5)
    # A shorter sequence has another centre for xPos, but the same scores.
    short_q, short_k = module.rotate_queries_and_keys(q[..., :15, :], k[..., :15, :])
    torch.testing.assert_close(short_q @ short_k.mT, (whole_q @ whole_k.mT)[..., :15, :15], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_queries_and_keys_keep_their_own_dtypes(dtype: torch.dtype) -> None:
    q, k = torch.randn(1, 2, 3, 8).to(dtype), torch.randn(1, 2, 5, 8)
    for config in ({}, {"use_xpos": True}, {"learned_freq": True}):
        module = RotaryEmbedding(8, **config).to(torch.bfloat16)
        assert [x.dtype for x in module.rotate_queries_with_cached_keys(q, k)] == [dtype, torch.float32]
    freqs = RotaryEmbedding(4).get_axial_freqs(2, 3)
    assert apply_rotary_emb(freqs, torch.randn(2, 3, 9).to(dtype)).dtype == dtype
    assert apply_learned_rotations(torch.randn(2, 3, 4), torch.randn(2, 3, 9).to(dtype)).dtype == dtype
    assert RotaryEmbedding(4).get_seq_pos(3, dtype=torch.bfloat16, offset=256).tolist() == [256, 257, 258]


def test_no_call_changes_a_later_one() -> None:
    """Every method, with its usual arguments, in the order that would spoil a cache; also in inference mode."""
    module, x = RotaryEmbedding(8, use_xpos=True), torch.randn(1, 2, 9, 8)

    def all_calls(module: RotaryEmbedding) -> list[Tensor]:
        return [
            *module.rotate_queries_and_keys(x, x),
            *module.rotate_queries_with_cached_keys(x[:, :, :4], x, offset=3),
            module.get_axial_freqs(9, 9, offsets=(3, 5)),
            module(torch.rand(9).round(decimals=1) * 0 + 2.5, seq_len=9),
            module.get_scale(module.get_seq_pos(9, offset=4), seq_len=9),
            module.get_axial_freqs(9, 9),
        ]

    first = all_calls(module)
    with torch.inference_mode():
        module.rotate_queries_and_keys(x.bfloat16(), x.bfloat16())
    module.half().rotate_queries_and_keys(torch.randn(1, 2, 50, 8), torch.randn(1, 2, 50, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, all_calls(module), strict=True))
    assert not list(module.buffers())


def gradient_calls(module: RotaryEmbedding, q: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {
        "rotate": lambda: module.rotate_queries_or_keys(q, offset=20),
        "cached": lambda: torch.cat(module.rotate_queries_with_cached_keys(q[:, :1], q), 1),
        "axial": lambda: apply_rotary_emb(module.get_axial_freqs(3, 2), q.reshape(3, 2, -1)),
        "forward": lambda: module(torch.arange(3.0, dtype=torch.float64)).cos(),
    }


@pytest.mark.parametrize("call", ["rotate", "cached", "axial", "forward"])
@pytest.mark.parametrize("config", [{"freqs_for": "pixel"}, {}, {"custom_freqs": torch.tensor([0.3, 1.7])}])
def test_gradcheck_of_learned_frequencies(call: str, config: dict) -> None:
    module = RotaryEmbedding(4, learned_freq=True, **config).double()
    q = torch.randn(1, 4, 9, dtype=torch.float64) if call != "axial" else torch.randn(3, 2, 9, dtype=torch.float64)

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.rotary = module

        def forward(self, q: Tensor) -> Tensor:
            return gradient_calls(self.rotary, q)[call]()

    called = Called()
    freqs = module.freqs.detach().clone().requires_grad_()
    q.requires_grad_(call != "forward")
    inputs = (freqs, q) if call != "forward" else (freqs,)
    assert torch.autograd.gradcheck(
        lambda freqs, *rest: functional_call(called, {"rotary.freqs": freqs}, (rest[0] if rest else q,)), inputs
    )


def test_learned_frequencies_stay_wide_and_come_back() -> None:
    model = nn.Sequential(RotaryEmbedding(8, learned_freq=True), nn.Linear(2, 2)).bfloat16()
    assert (model[0].freqs.dtype, model[1].weight.dtype) == (torch.float32, torch.bfloat16)
    model[0].rotate_queries_or_keys(torch.randn(3, 8).bfloat16()).float().sum().backward()
    assert model[0].freqs.grad.dtype == torch.float32
    assert model.half()[0].freqs.grad.dtype == torch.float32
    with torch.device("meta"):
        module = RotaryEmbedding(8, learned_freq=True)
    assert module.freqs.is_meta
    module.to_empty(device="cpu").reset_parameters()
    assert torch.equal(module.freqs, RotaryEmbedding(8, learned_freq=True).freqs)


@pytest.mark.parametrize("dim", [6, 64, 128])
@pytest.mark.parametrize(
    "config",
    [
        {"theta": 1e4},
        {"theta": 5e5},
        {"theta": 1e7, "theta_rescale_factor": 8.0},
        {"freqs_for": "pixel", "max_freq": 256},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_rounding_of_the_frequencies_does_not_replace_them(dim: int, config: dict, dtype: torch.dtype) -> None:
    mine, exact = RotaryEmbedding(dim, **config), RotaryEmbedding(dim, **config).freqs
    assert mine.load_state_dict({"freqs": theirs.RotaryEmbedding(dim, **config).freqs.to(dtype)})
    assert torch.equal(mine.freqs, exact)


@pytest.mark.parametrize("learned_freq", [False, True])
def test_state_dicts_load_in_either_library(learned_freq: bool) -> None:
    def model(library: Callable[..., nn.Module], theta: float) -> nn.Module:
        return nn.ModuleDict({"rotary": library(16, theta=theta, learned_freq=learned_freq), "linear": nn.Linear(2, 2)})

    x = torch.randn(5, 16)
    for source, target in ((theirs.RotaryEmbedding, RotaryEmbedding), (RotaryEmbedding, theirs.RotaryEmbedding)):
        saved, loaded = model(source, 100.0), model(target, 10_000.0)
        assert list(saved.state_dict()) == list(loaded.state_dict()) == ["rotary.freqs", "linear.weight", "linear.bias"]
        loaded.load_state_dict(saved.state_dict())
        rotated = [m["rotary"].rotate_queries_or_keys(x).detach() for m in (saved, loaded)]
        torch.testing.assert_close(*rotated, rtol=1e-6, atol=4e-6)
    with pytest.raises(RuntimeError, match=r"rotary\.freqs.*8.*16"):
        model(lambda dim, **config: RotaryEmbedding(32, **config), 100.0).load_state_dict(saved.state_dict())


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: RotaryEmbedding(1, freqs_for="words", interpolate_factor=0.5), "words.*interpolate_factor=0.5.*dim=1"),
    (lambda: RotaryEmbedding(4, custom_freqs=torch.ones(2, 2)), r"custom_freqs has shape \(2, 2\)"),
    (lambda: RotaryEmbedding(4, custom_freqs=torch.ones(2, device="meta")), "meta device"),
    (lambda: RotaryEmbedding(2, theta_rescale_factor=2.0), "theta_rescale_factor=2.0"),
    (lambda: RotaryEmbedding(4, use_xpos=True).rotate_queries_or_keys(torch.ones(3, 4)), "rotate_queries_and_keys"),
    (lambda: RotaryEmbedding(4).get_scale(torch.arange(3)), "use_xpos=True"),
    (
        lambda: RotaryEmbedding(4).rotate_queries_with_cached_keys(torch.ones(3, 4), torch.ones(2, 4)),
        "3 queries for 2 keys",
    ),
    (lambda: RotaryEmbedding(4).rotate_queries_and_keys(torch.ones(1, 4), torch.ones(2, 4)), "1 queries for 2 keys"),
    (lambda: RotaryEmbedding(4).get_axial_freqs(2, 3, offsets=(1,)), "1 numbers for 2 axes"),
    (lambda: RotaryEmbedding(8).rotate_queries_or_keys(torch.ones(3, 6)), "rotates 8 channels.*t has 6"),
    (lambda: RotaryEmbedding(4).rotate_queries_or_keys(torch.ones(3, 6), seq_dim=-1), "seq_dim=-1 is not a token axis"),
    (lambda: RotaryEmbedding(4).rotate_queries_or_keys(torch.ones(3, 6), seq_dim=-3), "seq_dim=-3 is not a token axis"),
    (lambda: apply_rotary_emb(torch.ones(3, 4), torch.ones(1, 5, 4)), "3 rows for 5 tokens"),
    (lambda: apply_rotary_emb(torch.ones(3, 3), torch.ones(3, 4)), "rotates 3 channels"),
    (lambda: apply_rotary_emb(torch.ones(3, 4), torch.ones(3, 6), start_index=3), "start_index=3"),
    (lambda: apply_rotary_emb(torch.ones(3, 4), torch.ones(3, 6), start_index=-1), "start_index=-1"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refuses_with_a_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("dtype", "fits", "breaks"), [(torch.float16, 9000, 9200), (torch.float32, 72_000, 73_000)])
def test_xpos_refuses_lengths_that_overflow(dtype: torch.dtype, fits: int, breaks: int) -> None:
    module, units = RotaryEmbedding(2, use_xpos=True), torch.tensor([[1.0, 0.0]], dtype=dtype).repeat(breaks, 1)
    q, k = module.rotate_queries_and_keys(units[:fits], units[:fits])
    assert q.isfinite().all()
    assert k.isfinite().all()
    with pytest.raises(ValueError, match=f"{breaks} tokens overflows {dtype}.*xpos_scale_base=512"):
        module.rotate_queries_and_keys(units, units)
