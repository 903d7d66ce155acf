"""The public surface of x_positional.rotary, call by call against rotary-embedding-torch 0.9.1 in float32.

rotary-embedding-torch is called on a fresh module, without earlier calls in its cache, in cases where it is correct.
"""

import copy
import inspect
import pickle

import pytest
import rotary_embedding_torch as theirs
import torch
from rotary_embedding_torch.flash_attn_with_rotary import flash_attn_with_rotary as their_flash

from x_positional import rotary as ours
from x_positional.rotary.flash_attn_with_rotary import flash_attn_with_rotary as our_flash

FUNCTIONS = ("apply_rotary_emb", "apply_learned_rotations", "broadcat")
CUSTOM = torch.rand(8, generator=torch.Generator().manual_seed(0))
CONFIGS = {
    "plain": {},
    "theta": {"theta": 500.0},
    "ntk": {"theta_rescale_factor": 3.5},
    "interpolated": {"interpolate_factor": 2.5},
    "pixel": {"freqs_for": "pixel", "max_freq": 7},
    "constant": {"freqs_for": "constant", "num_freqs": 8},
    "custom": {"custom_freqs": CUSTOM},
    "learned": {"learned_freq": True},
    "seq_first": {"seq_before_head_dim": True},
    "positional": {"theta": 77, "cache_if_possible": False, "cache_max_seq_len": 5},
}
XPOS = {
    "xpos": {"use_xpos": True},
    "xpos_base": {"use_xpos": True, "xpos_scale_base": 60, "theta": 1000},
    "xpos_interpolated": {"use_xpos": True, "interpolate_factor": 3.0},
    "xpos_seq_first": {"use_xpos": True, "seq_before_head_dim": True},
}
T = 23


def pair(config: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(ours, theirs) with dim 16."""
    return ours.RotaryEmbedding(16, **config), theirs.RotaryEmbedding(16, **config)


def near(mine: torch.Tensor, other: torch.Tensor, angle: float, size: float = 1.0) -> None:
    """Equal shape and dtype, and equal values up to the float32 rounding of angles of this many radians: theirs rounds
    the frequency, the position and their product."""
    assert mine.shape == other.shape
    assert mine.dtype == other.dtype
    torch.testing.assert_close(mine, other, rtol=2e-6, atol=size * (1e-6 + 3e-7 * angle))


def qk(config: dict, queries: int = T, keys: int = T, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """[2 3 tokens 21], or [2 tokens 3 21] where the token axis comes first: 16 of 21 channels are rotated."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, 3, n, 21, generator=generator) for n in (queries, keys))
    return (q.transpose(1, 2), k.transpose(1, 2)) if config.get("seq_before_head_dim") else (q, k)


def fastest_angle(config: dict) -> float:
    """Radians of the fastest pair at position 1."""
    return 7 / 2 * torch.pi if config.get("freqs_for") == "pixel" else 1.0


def test_every_public_name_is_there() -> None:
    for name in (*FUNCTIONS, "RotaryEmbedding"):
        assert getattr(theirs, name).__module__ != getattr(ours, name).__module__
    public = {name for name in vars(theirs.RotaryEmbedding) if not name.startswith("_")}
    assert {"rotate_queries_or_keys", "get_axial_freqs", "forward"} < public <= set(dir(ours.RotaryEmbedding))
    mine, other = pair({"use_xpos": True})
    internal = {"cached_freqs_seq_len", "cached_scales_seq_len"}
    attributes = {name for name in vars(other) if not name.startswith("_")} - internal
    assert "interpolate_factor" in attributes
    assert attributes <= set(dir(mine)) | {"training"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_the_same_arguments(name: str) -> None:
    same_signature(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize(
    "name",
    [name for name, value in vars(theirs.RotaryEmbedding).items() if inspect.isfunction(value)],
)
def test_methods_take_the_same_arguments(name: str) -> None:
    same_signature(getattr(ours.RotaryEmbedding, name), getattr(theirs.RotaryEmbedding, name))


def test_flash_attention_takes_the_same_arguments() -> None:
    same_signature(our_flash, their_flash)


def same_signature(mine: object, other: object) -> None:
    """Names, order, kinds and defaults of the parameters."""
    seen = [
        [(p.name, p.kind, p.default) for p in inspect.signature(inspect.unwrap(f)).parameters.values()]
        for f in (mine, other)
    ]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_angles(name: str) -> None:
    config = CONFIGS[name]
    mine, other = pair(config)
    for positions in (torch.arange(T), torch.rand(2, 3, T) * 50 - 25, torch.tensor(3.5)):
        near(mine(positions), other(positions).detach(), 50 * fastest_angle(config))
    near(mine.freqs.detach(), other.freqs.detach(), fastest_angle(config))


def test_frequencies_are_float32_and_angles_are_exact() -> None:
    module, positions = ours.RotaryEmbedding(16, theta=77), torch.tensor([1e6], dtype=torch.float64)
    exact = 77.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    assert module.freqs.dtype == torch.float32
    assert torch.equal(module.freqs, exact.float())
    for same in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), module.half().to("cpu")):
        torch.testing.assert_close(same(positions)[0, ::2], 1e6 * exact, atol=1e-8, rtol=0)
    module.freqs = torch.ones(8)
    assert torch.equal(module(positions), positions[:, None].expand(1, 16))
    module.reset_parameters()
    torch.testing.assert_close(module(positions)[0, ::2], 1e6 * exact, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("offset", [0, 17, 2.5, -9])
def test_rotate_queries_or_keys(name: str, offset: float) -> None:
    config = CONFIGS[name]
    mine, other = pair(config)
    t = qk(config)[0]
    near(
        mine.rotate_queries_or_keys(t, offset=offset),
        other.rotate_queries_or_keys(t, offset=offset).detach(),
        40 * fastest_angle(config),
        4,
    )
    scaled = [x.rotate_queries_or_keys(t, None, offset, 0.3).detach() for x in pair(config)]
    near(scaled[0], scaled[1], 40 * fastest_angle(config), 4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("queries", "keys", "offset"), [(1, T, 0), (5, T, 0), (T, T, 0), (3, 9, 11)])
def test_rotate_queries_with_cached_keys(name: str, queries: int, keys: int, offset: int) -> None:
    config = CONFIGS[name]
    mine, other = pair(config)
    q, k = qk(config, queries, keys)
    for got, want in zip(
        mine.rotate_queries_with_cached_keys(q, k, offset=offset),
        other.rotate_queries_with_cached_keys(q, k, offset=offset),
        strict=True,
    ):
        near(got, want.detach(), 40 * fastest_angle(config), 4)


@pytest.mark.parametrize("seq_dim", [-2, -3])
def test_seq_dim_overrides_the_default(seq_dim: int) -> None:
    for config in (CONFIGS["plain"], CONFIGS["seq_first"]):
        mine, other = pair(config)
        t = torch.randn(2, 7, 5, 16)
        near(mine.rotate_queries_or_keys(t, seq_dim), other.rotate_queries_or_keys(t, seq_dim), 7, 4)
    t = torch.randn(7, 5, 16)
    near(mine.rotate_queries_or_keys(t, seq_dim), other.rotate_queries_or_keys(t, seq_dim), 7, 4)


@pytest.mark.parametrize("name", XPOS)
def test_xpos(name: str) -> None:
    config = XPOS[name]
    q, k = qk(config)
    (mine, other), (_, fresh) = pair(config), pair(config)
    for got, want in zip(mine.rotate_queries_and_keys(q, k), other.rotate_queries_and_keys(q, k), strict=True):
        near(got, want, T, 6)
    positions = mine.get_seq_pos(T)
    near(mine.get_scale(positions), fresh.get_scale(positions), 1)
    scale = mine.get_scale(positions)
    scale = scale[:, None] if "seq_before_head_dim" in config else scale
    near(mine.rotate_queries_or_keys(q, scale=scale), other.rotate_queries_or_keys(q, scale=scale), T, 6)
    near(mine.rotate_queries_with_cached_keys(q, k)[0], other.rotate_queries_and_keys(q, k)[0], T, 6)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_positions(dtype: torch.dtype | None) -> None:
    for config in (CONFIGS["plain"], CONFIGS["interpolated"]):
        mine, other = pair(config)
        for offset in (0, 300, -2, 0.25):
            near(mine.get_seq_pos(T, dtype=dtype, offset=offset), other.get_seq_pos(T, dtype=dtype, offset=offset), 0)
    assert (
        mine.get_seq_pos(3, torch.device("cpu"), torch.long).tolist()
        == other.get_seq_pos(3, "cpu", torch.long).tolist()
    )


@pytest.mark.parametrize("name", ["plain", "pixel", "custom", "constant", "learned"])
@pytest.mark.parametrize("dims", [(6,), (5, 7), (1, 4, 3)])
@pytest.mark.parametrize("offsets", [None, "numbers", "tensor"])
def test_get_axial_freqs(name: str, dims: tuple[int, ...], offsets: str | None) -> None:
    config = CONFIGS[name] | {"cache_if_possible": False}
    mine, other = pair(config)
    shift = None if offsets is None else (0.5, -2.0, 3.0)[: len(dims)]
    shift = torch.tensor(shift) if offsets == "tensor" else shift
    near(
        mine.get_axial_freqs(*dims, offsets=shift),
        other.get_axial_freqs(*dims, offsets=shift).detach(),
        10 * fastest_angle(config),
    )


SHAPES = [
    # freqs, t, seq_dim, freqs_seq_dim
    ((9, 8), (2, 3, 9, 13), -2, None),
    ((12, 8), (2, 3, 9, 13), -2, None),
    ((1, 8), (2, 3, 9, 13), -2, None),
    ((12, 8), (3, 9, 13), -2, 0),
    ((12, 8), (9, 13), -2, None),
    ((12, 1, 8), (9, 4, 13), -3, None),
    ((9, 1, 8), (2, 9, 4, 13), -3, None),
    ((12, 1, 8), (2, 9, 4, 13), -3, 0),
    ((2, 1, 12, 8), (2, 3, 9, 13), -2, 2),
    ((2, 1, 12, 8), (2, 3, 9, 13), 2, -2),
    ((4, 9, 8), (2, 4, 9, 13), -2, None),
    ((2, 9, 8), (2, 9, 13), -2, None),
    ((5, 4, 8), (2, 3, 5, 4, 13), -2, None),
]


@pytest.mark.parametrize(("freqs", "t", "seq_dim", "freqs_seq_dim"), SHAPES)
@pytest.mark.parametrize("start", [0, 3])
def test_apply_rotary_emb(
    freqs: tuple[int, ...], t: tuple[int, ...], seq_dim: int, freqs_seq_dim: int | None, start: int
) -> None:
    generator = torch.Generator().manual_seed(start)
    angle, x = torch.randn(freqs, generator=generator) * 3, torch.randn(t, generator=generator)
    for scale in (1.0, 0.7, torch.rand(8, generator=generator)):
        arguments = (angle, x, start, scale, seq_dim, freqs_seq_dim)
        near(ours.apply_rotary_emb(*arguments), theirs.apply_rotary_emb(*arguments), 9, 4)


@pytest.mark.parametrize(
    ("rotations", "t"),
    [((2, 9, 4), (2, 9, 13)), ((9, 4), (7, 9, 13)), ((2, 1, 9, 4), (2, 3, 9, 13)), ((9, 4), (9, 13))],
)
@pytest.mark.parametrize("start", [0, 2])
def test_apply_learned_rotations(rotations: tuple[int, ...], t: tuple[int, ...], start: int) -> None:
    generator = torch.Generator().manual_seed(start)
    angle, x = torch.randn(rotations, generator=generator), torch.randn(t, generator=generator)
    near(ours.apply_learned_rotations(angle, x, start), theirs.apply_learned_rotations(angle, x, start), 4, 4)
    ranges, few = torch.tensor([1.0, 10.0]), angle[..., :2]
    near(
        ours.apply_learned_rotations(few, x, start, ranges),
        theirs.apply_learned_rotations(few, x, start, ranges),
        40,
        4,
    )


def test_broadcat() -> None:
    a, b, c = torch.randn(3, 1, 4), torch.randn(5, 4), torch.randn(1, 1, 1)
    for dim in (-1, 0, 1):
        assert torch.equal(ours.broadcat((a, b, c), dim), theirs.broadcat((a, b, c), dim))
    assert torch.equal(ours.broadcat([a, b]), theirs.broadcat([a, b]))


def test_gradients_of_learned_frequencies() -> None:
    q, k = qk({})
    found = []
    for module in pair(CONFIGS["learned"]):
        rotated_q, rotated_k = module.rotate_queries_with_cached_keys(q, k)
        (rotated_q @ rotated_k.mT).square().mean().backward()
        found.append(module.freqs.grad)
    near(found[0], found[1], T, float(found[1].abs().max()) * 10)
    assert found[0].abs().min() > 0
