"""Options of a training step: one graph under torch.compile, and blocks that backward computes again."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from tests.support.draws import draws
from tests.support.training_runs import config, raw_config
from x_positional import (
    ArgumentError,
    AutoregressiveWrapper,
    ConfigError,
    CrossAttender,
    Decoder,
    TransformerWrapper,
    UserError,
    set_activation_checkpointing,
)
from x_positional.attention.backends.tiles import attend
from x_positional.modules.block import Block
from x_positional.schemes import Alibi
from x_positional.training import TrainConfig, train
from x_positional.training.loop import engine
from x_positional.training.loop.engine import compiled
from x_positional.training.loop.log import LOG, read_curve

DROPOUT = {"attn_dropout": 0.2, "ff_dropout": 0.1}
FUSED, BIASED, ROWS = {"position": "rope"}, {"position": Alibi(learned=True)}, {"position": "cope"}
KINDS: dict[str, dict[str, Any]] = {
    "fused": FUSED | DROPOUT,
    "bias": BIASED,
    "a learned table of the embedding": {"position": "absolute"},
    "a learned table": {"position": "t5"},
    "a bias of the content": {"position": "forgetting"},
    "rows": ROWS | DROPOUT,
    "rows by blocks": ROWS | {"attn_flash": True},
    "projected positions": {"position": "deberta"},
    "a learned network": {"position": "dynamic"},
    "learned frequencies": {"position": ["mixed", "forgetting"]},
    "a window": FUSED | {"window": 5},
}
FEW = ("a learned table", "rows")


def model(depth: int = 1, **flags: Any) -> AutoregressiveWrapper:
    torch.manual_seed(0)
    layers = Decoder(dim=24, depth=depth, heads=2, attn_dim_head=12, **flags)
    net = TransformerWrapper(num_tokens=19, max_seq_len=32, attn_layers=layers)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return AutoregressiveWrapper(net).double().train()


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randint(19, (batch, length), generator=torch.Generator().manual_seed(length))


def step(loss: Callable[..., Tensor], of: nn.Module, length: int) -> list[Tensor]:
    """The loss and its gradients, with the same dropout each time."""
    of.zero_grad()
    torch.manual_seed(5)
    value = loss(tokens(length))
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in of.parameters() if p.grad is not None)]


def close(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Sums in another order differ by a few units of float64; gradients here are below 10."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", draws(FEW, tuple(KINDS)))
def test_a_compiled_step_is_one_graph_for_every_length(kind: str, monkeypatch: pytest.MonkeyPatch):
    """A graph for every length attends by tiles, so short rows of the plain model do too: dropout then draws the same numbers."""
    monkeypatch.setattr(attend, "FEWEST", 1)
    torch._dynamo.reset()
    plain, graphs = model(**KINDS[kind]), CompileCounter()
    loss = torch.compile(plain, fullgraph=True, dynamic=True, backend=graphs)
    for length in (10, 13, 22):
        close(step(loss, plain, length), step(plain, plain, length))
    assert graphs.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", draws(("fused",), tuple(KINDS)))
def test_the_forward_and_backward_graph_with_recomputed_blocks(kind: str):
    """AOTAutograd records the backward pass too, and replays dropout in it. Steps of one shape share a graph."""
    torch._dynamo.reset()
    plain, graphs = model(depth=2, **KINDS[kind]), CompileCounterWithBackend("aot_eager")
    want = step(plain, plain, 10)
    set_activation_checkpointing(plain, "blocks")
    loss = torch.compile(plain, fullgraph=True, backend=graphs)
    close(step(loss, plain, 10), want)
    close(step(loss, plain, 10), want)
    assert graphs.frame_count == 1
    torch._dynamo.reset()


@pytest.fixture
def runs_of_blocks(monkeypatch: pytest.MonkeyPatch) -> list[Block]:
    """Every block that ran, in order."""
    ran: list[Block] = []
    forward = Block.forward

    def counted(self: Block, *args: Any) -> Tensor:
        ran.append(self)
        return forward(self, *args)

    monkeypatch.setattr(Block, "forward", counted)
    return ran


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_blocks_give_the_same_gradients(kind: str, runs_of_blocks: list[Block]):
    plain = model(depth=2, **KINDS[kind])
    want = step(plain, plain, 10)
    assert len(runs_of_blocks) == 2
    assert set_activation_checkpointing(plain, "blocks") is plain
    runs_of_blocks.clear()
    got = step(plain, plain, 10)
    first, last = plain.net.attn_layers.blocks
    assert runs_of_blocks == [first, last, last, first], (
        "each block runs forward, and again in backward, the last one first"
    )
    assert all(map(torch.equal, got, want))
    assert len(got) == len(want) == 1 + len(list(plain.parameters()))


def test_dropout_is_what_it_claims_to_be():
    """The test above proves nothing about dropout that is off."""
    plain = model(depth=2, **FUSED, **DROPOUT)
    assert not torch.equal(step(plain, plain, 10)[0], step(plain.eval(), plain, 10)[0])


def test_without_a_training_step_nothing_is_recomputed(runs_of_blocks: list[Block]):
    net = set_activation_checkpointing(model(depth=2, **BIASED), "blocks").net
    blocks = list(net.attn_layers.blocks)
    net.eval()(tokens(5)).sum().backward()
    assert runs_of_blocks == blocks
    net.train()(tokens(5), cache=net.new_cache(2)).sum().backward()
    assert runs_of_blocks == blocks * 2
    with torch.no_grad():
        net(tokens(5))
    assert runs_of_blocks == blocks * 3
    set_activation_checkpointing(net, "none")
    net(tokens(5)).sum().backward()
    assert runs_of_blocks == blocks * 4


def test_recomputed_blocks_with_cross_attention_and_torch_func():
    torch.manual_seed(0)
    layers = CrossAttender(dim=24, depth=2, heads=2, attn_dim_head=12).double().train()
    x, context = torch.randn(2, 5, 24).double(), torch.randn(2, 7, 24).double().requires_grad_()
    want = torch.autograd.grad(layers(x, context=context).square().sum(), context)[0]
    set_activation_checkpointing(layers, "blocks")
    assert torch.equal(torch.autograd.grad(layers(x, context=context).square().sum(), context)[0], want)
    by_func = torch.func.grad(lambda c: layers(x, context=c).square().sum())(context.detach())
    torch.testing.assert_close(by_func, want)


def test_wrong_settings_are_refused():
    with pytest.raises(ArgumentError, match=r"must be 'none' or 'blocks'; got 'block'"):
        set_activation_checkpointing(model(), "block")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"Linear holds no Encoder, Decoder or CrossAttender"):
        set_activation_checkpointing(nn.Linear(2, 2), "blocks")


def test_a_run_with_recomputed_blocks_has_the_same_weights(tmp_path: Path, runs_of_blocks: list[Block]):
    plain = train(config(tmp_path, dir=str(tmp_path / "plain"), steps=3))
    count = len(runs_of_blocks)
    twice = train(config(tmp_path, dir=str(tmp_path / "twice"), steps=3, activation_checkpointing="blocks"))
    assert len(runs_of_blocks) - count == count + 3 * 2 * 2, "three steps of two batches run two blocks again"
    assert all(map(torch.equal, plain.net.parameters(), twice.net.parameters()))


def test_a_compiled_run_shows_that_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    graphs = CompileCounter()
    monkeypatch.setattr(engine, "compiled", lambda net, device: torch.compile(net, fullgraph=True, backend=graphs))
    text, found = io.StringIO(), []
    for compiles in (True, False):
        raw = raw_config(tmp_path, dir=str(tmp_path / str(compiles)), steps=3, precision="fp64", compile=compiles)
        raw["model"]["emb_dropout"] = raw["model"]["layers"]["attn"]["dropout"] = raw["model"]["layers"]["ff"][
            "dropout"
        ] = 0
        done = train(TrainConfig.model_validate(raw), console=Console(file=text, width=120))
        found.append(list(done.net.parameters()))
    assert len(re.findall(r"compiling the training step.*\n(?:.*\n)*?compiled in \d+ s", text.getvalue())) == 1
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)  # Adam divides by small moments
    assert graphs.frame_count == 1, "validation runs the model as it is, and steps share a graph"
    torch._dynamo.reset()


def test_without_a_compiler_a_compiled_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("x_positional.training.loop.engine.cpp_compilers", list)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and none was found; install g\+\+"):
        train(config(tmp_path, compile=True))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"on CUDA needs the package triton"):
        compiled(nn.Linear(2, 2), torch.device("cuda"))


def test_the_training_loss_has_what_was_set_and_validation_has_not(tmp_path: Path) -> None:
    """A smoothing of 1 and a large z-loss, at a learning rate that changes nothing."""
    console = Console(file=io.StringIO(), width=200)
    still = raw_config(tmp_path, steps=1, eval_every=1)
    still["model"] |= {"emb_dropout": 0.0}
    still["model"]["layers"] |= {"attn": {}, "ff": {}}
    still["optimizer"] = {"lr": 1e-12, "warmup_steps": 0}
    found = {}
    for name, loss in {"plain": {}, "more": {"label_smoothing": 0.5, "z_loss": 10.0}}.items():
        run = {**still["run"], "dir": str(tmp_path / name), **loss}
        result = train(TrainConfig.model_validate({**still, "run": run}), console=console)
        assert result.validation is not None
        found[name] = [read_curve(tmp_path / name / LOG, "train", "loss")[1][0], result.validation.loss]
    assert found["more"][0] > found["plain"][0] + 1
    assert found["more"][1] == pytest.approx(found["plain"][1], abs=1e-6)
    assert console.file.getvalue().count("training loss with label_smoothing 0.5, z_loss 10") == 1


@pytest.mark.parametrize(("name", "value"), [("label_smoothing", 1.5), ("label_smoothing", -0.1), ("z_loss", -1.0)])
def test_losses_out_of_range_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"run\.{name}"):
        TrainConfig.model_validate(raw_config(tmp_path, **{name: value}))
