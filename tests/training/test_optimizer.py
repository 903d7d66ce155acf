"""Decay on matrices only, and a learning rate that is a function of the step."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from x_positional import ModelConfig, build_model
from x_positional.training import OptimizerConfig
from x_positional.training.checkpoints.state import load_optimizer, optimizer_tensors
from x_positional.training.loop.engine import decayed_parameters, learning_rate, make_optimizer


def model(position: str = "t5", *, tie: bool = False) -> nn.Module:
    layers = {"dim": 16, "depth": 2, "heads": 2, "head_dim": 8, "position": position, "norm": {"kind": "rms"}}
    layers["attn"] = {"bias": True, "sinks": True, "qk_norm": "rms"}
    fields = {"num_tokens": 40, "max_seq_len": 12, "layers": layers, "tie_embedding": tie}
    return build_model(ModelConfig.model_validate(fields))


@pytest.mark.parametrize("position", ["t5", "cope", "absolute", "dynamic", "forgetting"])
def test_only_weights_of_linear_maps_decay(position: str):
    net = model(position)
    decayed = decayed_parameters(net)
    own = dict(net.named_parameters())
    assert decayed < own.keys()
    assert all(own[name].ndim == 2 for name in decayed)
    left = {name for name in own if name not in decayed}
    assert {"token_emb.weight"} <= left
    assert {name for name in own if own[name].ndim < 2} <= left
    inside = {name for name in own if "attn_layers" in name and own[name].ndim == 2 and min(own[name].shape) >= 8}
    assert {name for name in inside if "to_" in name or "ff" in name} <= decayed
    assert "to_logits.weight" in decayed


def test_stacked_weights_of_experts_decay_and_their_biases_do_not():
    moe = {"experts": 4, "top_k": 2, "correction": True, "shared": 5, "router_bias": True}
    net = build_model(
        {"num_tokens": 40, "max_seq_len": 12, "layers": {"dim": 16, "depth": 1, "heads": 2, "ff": {"moe": moe}}}
    )
    place = "attn_layers.blocks.0.ff."
    decayed = {name.removeprefix(place) for name in decayed_parameters(net) if name.startswith(place)}
    assert decayed == {"router.weight", "experts.up", "experts.down", "shared.up.weight", "shared.down.weight"}
    optimizer = make_optimizer(net, OptimizerConfig())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(net.get_parameter(place + "router.correction")) not in held


class Added(nn.Module):
    """Adds a learned matrix to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bias_table = nn.Parameter(torch.ones(1))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.bias_table


@pytest.mark.parametrize(
    ("parametrized", "sources"),
    [
        (parametrizations.weight_norm, {"original0", "original1"}),
        (parametrizations.spectral_norm, {"original"}),
        (lambda linear: parametrize.register_parametrization(linear, "weight", Added()), {"original"}),
    ],
)
def test_what_a_parametrized_weight_is_computed_from_decays(parametrized, sources: set[str]):
    net = model()
    plain = decayed_parameters(net)
    up = net.get_submodule("attn_layers.blocks.1.ff.up")
    parametrized(up)
    parametrize.register_parametrization(up, "bias", nn.Identity())
    place = "attn_layers.blocks.1.ff.up."
    expected = {f"{place}parametrizations.weight.{name}" for name in sources}
    assert decayed_parameters(net) == plain - {f"{place}weight"} | expected
    decayed, _ = make_optimizer(net, OptimizerConfig()).param_groups
    assert {id(net.get_parameter(name)) for name in expected} <= {id(p) for p in decayed["params"]}
    assert len(decayed["params"]) == len(plain) - 1 + len(sources)


def test_a_tied_embedding_does_not_decay():
    net = model(tie=True)
    assert not [name for name in decayed_parameters(net) if "emb" in name or "logits" in name]


def test_decay_shrinks_the_matrices_and_nothing_else():
    net = model()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    decayed = decayed_parameters(net)
    optimizer = make_optimizer(net, OptimizerConfig(lr=0.5, weight_decay=0.2))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = 1 - 0.5 * 0.2 if name in decayed else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0)


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine():
    config = OptimizerConfig(lr=2.0, warmup_steps=4, final_lr_fraction=0.1)
    rates = [learning_rate(config, step, 15) for step in range(15)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[9] == pytest.approx((2.0 + 0.2) / 2)  # half way between step 4 and step 14
    assert rates[14] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))


def test_without_warmup_the_first_rate_is_the_full_one():
    config = OptimizerConfig(lr=2.0, warmup_steps=0, final_lr_fraction=0.0)
    assert learning_rate(config, 0, 1) == 2.0
    assert [learning_rate(config, step, 3) for step in range(3)] == pytest.approx([2.0, 1.0, 0.0])


def test_optimizer_state_goes_through_tensors_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    first, second = model(), model()
    second.load_state_dict(first.state_dict())
    ours = make_optimizer(first, OptimizerConfig())
    gradients = [[torch.randn_like(p) for p in first.parameters()] for _ in range(4)]

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        for parameter, gradient in zip(net.parameters(), gradients[number], strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()

    for number in (0, 1):
        step(first, ours, number)
    second.load_state_dict(first.state_dict())
    theirs = make_optimizer(second, OptimizerConfig())
    load_optimizer(second, theirs, optimizer_tensors(first, ours), tmp_path)
    for number in (2, 3):
        step(first, ours, number)
        step(second, theirs, number)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    fresh = make_optimizer(second, OptimizerConfig())
    step(second, fresh, 3)
    step(first, ours, 3)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
