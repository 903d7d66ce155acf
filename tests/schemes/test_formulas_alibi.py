"""ALiBi against Press et al. 2021 (arXiv:2108.12409): slopes for any number of heads, and every variant of the bias."""

import pytest
import torch
from x_transformers.x_transformers import AlibiPositionalBias

from tests.support.naive_attention import attended, naive, one_layer, pairwise, random_qkv, worst
from tests.support.scheme_logits import alibi_logit, press
from x_positional.schemes import Alibi, alibi_slopes

HEADS, HEAD_DIM = 6, 5
TIGHT = 1e-6


BY_HAND = {
    1: [2**-8],
    3: [2**-4, 2**-8, 2**-2],
    6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3],
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
    12: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
}


@pytest.mark.parametrize("heads", range(1, 65))
def test_slopes(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert slopes == pytest.approx(press(heads), rel=1e-12)
    assert slopes == pytest.approx(AlibiPositionalBias._get_slopes(heads), rel=1e-12)
    assert len(slopes) == len(set(slopes)) == heads
    if heads in BY_HAND:
        assert slopes == pytest.approx(BY_HAND[heads], rel=1e-12)


OWN = (0.9, 0.4, 0.05)
CASES = {  # config, slopes to the left, right over left (None: the same), the only mask it is for
    "default": (Alibi(), press(HEADS), None, None),
    "causal": (Alibi(variant="causal"), press(HEADS), None, True),
    "symmetric": (Alibi(variant="symmetric"), press(HEADS), None, False),
    "asymmetric": (Alibi(variant="asymmetric"), press(HEADS), 0.5, False),
    "first heads": (Alibi(heads=3), press(3), None, None),
    "own slopes": (Alibi(slopes=OWN), list(OWN), None, None),
    "own, asymmetric": (Alibi(slopes=OWN, variant="asymmetric"), list(OWN), 0.5, False),
}


@pytest.mark.parametrize(
    ("name", "causal"), [(name, c) for name, case in CASES.items() for c in (True, False) if case[3] in (None, c)]
)
def test_alibi_in_attention(name: str, causal: bool) -> None:
    config, left, ratio, _ = CASES[name]
    qkv = random_qkv(HEADS, HEAD_DIM)
    right = left if ratio is None else [slope * ratio for slope in left]
    found = attended(one_layer(config, HEADS, HEAD_DIM, causal=causal), qkv)
    assert worst(found, naive(qkv, pairwise(alibi_logit(left, right)), causal)) < TIGHT


@pytest.mark.parametrize("variant", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("heads", [None, 2])
def test_learned_slopes(variant: str, heads: int | None) -> None:
    """Perturbed parameters are the logarithms of the slopes, one for each side where the sides differ."""
    config = Alibi(learned=True, variant=variant, heads=heads)
    layers, qkv = one_layer(config, HEADS, HEAD_DIM, causal=False), random_qkv(HEADS, HEAD_DIM)
    scheme = layers.kinds[0].scheme
    left = scheme.log_left.exp().tolist()
    right = left if variant == "symmetric" else scheme.log_right.exp().tolist()
    assert left != pytest.approx(press(heads or HEADS), rel=1e-3)
    assert len(left) == len(right) == (heads or HEADS)
    assert worst(attended(layers, qkv), naive(qkv, pairwise(alibi_logit(left, right)), causal=False)) < TIGHT


@pytest.mark.parametrize("variant", [None, "asymmetric"])
def test_learned_slopes_start_as_the_fixed_ones(variant: str | None) -> None:
    causal, qkv = variant is None, random_qkv(HEADS, HEAD_DIM)
    learned = one_layer(Alibi(learned=True, variant=variant), HEADS, HEAD_DIM, causal=causal)
    with torch.no_grad():
        for name, parameter in learned.kinds[0].scheme.named_parameters():
            start = torch.tensor(press(HEADS), dtype=torch.float64) * (0.5 if name == "log_right" else 1)
            parameter.copy_(start.log())
    fixed = one_layer(Alibi(variant=variant), HEADS, HEAD_DIM, causal=causal)
    assert worst(attended(learned, qkv), attended(fixed, qkv)) < TIGHT


@pytest.mark.parametrize("config", [Alibi(), Alibi(heads=3)])
@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (1,) * 9, (2, 7)])
def test_alibi_in_chunks(config: Alibi, chunks: tuple[int, ...]) -> None:
    qkv, slopes = random_qkv(HEADS, HEAD_DIM), press(config.heads or HEADS)
    found = attended(one_layer(config, HEADS, HEAD_DIM), qkv, chunks=chunks)
    assert worst(found, naive(qkv, pairwise(alibi_logit(slopes, slopes)))) < TIGHT


@pytest.mark.parametrize("backend", ["blockwise", "sdpa", "flex"])
def test_alibi_in_chunks_in_every_backend(backend: str) -> None:
    qkv, slopes = random_qkv(HEADS, HEAD_DIM), press(HEADS)
    found = attended(one_layer(Alibi(), HEADS, HEAD_DIM, backend=backend), qkv, chunks=(4, 1, 4))
    assert worst(found, naive(qkv, pairwise(alibi_logit(slopes, slopes)))) < TIGHT


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
@pytest.mark.parametrize("causal", [True, False])
def test_alibi_in_every_backend_with_grouped_heads(backend: str, causal: bool) -> None:
    qkv, slopes = random_qkv(HEADS, HEAD_DIM, kv_heads=2), press(HEADS)
    layers = one_layer(Alibi(), HEADS, HEAD_DIM, kv_heads=2, backend=backend, causal=causal)
    assert worst(attended(layers, qkv), naive(qkv, pairwise(alibi_logit(slopes, slopes)), causal)) < TIGHT


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
@pytest.mark.parametrize("start", [0, 65_535, 2**20 - 1])
def test_alibi_at_far_uneven_and_fractional_positions(dtype: torch.dtype, start: int) -> None:
    qkv, slopes = random_qkv(HEADS, HEAD_DIM), press(HEADS)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 3, 70, 71, 9, 300, 2, 1]]).to(dtype) + start
    if dtype == torch.float64:
        positions = positions * 0.75
    for causal in (True, False):
        found = attended(one_layer(Alibi(), HEADS, HEAD_DIM, causal=causal), qkv, positions)
        assert worst(found, naive(qkv, pairwise(alibi_logit(slopes, slopes), positions), causal)) < TIGHT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_near_keys_keep_their_order_far_from_the_start(dtype: torch.dtype, learned: bool, autocast: bool) -> None:
    """Computed from distances: the last 128 of 8192 keys differ by their slope and nothing is rounded away."""
    scheme = one_layer(Alibi(learned=learned), HEADS, HEAD_DIM).kinds[0].scheme.to(dtype)
    slopes = scheme.log_left.double().exp() if learned else torch.tensor(press(HEADS), dtype=torch.float64)
    distance = 8191 - torch.arange(8192 - 128, 8192)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), torch.no_grad():
        bias = scheme.of_distance(distance)
    assert bias.dtype == torch.float32
    expected = -slopes[:, None] * distance
    assert ((bias - expected).abs() <= 4 * 2**-24 * expected.abs()).all()  # a slope and a product, rounded once each


def test_a_narrow_default_dtype_narrows_neither_slopes_nor_distances() -> None:
    layers, distance = one_layer(Alibi(), HEADS, HEAD_DIM), torch.tensor([0, 1, 255, 256, 257, 4095, 65_535])
    torch.set_default_dtype(torch.bfloat16)
    try:
        bias = layers.kinds[0].scheme.of_distance(distance)
    finally:
        torch.set_default_dtype(torch.float32)
    expected = -torch.tensor(press(HEADS), dtype=torch.float64)[:, None] * distance
    assert ((bias - expected).abs() <= TIGHT * expected.abs()).all()
