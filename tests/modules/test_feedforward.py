"""The activation with learned slopes: its formula, its gradients, its numbers in half precision, saved and read back, compiled."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper, from_pretrained, quantize
from x_positional.errors import IncompatibleConfig
from x_positional.modules.feedforward import XIELU


def model() -> TransformerWrapper:
    torch.manual_seed(3)
    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, position="rope", ff={"activation": "xielu"})
    net = TransformerWrapper(num_tokens=11, max_seq_len=32, attn_layers=layers).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def one(x: float, p: float, n: float, beta: float, eps: float) -> float:
    """The paper's equation 5, of one number."""
    p, n = math.log1p(math.exp(p)), beta + math.log1p(math.exp(n))
    return p * x * x + beta * x if x > 0 else n * (math.expm1(min(x, eps)) - x) + beta * x


def test_formula_and_gradients() -> None:
    act, x = XIELU().double(), torch.linspace(-3, 3, 12, dtype=torch.float64)
    with torch.no_grad():
        for parameter in act.parameters():
            parameter -= 0.07
    numbers = [float(value.detach()) for value in (act.alpha_p, act.alpha_n, act.beta, act.eps)]
    expected = torch.tensor([one(float(v), *numbers) for v in x], dtype=torch.float64)
    torch.testing.assert_close(act(x), expected, atol=1e-14, rtol=1e-14)
    assert torch.autograd.gradcheck(act, (x.requires_grad_(),))
    act(x).sum().backward()
    assert act.alpha_p.grad is not None
    assert act.alpha_n.grad is not None
    assert act.beta.grad is None
    assert act.eps.grad is None


def test_it_starts_as_the_paper_says() -> None:
    """Both slopes are 0.8, beta is 0.5."""
    act = XIELU()
    assert act(torch.tensor([2.0])).item() == pytest.approx(0.8 * 4 + 0.5 * 2, rel=1e-6)
    assert act(torch.tensor([-40.0])).item() == pytest.approx(0.8 * (-1 + 40) - 0.5 * 40, rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half(dtype: torch.dtype) -> None:
    act, x = XIELU(), torch.linspace(-3, 3, 25)
    exact = act(x)
    assert act(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(act.to(dtype)(x.to(dtype)).float(), exact, atol=0.05, rtol=0.02)


@torch.no_grad()
def test_cached_saved_and_quantized(tmp_path: Path) -> None:
    net, tokens = model(), torch.arange(9)[None]
    whole, cache = net(tokens), net.new_cache(1)
    parts = [net(part, cache=cache) for part in tokens.split(4, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    net.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(tokens), whole)
    assert (quantize(net)(tokens) - whole).abs().max() < 0.3


def test_one_graph() -> None:
    net, tokens = model(), torch.arange(9)[None]
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), net(tokens), atol=1e-6, rtol=1e-6)


def test_a_step_moves_the_slopes() -> None:
    net = AutoregressiveWrapper(model().train())
    before: list[Tensor] = [p.detach().clone() for n, p in net.named_parameters() if ".learned." in n]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.arange(10)[None]).backward()
    optimizer.step()
    after = [p for n, p in net.named_parameters() if ".learned." in n]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert moved == [True, True, False, False] * 2


@pytest.mark.parametrize("ff", [{"glu": True}, {"moe": {"experts": 4, "top_k": 2}}])
def test_gates_and_experts_are_refused(ff: dict) -> None:
    with pytest.raises(IncompatibleConfig, match="has learned parameters"):
        Decoder(dim=16, depth=1, heads=2, ff={"activation": "xielu", **ff})
