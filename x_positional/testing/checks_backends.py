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
from x_positional.testing.judge import APART, TOLERANCE, Broken, Judge, difference
from x_positional.testing.subject import Kind, Subject, leaves

HOOKS = (
    "embed",
    "tables",
    "length_tables",
    "rotate_q",
    "rotate_k",
    "key_state",
    "bias",
    "content_bias",
    "layer_bias",
    "transform_scores",
)


class Scene(NamedTuple):
    """One situation: what the layers are, and what the model is called with."""

    name: str
    layers: dict[str, Any]
    call: dict[str, Tensor]


def scenes(subject: Subject, kind: Kind) -> Iterator[Scene]:
    """A plain batch, every kind of mask, custom positions, several blocks of rows, and the score features."""
    tokens = subject.tokens(13)
    keep = torch.arange(13, device=subject.device) >= torch.tensor([[0], [4], [11]], device=subject.device)
    documents = torch.arange(13, device=subject.device) // torch.tensor([[13], [5], [4]], device=subject.device)
    yield Scene("a plain batch", {}, {"tokens": tokens})
    yield Scene("a window of 5", {"window": 5}, {"tokens": tokens})
    yield Scene("padding", {}, {"tokens": tokens, "mask": keep})
    yield Scene("documents", {}, {"tokens": tokens, "document_ids": documents})
    yield Scene("149 tokens", {}, {"tokens": subject.tokens(149, batch=1)})
    if subject.capabilities(kind).uses_positions:
        yield Scene("custom positions", {}, {"tokens": tokens, "positions": subject.stretched(13)})
    if kind != subject.kinds[0]:
        return  # score features do not look at the mask
    yield Scene("softcap", {"attn": {"softcap": 3.0, "qk_norm": "rms"}}, {"tokens": tokens})
    yield Scene("sinks", {"attn": {"sinks": True}}, {"tokens": tokens, "mask": keep})


def rivals(subject: Subject, kind: Kind, scene: Scene) -> tuple[list[str], list[str]]:
    """The backends besides eager that run it on any device and in any dtype, and those that cannot run it at all."""
    attn = scene.layers.get("attn", {})
    features = frozenset(attn) & {"softcap", "sinks"}
    kernel = subject.capabilities(kind).kernel
    stopped = [name for name in BACKENDS if obstacles(name, kernel, features)]
    able = [name for name, backend in BACKENDS.items() if backend.portable and name not in (*stopped, "eager")]
    return able, stopped


@torch.no_grad()
def backends_agree(subject: Subject, judge: Judge) -> None:
    """Eager, blockwise, SDPA and FlexAttention give the same logits; a backend that cannot run the scheme is refused."""
    for kind in subject.kinds:
        for scene in scenes(subject, kind):
            want = subject.model(kind, backend="eager", **scene.layers)(**scene.call)
            able, stopped = rivals(subject, kind, scene)
            for name in able:
                got = subject.model(kind, backend=name, **scene.layers)(**scene.call)
                judge.equal(got, want, f"{name} and eager, {kind}, {scene.name}")
            for name in stopped:
                judge.refused(
                    lambda kind=kind, name=name, scene=scene: subject.fresh(kind, backend=name, **scene.layers),
                    (IncompatibleConfig, BackendError),
                    f"backend={name!r}, {kind}, {scene.name}",
                )


def gradients_agree(subject: Subject, judge: Judge) -> None:
    """Every backend with a backward gives every parameter the same gradient, and every scheme parameter gets one."""
    on_cpu = subject.device.type == "cpu"
    for kind in subject.kinds:
        for scene in scenes(subject, kind):
            want = gradients(subject.model(kind, backend="eager", **scene.layers), scene)
            _reach(subject, kind, want)
            for name in rivals(subject, kind, scene)[0]:
                if name == "flex" and on_cpu:
                    continue  # FlexAttention has no backward on CPU
                got = gradients(subject.model(kind, backend=name, **scene.layers), scene)
                for key, value in want.items():
                    _same_gradient(judge, got[key], value, f"gradient of {key}, {name} and eager, {kind}, {scene.name}")


def gradients(model: nn.Module, scene: Scene) -> dict[str, Tensor | None]:
    """The gradient of a random projection of the logits, for every parameter."""
    logits = model(**scene.call)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).to(logits)
    named = dict(model.named_parameters())
    loss = (logits * weights).sum() / logits.shape[1]
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def _reach(subject: Subject, kind: Kind, found: dict[str, Tensor | None]) -> None:
    names = [name for name in found if name.startswith("attn_layers.schemes.")]
    dead = [name for name in names if found[name] is None]
    if dead:
        raise Broken(f"no gradient reaches {', '.join(dead)} in a {kind}.")
    if names and not any(found[name].abs().max() > APART for name in names):  # type: ignore[union-attr]
        raise Broken(f"the gradient of every scheme parameter is zero in a {kind}.")


def _same_gradient(judge: Judge, got: Tensor | None, want: Tensor | None, what: str) -> None:
    if got is None or want is None:
        judge.require(got is want, f"{what}: only one of them has a gradient.")
        return
    size = max(1.0, want.abs().max().item())  # a gradient sums over all tokens, so its rounding grows with its size
    measured = difference(got, want) / size
    if not measured <= TOLERANCE:
        raise Broken(f"{what}: the largest difference is {measured:.2g} of its size; {TOLERANCE:.2g} is rounding.")
    judge.note(measured)


def gradcheck(subject: Subject, judge: Judge) -> None:
    """In float64 the gradients of the input and of every scheme parameter are the derivatives (finite differences)."""
    for kind in subject.kinds:
        for backend in ("auto", "blockwise"):
            layers = subject.fresh(kind, backend=backend).double().attn_layers
            x = torch.randn(2, 5, subject.sizes.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
            theta = {name: p for name, p in layers.named_parameters() if name.startswith("schemes.")}
            run = partial(_with_parameters, layers, tuple(theta))
            inputs = (x.to(subject.device).requires_grad_(), *theta.values())
            judge.require(
                torch.autograd.gradcheck(
                    run, inputs, fast_mode=True, atol=1e-7, nondet_tol=1e-12, raise_exception=False
                ),
                f"the gradients of a {kind} ({backend}) are not its derivatives.",
            )


def _with_parameters(layers: nn.Module, names: tuple[str, ...], x: Tensor, *values: Tensor) -> Tensor:
    return functional_call(layers, dict(zip(names, values, strict=True)), (x,))


@torch.no_grad()
def hooks_run(subject: Subject, judge: Judge) -> None:
    """Every hook that the scheme overrides really runs: a wrong `kernel` would skip one in silence."""
    for kind in subject.kinds:
        model = subject.fresh(kind)
        calls: dict[str, int] = {}
        for number, leaf in enumerate(leaves(model.attn_layers.kinds[0].scheme)):
            for hook in filter(leaf.overrides, HOOKS):
                name = hook.removeprefix("length_")  # one of the two runs: tables, or length_tables in its place
                _count(leaf, hook, f"{type(leaf).__name__}.{name} (part {number})", calls)
        model(subject.tokens(9))
        silent = [name for name, count in calls.items() if not count]
        declared = model.attn_layers.kinds[0].scheme.capabilities().kernel
        judge.require(not silent, f"kernel={declared!r} is declared, and {', '.join(silent)} never ran in a {kind}.")


def _count(leaf: nn.Module, hook: str, name: str, calls: dict[str, int]) -> None:
    original = getattr(leaf, hook)
    calls.setdefault(name, 0)

    def counted(*args: Any) -> Any:
        calls[name] += 1
        return original(*args)

    setattr(leaf, hook, counted)
