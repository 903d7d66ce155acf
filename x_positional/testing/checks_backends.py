"""Every backend computes the same attention, forward and backward.

B batch, T tokens, V vocabulary.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from x_positional.attention.backends import BACKENDS, obstacles
from x_positional.errors import BackendError, IncompatibleConfig
from x_positional.schemes.compose import leaves
from x_positional.testing.expect import APART, CheckFailed, Expect, difference, rounding_bound
from x_positional.testing.subject import Kind, Subject

HOOKS = (
    "embed",
    "tables",
    "length_tables",
    "rotate_q",
    "rotate_k",
    "key_state",
    "query_state",
    "bias",
    "content_bias",
    "layer_bias",
    "transform_scores",
)


class Scenario(NamedTuple):
    """Options of the layers, and the inputs of the model."""

    name: str
    layers: dict[str, Any]
    call: dict[str, Tensor]


def scenarios(subject: Subject, kind: Kind) -> Iterator[Scenario]:
    """A plain batch, every kind of mask, a text of several blocks, custom positions, and features of the scores."""
    tokens = subject.tokens(13)
    keep = torch.arange(13, device=subject.device) >= torch.tensor([[0], [4], [11]], device=subject.device)
    documents = torch.arange(13, device=subject.device) // torch.tensor([[13], [5], [4]], device=subject.device)
    yield Scenario("a plain batch", {}, {"tokens": tokens})
    yield Scenario("a window of 5", {"window": 5}, {"tokens": tokens})
    yield Scenario("padding", {}, {"tokens": tokens, "mask": keep})
    yield Scenario("documents", {}, {"tokens": tokens, "document_ids": documents})
    yield Scenario("149 tokens", {}, {"tokens": subject.tokens(149, batch=1)})
    if subject.capabilities(kind).uses_positions:
        yield Scenario("custom positions", {}, {"tokens": tokens, "positions": subject.stretched(13)})
    if kind != subject.kinds[0]:
        return  # features of the scores do not depend on the mask
    yield Scenario("softcap", {"attn": {"softcap": 3.0, "qk_norm": "rms"}}, {"tokens": tokens})
    yield Scenario("sinks", {"attn": {"sinks": True}}, {"tokens": tokens, "mask": keep})


def split_backends(subject: Subject, kind: Kind, scenario: Scenario) -> tuple[list[str], list[str]]:
    """The backends to compare with eager (on every device, in every dtype), and those that do not support the scenario."""
    attn = scenario.layers.get("attn", {})
    features = frozenset(attn) & {"softcap", "sinks"}
    kernel = subject.capabilities(kind).kernel
    unsupported = [name for name in BACKENDS if obstacles(name, kernel, features)]
    supported = [name for name, backend in BACKENDS.items() if backend.portable and name not in (*unsupported, "eager")]
    return supported, unsupported


@torch.no_grad()
def backends_agree(subject: Subject, expect: Expect) -> None:
    """Eager, blockwise, SDPA and FlexAttention give the same logits; a backend that does not support the scheme is refused."""
    for kind in subject.kinds:
        for scenario in scenarios(subject, kind):
            want = subject.model(kind, backend="eager", **scenario.layers)(**scenario.call)
            bound = subject.rounding(kind, want.shape[1])
            supported, unsupported = split_backends(subject, kind, scenario)
            for name in supported:
                got = subject.model(kind, backend=name, **scenario.layers)(**scenario.call)
                expect.equal(got, want, f"{name} and eager, {kind}, {scenario.name}", bound)
            for name in unsupported:
                build = partial(subject.fresh, kind, backend=name, **scenario.layers)
                expect.refused(build, (IncompatibleConfig, BackendError), f"backend={name!r}, {kind}, {scenario.name}")


def gradients_agree(subject: Subject, expect: Expect) -> None:
    """All backends with a backward pass give every parameter the same gradient; gradients reach every scheme parameter."""
    on_cpu = subject.device.type == "cpu"
    largest: dict[str, float] = {}
    for kind in subject.kinds:
        cases = [(s, gradients(subject.model(kind, backend="eager", **s.layers), s)) for s in scenarios(subject, kind)]
        for _, want in cases:
            reached = _scheme_gradients(want, kind)
            largest |= {name: max(size, largest.get(name, 0.0)) for name, size in reached.items()}
        sizes = gradient_sizes([want for _, want in cases])
        # The error of a single number, such as a learned scale, says little: the largest of all scenarios is the estimate.
        bound = max(gradient_bound(subject, kind, scenario, want, sizes) for scenario, want in cases)
        for scenario, want in cases:
            for name in split_backends(subject, kind, scenario)[0]:
                if name == "flex" and on_cpu:
                    continue  # FlexAttention has no backward on CPU
                got = gradients(subject.model(kind, backend=name, **scenario.layers), scenario)
                for key, value in want.items():
                    what = f"gradient of {key}, {name} and eager, {kind}, {scenario.name}"
                    _same_gradient(expect, got[key], value, sizes.get(key, 1.0), bound, what)
    zero = [name for name, size in largest.items() if size <= APART]
    expect.that(not zero, f"the gradient of {', '.join(zero)} is zero in every scenario: no output depends on it.")


def gradients(model: nn.Module, scenario: Scenario) -> dict[str, Tensor | None]:
    """The gradient of a random projection of the logits, for every parameter that can have one."""
    logits = model(**scenario.call)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).to(logits)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss = (logits * weights).sum() / logits.shape[1]
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def gradient_sizes(found: list[dict[str, Tensor | None]]) -> dict[str, float]:
    """The largest gradient of every parameter in any scenario, at least 1.

    A gradient sums over all tokens. Its rounding grows with the terms of the sum, even where they happen to cancel.
    """
    names = {name for gradients in found for name, gradient in gradients.items() if gradient is not None}
    each = {name: [g.abs().max().item() for of in found if (g := of.get(name)) is not None] for name in names}
    return {name: max(1.0, *largest) for name, largest in each.items()}


def gradient_bound(
    subject: Subject, kind: Kind, scenario: Scenario, narrow: dict[str, Tensor | None], sizes: dict[str, float]
) -> float:
    """The largest difference of equal gradients, relative to their size: see `rounding_bound`.

    A gradient goes through the additions of a forward and a backward pass, and sums over the channels of all tokens.
    """
    exact, tokens = gradients(subject.exact(kind, **scenario.layers), scenario), scenario.call["tokens"]
    names = [name for name, gradient in exact.items() if gradient is not None]
    got, want = (torch.cat([of[name].flatten() / sizes[name] for name in names]) for of in (narrow, exact))  # type: ignore[union-attr]
    return rounding_bound(got, want, 2 * subject.terms(tokens.shape[1]) + tokens.numel() * subject.sizes.dim)


def _scheme_gradients(found: dict[str, Tensor | None], kind: Kind) -> dict[str, float]:
    """The largest gradient of each scheme parameter in a scenario. Gradients reach all of them, and one is not zero.

    The others may be: a bias that is the same for all keys, as the last of `dynamic`, changes attention only beside a sink.
    """
    names = [name for name in found if name.startswith("attn_layers.schemes.")]
    dead = [name for name in names if found[name] is None]
    if dead:
        raise CheckFailed(f"no gradient reaches {', '.join(dead)} in the {kind}.")
    sizes = {name: found[name].abs().max().item() for name in names}  # type: ignore[union-attr]
    if names and max(sizes.values()) <= APART:
        raise CheckFailed(f"the gradient of every scheme parameter is zero in the {kind}.")
    return sizes


def _same_gradient(
    expect: Expect, got: Tensor | None, want: Tensor | None, size: float, bound: float, what: str
) -> None:
    if got is None or want is None:
        expect.that(got is want, f"{what}: only one of them has a gradient.")
        return
    expect.within(difference(got, want) / size, bound, f"{what}, relative to its size")


def gradcheck(subject: Subject, expect: Expect) -> None:
    """In float64 the gradients of the input and of every scheme parameter match finite differences."""
    # Differences over steps of 1e-6 round to 1e-16 / 1e-6 = 1e-10 of the outputs, so 1e-7 leaves room for large outputs;
    # an atomic sum on a GPU is repeated to 1e-12, thousands of units of float64.
    for kind in subject.kinds:
        for backend in ("auto", "blockwise"):
            layers = subject.fresh(kind, backend=backend).double().attn_layers
            x = torch.randn(2, 5, subject.sizes.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
            theta = {name: p for name, p in layers.named_parameters() if name.startswith("schemes.")}
            run = partial(_with_parameters, layers, tuple(theta))
            inputs = (x.to(subject.device).requires_grad_(), *theta.values())
            expect.that(
                torch.autograd.gradcheck(
                    run, inputs, fast_mode=True, atol=1e-7, nondet_tol=1e-12, raise_exception=False
                ),
                f"the gradients of the {kind} ({backend}) do not match finite differences.",
            )


def _with_parameters(layers: nn.Module, names: tuple[str, ...], x: Tensor, *values: Tensor) -> Tensor:
    return functional_call(layers, dict(zip(names, values, strict=True)), (x,))


@torch.no_grad()
def hooks_run(subject: Subject, expect: Expect) -> None:
    """Every hook that the scheme overrides runs: a wrong `kernel` would silently skip one."""
    for kind in subject.kinds:
        model = subject.fresh(kind)
        calls: dict[str, int] = {}
        for number, leaf in enumerate(leaves(model.attn_layers.kinds[0].scheme)):
            for hook in filter(leaf.overrides, HOOKS):
                name = hook.removeprefix("length_")  # one of the two runs: tables, or length_tables in its place
                _count(leaf, hook, f"{type(leaf).__name__}.{name} (part {number})", calls)
        model(subject.tokens(9))
        skipped = [name for name, count in calls.items() if not count]
        declared = model.attn_layers.kinds[0].scheme.capabilities().kernel
        expect.that(not skipped, f"kernel={declared!r} is declared, but {', '.join(skipped)} never ran in the {kind}.")


def _count(leaf: nn.Module, hook: str, name: str, calls: dict[str, int]) -> None:
    original = getattr(leaf, hook)
    calls.setdefault(name, 0)

    def counted(*args: Any) -> Any:
        calls[name] += 1
        return original(*args)

    setattr(leaf, hook, counted)
