"""Second derivatives, torch.func, tracing and a default device: each works, or the error names what does."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from tests.support.config_models import SIZES, V, ids, model_of
from tests.support.draws import draws
from x_positional import ContinuousTransformerWrapper, Decoder, Encoder, TransformerWrapper
from x_positional.errors import BackendError, InputError

SCHEMES = ("rope", "alibi", "t5", "forgetting", "cope", "deberta")
"""One of each path: rotation, a bias in closed form, a table, a content bias, whole rows, reads of the layer."""


def continuous(position: str, backend: str = "auto", kind: type = Decoder) -> ContinuousTransformerWrapper:
    torch.manual_seed(0)
    layers = kind(**SIZES, position=position, backend=backend)
    return ContinuousTransformerWrapper(dim_in=3, dim_out=1, max_seq_len=16, attn_layers=layers).double()


def penalty(model: ContinuousTransformerWrapper, x: Tensor) -> Tensor:
    """The squared norm of the gradient with respect to the input."""
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return gradient.square().sum()


@pytest.mark.parametrize("backend", ["eager", "blockwise"])
@pytest.mark.parametrize("position", SCHEMES)
def test_second_derivatives_are_those_of_finite_differences(position: str, backend: str) -> None:
    model, step = continuous(position, backend), 1e-5
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    (second,) = torch.autograd.grad(penalty(model, x), x)
    direction = torch.randn_like(x)
    ahead, behind = (penalty(model, (x + sign * step * direction).detach().requires_grad_()) for sign in (1, -1))
    expected = ((ahead - behind) / (2 * step)).item()
    assert float((second * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_a_fused_kernel_names_the_backends_for_second_derivatives(kind: type) -> None:
    model, x = continuous("rope", kind=kind), torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(BackendError, match=r"backend='sdpa'.*backend='eager', or backend='blockwise'"):
        penalty(model, x).backward()
    (once,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)  # a first derivative is not refused
    (plain,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(once, plain)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        reference = penalty(continuous("rope", "eager", kind), x)
        assert penalty(model, x).item() == pytest.approx(reference.item(), rel=1e-9)
        penalty(model, x).backward()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch runs the fused kernel row by row
@pytest.mark.parametrize("backend", ["auto", "eager", "blockwise"])
@pytest.mark.parametrize("position", SCHEMES)
@pytest.mark.parametrize("masked", [False, True])
def test_per_sample_gradients_are_those_of_one_row_alone(position: str, backend: str, masked: bool) -> None:
    torch.manual_seed(0)
    layers = Decoder(**SIZES, position=position, backend=backend)
    model = TransformerWrapper(num_tokens=V, max_seq_len=8, attn_layers=layers).double()
    parameters, tokens = dict(model.named_parameters()), ids()
    keep = torch.ones_like(tokens, dtype=torch.bool)
    if masked:
        keep[0, 3:] = keep[1, :2] = False

    def loss(parameters: dict[str, Tensor], row: Tensor, keep: Tensor) -> Tensor:
        options = {"mask": keep[None]} if masked else {}
        return functional_call(model, parameters, (row[None],), options).square().sum()

    found = vmap(grad(loss), (None, 0, 0))(parameters, tokens, keep)
    for i in range(len(tokens)):
        alone = torch.autograd.grad(loss(parameters, tokens[i], keep[i]), list(parameters.values()), allow_unused=True)
        for (name, gradients), expected in zip(found.items(), alone, strict=True):
            wanted = torch.zeros_like(gradients[i]) if expected is None else expected
            torch.testing.assert_close(gradients[i], wanted, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.filterwarnings("ignore")  # torch deprecates tracing, and warns of every number that it bakes in
def test_a_trace_of_one_length_is_refused_and_an_export_of_any_length_is_exact() -> None:
    model = model_of(depth=1)
    with pytest.raises(InputError, match=r"torch\.jit\.trace would record .*torch\.export\.export"):
        torch.jit.trace(model, (ids(),), check_trace=False)
    length = {"tokens": {1: torch.export.Dim("length", min=2, max=9)}}
    exported = torch.export.export(model, (ids(),), dynamic_shapes=length).module()
    longer = ids(length=8)
    assert torch.equal(exported(longer), model(longer))


@pytest.fixture
def default_device():
    torch.set_default_device("cpu")
    yield
    torch.set_default_device(None)


GRAPHS = [
    ("rope", {"attn": {"qk_norm": "l2"}}),
    ({"kind": "rope", "dim": 4}, {"attn": {"mla": {"kv_rank": 8, "rope_dim": 4}}}),
    ("rope", {}),
    ("deberta", {}),
]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("position", "fields"), draws(GRAPHS[:1], GRAPHS))
def test_a_default_device_does_not_break_the_graph(default_device, position, fields: dict, gradients: bool) -> None:
    torch._dynamo.reset()
    model = model_of(position, depth=1, **fields)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    mask = torch.ones_like(ids(), dtype=torch.bool)
    mask[0, 3:] = False
    with torch.set_grad_enabled(gradients):
        found, expected = compiled(ids(), mask=mask), model(ids(), mask=mask)
    torch.testing.assert_close(found, expected)
    if gradients:
        parameters = list(model.parameters())
        for gradient, eager in zip(
            *(torch.autograd.grad(out.sum(), parameters) for out in (found, expected)), strict=True
        ):
            torch.testing.assert_close(gradient, eager)
