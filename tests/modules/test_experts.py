"""Mixtures of experts against a loop over tokens in float64, written from the papers; nothing else in the batch matters."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.small_models import close, decoder, ids
from x_positional import ModelConfig, build_model
from x_positional.config.layers import FeedForwardConfig, LayersConfig
from x_positional.models.build import build_feedforward
from x_positional.modules.experts import MixtureOfExperts

DIM, WIDTH, EXPERTS = 10, 7, 6

KINDS = {
    "softmax, then the best": {"renorm": False},
    "softmax of the best": {},
    "with biases": {"router_bias": True},
    "one": {"top_k": 1, "renorm": False},
    "all": {"top_k": EXPERTS},
    "sigmoid": {"score": "sigmoid", "renorm": False},
    "sigmoid of the input": {"score": "sigmoid", "renorm": False, "weigh": "input"},
    "corrected": {"score": "sigmoid", "correction": True, "scale": 2.5},
    "in groups": {"score": "sigmoid", "correction": True, "scale": 2.5, "groups": 3, "top_groups": 2, "top_k": 3},
    "in groups, softmax": {"groups": 2, "top_groups": 1, "top_k": 3},
    "in groups by their best": {"groups": 3, "top_groups": 1, "top_k": 2, "group_best": 1, "renorm": False},
    "shared": {"shared": 5},
    "shared behind a gate": {"shared": 5, "shared_gate": True, "renorm": False},
}
INNERS = {
    "gelu": {"bias": True},
    "swiglu": {"glu": True, "activation": "silu", "bias": False},
    "gate bias": {"glu": True, "activation": "silu", "bias": False, "gate_bias": True},
    "clamped": {
        "glu": True,
        "activation": "silu",
        "bias": True,
        "swish_beta": 1.702,
        "glu_clamp": 0.4,
        "glu_shift": 1.0,
    },
}


def mixture(kind: str = "softmax of the best", inner: str = "swiglu", **settings) -> MixtureOfExperts:
    """Every parameter drawn, so that no bias or correction is zero."""
    moe = {"experts": EXPERTS, "top_k": 2, **KINDS[kind], **settings}
    config = FeedForwardConfig.model_validate({"dim": WIDTH, "moe": moe, **INNERS[inner]})
    made = build_feedforward(LayersConfig(dim=DIM, depth=1), config)
    assert isinstance(made, MixtureOfExperts)
    made.router.moe_config, made.inner_config = config.moe, config
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.6)
    return made.double()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_inner(x: Tensor, ff: FeedForwardConfig) -> Tensor:
    if not ff.glu:
        return F.gelu(x)
    value, gate = x[: len(x) // 2], x[len(x) // 2 :]
    if ff.glu_clamp is not None:
        value, gate = value.clip(-ff.glu_clamp, ff.glu_clamp), gate.clip(max=ff.glu_clamp)
    return (value + ff.glu_shift) * gate / (1 + torch.exp(-ff.swish_beta * gate))


def one_expert(made: MixtureOfExperts, e: int, x: Tensor) -> Tensor:
    held = made.experts
    up = held.up[e] @ x + (0 if held.up_bias is None else held.up_bias[e])
    return held.down[e] @ one_inner(up, made.inner_config) + (0 if held.down_bias is None else held.down_bias[e])


def one_token(made: MixtureOfExperts, x: Tensor) -> Tensor:
    """What one token [M] gets, with sorted lists in place of tensors."""
    moe = made.router.moe_config
    logits = [float(v) for v in made.router.weight @ x + (0 if made.router.bias is None else made.router.bias)]
    total = sum(torch.tensor(logits, dtype=torch.float64).exp().tolist())
    wide = torch.tensor(logits, dtype=torch.float64)
    scores = (wide.exp() / total if moe.score == "softmax" else 1 / (1 + (-wide).exp())).tolist()
    merit = [
        s + (0.0 if made.router.correction is None else float(made.router.correction[e])) for e, s in enumerate(scores)
    ]
    size = moe.experts // moe.groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(moe.groups)]
    best = sorted(groups, key=lambda group: -sum(sorted((merit[e] for e in group), reverse=True)[: moe.group_best]))[
        : moe.top_groups
    ]
    open_ = [e for group in best for e in group] if moe.groups > 1 else range(moe.experts)
    chosen = sorted(open_, key=lambda e: -merit[e])[: moe.top_k]
    weights = {e: scores[e] / (sum(scores[c] for c in chosen) if moe.renorm else 1.0) * moe.scale for e in chosen}
    if moe.weigh == "input":
        out = sum(one_expert(made, e, x * w) for e, w in weights.items())
    else:
        out = sum(one_expert(made, e, x) * w for e, w in weights.items())
    if made.shared is not None:
        shared = made.shared.down.weight @ one_inner(
            F.linear(x, made.shared.up.weight, made.shared.up.bias), made.inner_config
        )
        shared = shared if made.shared.down.bias is None else shared + made.shared.down.bias
        out = out + (shared if made.shared_gate is None else shared / (1 + torch.exp(-(made.shared_gate.weight @ x))))
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inner", INNERS)
def test_every_token_by_itself(kind: str, inner: str) -> None:
    made, x = mixture(kind, inner), draw(2, 17)
    with torch.no_grad():
        naive = torch.stack([one_token(made, row) for row in x.reshape(-1, DIM)]).reshape(x.shape)
        torch.testing.assert_close(made(x), naive, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    """Of the input, the experts and the router: those of the loop."""
    made, x = mixture(kind), draw(9).requires_grad_()
    named = {"x": x} | {name: p for name, p in made.named_parameters() if p.requires_grad}
    push = draw(9, seed=2)
    ours = torch.autograd.grad((made(x) * push).sum(), list(named.values()))
    experts, weights = made.router(x)
    rows = []
    for row, chosen, weight in zip(x, experts.tolist(), weights, strict=True):
        parts = [
            (one_expert(made, e, row * w) if made.weigh == "input" else one_expert(made, e, row) * w)
            for e, w in zip(chosen, weight, strict=True)
        ]
        total = torch.stack(parts).sum(0)
        if made.shared is not None:
            shared = made.shared(row)
            total = total + (shared if made.shared_gate is None else shared * made.shared_gate(row).sigmoid())
        rows.append(total)
    theirs = torch.autograd.grad((torch.stack(rows) * push).sum(), list(named.values()))
    for name, a, b in zip(named, ours, theirs, strict=True):
        assert b.abs().max() > 1e-6 or (name == "router.weight" and made.router.renorm and kind == "one"), name
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_tokens_does_not_matter(kind: str) -> None:
    made, x = mixture(kind), draw(23)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(made(x[order]), made(x)[order], atol=1e-13, rtol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_does_not_see_the_others(kind: str) -> None:
    """Neither how many there are, nor what they are, nor how crowded its experts are."""
    made, x = mixture(kind), draw(2, 11)
    alone = torch.stack([made(x[b, t]) for b in range(2) for t in range(11)]).reshape(x.shape)
    torch.testing.assert_close(made(x), alone, atol=1e-13, rtol=1e-12)
    crowded = torch.cat([x[:, :1], x[:, :1].expand(-1, 200, -1) + 1e-3 * draw(2, 200, seed=3)], dim=1)
    torch.testing.assert_close(made(crowded)[:, 0], alone[:, 0], atol=1e-13, rtol=1e-12)


@torch.no_grad()
def test_no_token_at_all() -> None:
    assert mixture()(draw(0)).shape == (0, DIM)


@torch.no_grad()
@pytest.mark.parametrize("inner", INNERS)
def test_gathered_weights_give_the_same(inner: str) -> None:
    held, x = mixture(inner=inner).experts, draw(13)
    for experts in (torch.arange(13) % EXPERTS, torch.zeros(13, dtype=torch.long), torch.arange(13) % 2 * 3):
        torch.testing.assert_close(held._gathered(x, experts), held._sorted(x, experts), atol=1e-13, rtol=1e-12)


@torch.no_grad()
def test_compiled_steps_are_one_graph() -> None:
    """As many rows as experts or fewer; more end the graph, and give the same."""
    made, step, text = mixture("in groups"), draw(1, 1), draw(2, 9)
    torch._dynamo.reset()
    close(torch.compile(made, fullgraph=True, backend="eager")(step), made(step))
    close(torch.compile(made, backend="eager")(text), made(text))
    torch._dynamo.reset()


def test_the_correction_counts_for_the_choice_alone() -> None:
    made, x = mixture("corrected"), draw(50)
    with torch.no_grad():
        made.router.correction.zero_()
        before = made.router(x)
        made.router.correction[3] = 10.0
        after = made.router(x)
    assert (after.experts == 3).any(-1).all()
    assert not (before.experts == 3).any(-1).all()
    scores = torch.sigmoid(x @ made.router.weight.T).gather(-1, after.experts)
    torch.testing.assert_close(after.weights, 2.5 * scores / scores.sum(-1, keepdim=True))
    made(x).sum().backward()
    assert made.router.correction.grad is None
    assert made.router.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_choices_are_made_in_float32(dtype: torch.dtype) -> None:
    """In a narrow model the correction stays wide, and so do scores: those of equal experts are told apart by it alone."""
    made = mixture("corrected").float().to(dtype)
    assert made.router.weight.dtype == dtype
    assert made.router.correction.dtype == torch.float32
    with torch.no_grad():
        made.router.weight.zero_()
        made.router.correction.copy_(torch.arange(EXPERTS) * 1e-6)
        experts, weights = made.router(draw(8).to(dtype))
    assert weights.dtype == torch.float32
    assert experts.tolist() == [[EXPERTS - 1, EXPERTS - 2]] * 8


@torch.no_grad()
def test_saturated_scores_keep_their_order() -> None:
    """sigmoid(40) and sigmoid(50) are both 1 in float32, and the larger logit is still chosen."""
    made = mixture("sigmoid", top_k=1).float()
    made.router.weight.zero_()
    made.router.weight[:, 0] = torch.tensor([40.0, 41.0, 50.0, 42.0, 43.0, 44.0])
    x = torch.zeros(1, DIM)
    x[0, 0] = 1.0
    assert made.router(x).experts.tolist() == [[2]]


@torch.no_grad()
def test_scores_that_are_all_zero_weigh_nothing() -> None:
    made = mixture("corrected").float()
    made.router.weight.fill_(-50.0)
    out = made.router(torch.full((2, DIM), 5.0))
    assert out.weights.eq(0).all()


MIXED = {
    "num_tokens": 13,
    "max_seq_len": 64,
    "layers": {
        "dim": 24,
        "depth": 4,
        "heads": 3,
        "head_dim": 8,
        "position": "rope",
        "pattern": [
            {"ff": {"dim": 31}},
            {"ff": {"dim": 9, "glu": True, "moe": {"experts": 5, "top_k": 2, "shared": 6}}},
        ],
    },
}


def test_layers_may_differ() -> None:
    """Every second layer is a mixture, the others are wider; the config goes through YAML, and decoding gives the same."""
    config = ModelConfig.model_validate(MIXED)
    model = build_model(config).eval()
    kinds = [type(block.ff).__name__ for block in model.attn_layers.blocks]
    assert kinds == ["FeedForward", "MixtureOfExperts"] * 2
    assert model.attn_layers.blocks[0].ff.up.out_features == 31
    assert model.attn_layers.blocks[1].ff.experts.up.shape == (5, 18, 24)
    tokens, cache = ids(2, 12), model.new_cache(2)
    with torch.no_grad():
        steps = [model(piece, cache=cache) for piece in tokens.split([5, 1, 1, 5], dim=1)]
        close(torch.cat(steps, dim=1), model(tokens))


def test_yaml_holds_a_mixture(tmp_path) -> None:
    config = ModelConfig.model_validate(MIXED)
    path = tmp_path / "model.yaml"
    config.to_yaml(path)
    assert ModelConfig.from_yaml(path) == config


@torch.no_grad()
def test_padding_and_packing() -> None:
    """Padding is routed too, and changes nothing for the others."""
    net, tokens = decoder(ff={"moe": {"experts": 4, "top_k": 2}}), ids(2, 9)
    mask = torch.tensor([[False] * 4 + [True] * 5, [True] * 9])
    close(net(tokens, mask=mask)[0, 4:], net(tokens[:1, 4:])[0])
    close(net(tokens, seq_lens=[4, 5])[:, 4:], net(tokens[:, 4:]))


def test_every_setting_of_routing_changes_the_output() -> None:
    made, x = mixture("in groups"), draw(40)
    changes = [
        {"top_k": 2},
        {"score": "softmax"},
        {"renorm": False},
        {"scale": 1.0},
        {"group_best": 1},
        {"groups": 1},
        {"top_groups": 1},
    ]
    with torch.no_grad():
        outs = [made(x)]
        rule = {name: getattr(made.router, name) for change in changes for name in change}
        for change in changes:
            for name, value in {**rule, **({"top_k": 2} if "top_groups" in change else {}), **change}.items():
                setattr(made.router, name, value)
            outs.append(made(x))
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(outs))
