"""Attention by tiles inside a graph of torch.compile: gradients exact, one graph, and no tensor of all pairs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch.utils._pytree import tree_leaves

from tests.support.block_models import by_small_blocks, model
from tests.support.draws import draws
from tests.support.largest import Largest
from x_positional import Alibi, TransformerWrapper
from x_positional.attention.backends.tiles import attend, operator
from x_positional.errors import BackendError
from x_positional.schemes.distance import BandTerm

BATCH, LENGTH = 2, 37
CAP: dict[str, Any] = {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 1.5}
SINKS: dict[str, Any] = {"attn_head_learned_sink": True}
LEFT: dict[str, Any] = {"mask": torch.arange(LENGTH) >= torch.tensor([[0], [6]])}
PACKED: dict[str, Any] = {"document_ids": torch.arange(LENGTH).div(13, rounding_mode="floor").expand(BATCH, -1)}
APART: dict[str, Any] = {"positions": torch.arange(LENGTH).square().expand(BATCH, -1)}
FLOATS: dict[str, Any] = {"positions": torch.arange(LENGTH).double().sqrt().expand(BATCH, -1)}
DEBERTA = {"kind": "deberta", "num_buckets": 6, "max_distance": 12}
Case = tuple[Any, dict[str, Any], dict[str, Any]]
FEW: list[Case] = [(["t5", "forgetting"], CAP | SINKS, LEFT), ("dynamic", {}, PACKED), ("cope", {}, {})]
EVERY: list[Case] = [
    *((p, {}, call) for p in ("t5", "dynamic", "alibi", DEBERTA, "forgetting", "polar") for call in ({}, LEFT, PACKED)),
    *(("t5", {"window": 6}, call) for call in ({}, LEFT, APART)),
    *((Alibi(learned=True), {}, call) for call in (APART, FLOATS, FLOATS | LEFT)),
    *(("rope", flags, call) for flags in (CAP, SINKS) for call in ({}, LEFT)),
    ("cope", CAP, LEFT),
    ("polar", {"window": 6, "keep_first": 2}, {}),
    ("polar", {"chunk": 9}, PACKED),
]


class Graphs:
    """A backend of torch.compile that keeps the forward and backward graphs."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []
        self.backend = aot_autograd(fw_compiler=self._keep)

    def _keep(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return make_boxed_func(graph.forward)

    def _nodes(self) -> Iterator[fx.Node]:
        return (node for graph in self.graphs for node in graph.graph.nodes)

    @property
    def operators(self) -> int:
        """Calls of attention by tiles, forward and backward."""
        return sum("x_positional.attention_by_tiles" in str(node.target) for node in self._nodes())

    @property
    def largest(self) -> int:
        """Elements of the largest tensor between operations."""
        made = (t for node in self._nodes() for t in tree_leaves(node.meta.get("val")))
        return max(int(t.numel()) for t in made if isinstance(t, Tensor))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    by_small_blocks(monkeypatch)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(net: TransformerWrapper, backend: Any) -> Any:
    return torch.compile(net, fullgraph=True, backend=backend)


def difference(case: Case, graphs: Graphs) -> float:
    """Between a compiled step and eager, logits and gradients, over the size of each, in float64."""
    position, flags, call = case
    nets = [model(position, backend=name, depth=1, **flags).double() for name in ("auto", "eager")]
    runs = compiled(nets[0], graphs.backend), nets[1]
    weights = torch.randn(BATCH, LENGTH, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = []
    for net, run in zip(nets, runs, strict=True):
        logits = run(torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 11, **call)
        own = torch.autograd.grad((logits * weights).sum(), [*net.parameters()], allow_unused=True)
        found.append([logits.detach(), *(g for g in own if g is not None)])
    pairs = zip(*found, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)


@pytest.mark.parametrize("case", draws(FEW, EVERY))
def test_a_compiled_step_attends_by_tiles_and_is_exact(case: Case) -> None:
    graphs = Graphs()
    assert difference(case, graphs) < 1e-12
    assert graphs.operators == 2


def test_another_offset_in_the_graph_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    shifted = property(lambda self: (*self.inputs, self.low, self.offset + 1))
    monkeypatch.setattr(BandTerm, "arguments", shifted)
    assert difference(("t5", {}, {}), Graphs()) > 1e-3


def test_a_term_that_a_graph_cannot_hold_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BandTerm, "arguments", None)
    graphs = Graphs()
    assert difference(("t5", {}, {}), graphs) < 1e-12
    assert graphs.operators == 0


@pytest.mark.parametrize("position", draws(["rope"], ["rope", "t5", "alibi", "polar", "cope", "forgetting"]))
def test_dropout_in_a_graph_draws_the_numbers_of_its_seed(position: str) -> None:
    net, found = model(position, attn_dropout=0.3, depth=1).double(), []
    for run in (net, compiled(net, Graphs().backend)):
        torch.manual_seed(5)
        logits = run(torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 11)
        own = torch.autograd.grad(logits.square().sum(), [*net.parameters()], allow_unused=True)
        found.append([logits, *(g for g in own if g is not None)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def largest(monkeypatch: pytest.MonkeyPatch, position: Any, flags: dict[str, Any], length: int) -> int:
    """Elements of the largest tensor of a compiled step, between its operations and inside attention."""
    inside, graphs = Largest(), Graphs()

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with inside:
                return function(*arguments)

        return run

    with monkeypatch.context() as patch:
        for name in ("forward_pass", "tile_gradients"):
            patch.setattr(operator, name, watched(getattr(operator, name)))
        net = model(position, length=length, depth=1, ff_mult=1, **flags)
        compiled(net, graphs.backend)(torch.zeros(1, length, dtype=torch.long)).square().mean().backward()
    assert graphs.operators == 2
    assert inside.elements > 0
    return max(inside.elements, graphs.largest)


MEMORY: list[tuple[Any, dict[str, Any]]] = [(["t5", "forgetting"], {"attn_dropout": 0.1})]
EVERY_MEMORY = [*MEMORY, *((p, {}) for p in ("t5", "alibi", "dynamic", "cope", "polar", DEBERTA)), ("rope", CAP)]


@pytest.mark.parametrize(("position", "flags"), draws(MEMORY, EVERY_MEMORY))
def test_no_tensor_of_a_compiled_step_holds_all_pairs(
    monkeypatch: pytest.MonkeyPatch, position: Any, flags: dict[str, Any]
) -> None:
    by_small_blocks(monkeypatch, 32, 64)
    assert largest(monkeypatch, position, flags, 320) < 320**2 / 2


def test_two_graphs_serve_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first length has a graph of its own; where tiles begin to pay does not split the others."""
    monkeypatch.setattr(attend, "FEWEST_TRAINING", 20)
    monkeypatch.setattr(attend, "FEWEST", 10)
    net, graphs = model("t5", depth=1), CompileCounter()
    run = compiled(net, graphs)
    for length in (25, 9, 30, 20, 19, 3):
        run(torch.zeros(1, length, dtype=torch.long)).sum().backward()
    assert graphs.frame_count == 2


def test_float_positions_with_a_gradient_receive_it() -> None:
    found = []
    for name, compiles in (("eager", False), ("auto", False), ("auto", True)):
        net = model(Alibi(learned=True), backend=name, depth=1).double()
        run = compiled(net, Graphs().backend) if compiles else net
        positions = torch.arange(LENGTH).double().sqrt().expand(BATCH, -1).clone().requires_grad_()
        logits = run(torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 11, positions=positions)
        found.append(torch.autograd.grad(logits.square().sum(), positions)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found[2], found[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rows", draws([False], [False, True]))
def test_transforms_of_torch_func_inside_a_graph(rows: bool) -> None:
    found, tokens = [], torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 11
    for name in ("auto", "eager"):
        net = model("t5", backend=name, depth=1).double()

        def loss(
            parameters: dict[str, Tensor], row: Tensor, net: TransformerWrapper = net, batched: bool = rows
        ) -> Tensor:
            logits: Tensor = torch.func.functional_call(net, parameters, (row[None] if batched else row,))
            return logits.square().sum()

        step = torch.func.grad(loss)
        step = torch.func.vmap(step, (None, 0)) if rows else step
        run = torch.compile(step, fullgraph=True, backend="aot_eager") if name == "auto" else step
        found.append(run({key: p.detach() for key, p in net.named_parameters()}, tokens))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


def test_second_derivatives_of_a_graph_are_refused() -> None:
    net = model("t5", depth=1)
    logits = compiled(net, "eager")(torch.zeros(1, LENGTH, dtype=torch.long))
    parameters = [p for p in net.parameters() if p.requires_grad]
    first = torch.autograd.grad(logits.square().sum(), parameters, create_graph=True, allow_unused=True)
    with pytest.raises(BackendError, match="create_graph"):
        torch.stack([g.square().sum() for g in first if g is not None]).sum().backward()


@pytest.mark.parametrize("position", draws(["cope"], ["cope", "forgetting", DEBERTA, "t5"]))
def test_half_precision_is_computed_as_without_a_graph(position: Any) -> None:
    found, tokens = [], torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 11
    for compiles in (False, True):
        net = model(position, depth=1).bfloat16()
        logits = (compiled(net, Graphs().backend) if compiles else net)(tokens)
        own = torch.autograd.grad(logits.float().square().sum(), [*net.parameters()], allow_unused=True)
        found.append([logits, *(g for g in own if g is not None)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0.02, atol=0.02 * float(want.detach().abs().max()))
