"""Learned rotary frequencies: where they start, what is learned, how far the gradient carries, and in which precision.

T tokens, F pairs, R rotated width.
"""

import cmath
import math

import pytest
import torch
from torch import Tensor

from tests.support.naive_attention import Row, attended, dot, naive, one_layer, pairwise, random_qkv, worst
from x_positional import Decoder, TransformerWrapper
from x_positional.schemes import Axial, AxialEmbedding, Linear, Rope, RopeEmbedding, XPos, Yarn

HEADS, HEAD_DIM = 2, 8
TIGHT = 1e-6
FAR = [0, 1, 255, 256, 257, 4095, 65_535, 2**20 - 1]


def rotated(x: Row, position: float, stretch: list[float], theta: float) -> list[float]:
    """Pair i turns by position * theta^(-2i/R) * e^(stretch_i)."""
    out, pairs = list(x), len(stretch)
    for i, s in enumerate(stretch):
        frequency = theta ** (-i / pairs) * math.exp(s)
        turned = complex(x[i], x[i + pairs]) * cmath.exp(1j * position * frequency)
        out[i], out[i + pairs] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("dim", [None, 6])
@pytest.mark.parametrize("start", [0, 10_000])
def test_learned_rope_in_attention(dim: int | None, start: int) -> None:
    qkv, positions = random_qkv(HEADS, HEAD_DIM), start + torch.arange(9)[None].repeat(2, 1)
    layers = one_layer(Rope(learned=True, theta=300.0, dim=dim), HEADS, HEAD_DIM)
    stretch = [0.3, -0.2, 0.7, -0.5][: (dim or HEAD_DIM) // 2]
    with torch.no_grad():
        layers.schemes[0].log_stretch.copy_(torch.tensor(stretch))

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        return dot(rotated(q, m, stretch, 300.0), rotated(k, n, stretch, 300.0)) / math.sqrt(len(q))

    want = naive(qkv, pairwise(logit, positions))
    assert worst(attended(layers, qkv, positions), want) < TIGHT
    assert worst(attended(layers, qkv, positions, (3, 1, 5)), want) < TIGHT


@pytest.mark.parametrize(
    "config",
    [
        Rope(),
        Rope(theta=500.0, dim=6, interleaved=True),
        Rope(scaling=Linear(factor=4)),
        Rope(sections=(2, 2)),
        Rope(scaling=Yarn(factor=4, original_max_position_embeddings=32)),
        XPos(scale_base=64.0),
        Axial(),
        Axial(freqs="pixel"),
    ],
    ids=repr,
)
def test_before_training_it_is_what_it_was(config: Rope | Axial) -> None:
    """To the last bit, whatever the scaling, and in a narrow model."""
    dims = one_layer(Rope(), HEADS, HEAD_DIM).dims
    fixed, learned = config.build(dims), config.model_copy(update={"learned": True}).build(dims).bfloat16()
    at = torch.tensor([FAR[:-1]])
    for ours, want in zip(learned.tables(at), fixed.tables(at), strict=True):
        assert torch.equal(ours, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_learned_survives_a_narrow_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stack = Decoder(dim=32, depth=2, heads=2, attn_dim_head=16, position=Rope(learned=True))
    (scheme,) = stack.position_schemes
    torch.nn.init.normal_(scheme.log_stretch, std=0.3)
    exact = [10_000 ** (-2 * i / 16) * math.exp(s) for i, s in enumerate(scheme.log_stretch.tolist())]
    stack.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tables = scheme.tables(torch.tensor([FAR]))
    turns = torch.tensor([[cmath.exp(1j * t * f) for f in exact] for t in FAR], dtype=torch.complex128)
    assert scheme.log_stretch.dtype == torch.float32
    assert worst(tables.q_cos[0, 0, :, :8], turns.real) < TIGHT
    assert worst(tables.q_sin[0, 0, :, 8:], turns.imag) < TIGHT


class Turned(torch.nn.Module):
    """Queries turned by a scheme."""

    def __init__(self, scheme: RopeEmbedding):
        super().__init__()
        self.scheme = scheme

    def forward(self, q: Tensor, positions: Tensor) -> Tensor:
        return self.scheme.rotate_q(q, self.scheme.tables(positions))


@pytest.mark.parametrize("scheme", [RopeEmbedding(12, learned=True), AxialEmbedding(12, 3, learned=True)])
@pytest.mark.parametrize(("at", "eps"), [(10, 1e-6), (10_000, 1e-8)])
def test_gradients_of_far_angles(scheme: RopeEmbedding, at: int, eps: float) -> None:
    """In float64, against finite differences and by hand: a pair (x, y) moves by (-y, x) times the angle itself."""
    module = Turned(scheme).double()
    q = torch.randn(1, 1, 1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def turned(stretch: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"scheme.log_stretch": stretch}, (q, torch.tensor([[at]])))

    start = torch.linspace(-0.1, 0.1, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(turned, (start,), eps=eps, atol=1e-7 * at, rtol=1e-6)
    jacobian = torch.autograd.functional.jacobian(turned, start)[0, 0, 0]
    x, y = turned(start).detach()[0, 0, 0].chunk(2)
    angle = at * scheme.initial_frequencies(torch.device("cpu")).inv_freq * start.detach().exp()
    assert worst(jacobian[:6], (-y * angle).diag()) < 1e-12 * at
    assert worst(jacobian[6:], (x * angle).diag()) < 1e-12 * at


def test_layers_share_it_and_training_moves_it() -> None:
    torch.manual_seed(0)
    stack = Decoder(dim=24, depth=3, heads=2, attn_dim_head=12, position=Rope(learned=True))
    model = TransformerWrapper(num_tokens=19, max_seq_len=32, attn_layers=stack)
    (scheme,) = stack.position_schemes
    tokens = torch.randint(0, 19, (4, 24), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert (scheme.log_stretch.grad != 0).all()
    assert (scheme.log_stretch.detach().abs() > 1e-3).all()
    assert losses[-1] < 0.7 * losses[0]
