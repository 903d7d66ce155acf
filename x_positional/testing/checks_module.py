"""The scheme as a module: parameters only, meta device, state dicts, copies and pickles, and torch.compile.

B batch, T tokens.
"""

import copy
import pickle

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from x_positional.attention.cache import KVCache
from x_positional.attention.cache_fixed import GROWTH
from x_positional.generation.step.compiled import CompiledSteps
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.testing.checks_cache import need_cache
from x_positional.testing.expect import Expect
from x_positional.testing.subject import Kind, Subject

LENGTH, WINDOW = 13, 5


def no_buffers(subject: Subject, expect: Expect) -> None:
    """A scheme holds no tensors but parameters: buffers are rounded by .bfloat16() and lost on the meta device."""
    for kind in subject.kinds:
        layers = subject.model(kind).attn_layers
        found = [name for name, _ in layers.named_buffers() if name.startswith("schemes.")]
        expect.that(not found, f"buffers: {', '.join(found)}. Compute them from positions instead.")
        loose = [
            f"{type(module).__name__}.{name}"
            for scheme in layers.position_schemes
            for module in scheme.modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        ]
        expect.that(
            not loose,
            f"tensors that are not parameters: {', '.join(loose)}. They stay behind when the model changes device.",
        )


def on_meta(subject: Subject, kind: Kind) -> TransformerWrapper:
    """A model built on the meta device and materialized with NaN in every parameter."""
    with torch.device("meta"):
        model = subject.stored(build_model(subject.config(kind)).eval())
    model = model.to_empty(device=subject.device)
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan") if parameter.is_floating_point() else 1)
    return model


@torch.no_grad()
def meta_init(subject: Subject, expect: Expect) -> None:
    """A model built on the meta device, materialized with to_empty and loaded gives bit-identical logits."""
    for kind in subject.kinds:
        tokens, model = subject.tokens(LENGTH), subject.fresh(kind)
        empty = on_meta(subject, kind)
        empty.load_state_dict(model.state_dict())
        expect.equal(empty(tokens), model(tokens), f"from the meta device, {kind}", bound=0)


@torch.no_grad()
def state_dict(subject: Subject, expect: Expect) -> None:
    """A state dict is complete: loaded into a model with other parameters, it gives bit-identical logits."""
    for kind in subject.kinds:
        tokens, model, other = subject.tokens(LENGTH), subject.fresh(kind), subject.fresh(kind, seed=1)
        expect.differ(other(tokens), model(tokens), f"another seed, {kind}")
        other.load_state_dict(model.state_dict())
        expect.equal(other(tokens), model(tokens), f"after load_state_dict, {kind}", bound=0)


@torch.no_grad()
def copies(subject: Subject, expect: Expect) -> None:
    """A deep copy and a pickled scheme give bit-identical logits and share no memory with the original."""
    for kind in subject.kinds:
        tokens, model = subject.tokens(LENGTH), subject.fresh(kind)
        want = model(tokens)
        twin = copy.deepcopy(model)
        expect.equal(twin(tokens), want, f"a deep copy, {kind}", bound=0)
        for parameter in twin.parameters():
            parameter.add_(1)
        expect.equal(model(tokens), want, f"the original after its copy was changed, {kind}", bound=0)
        layers = model.attn_layers
        schemes, kinds = pickle.loads(pickle.dumps((list(layers.schemes), layers.kinds)))
        layers.set_positions(schemes, kinds)
        expect.equal(model(tokens), want, f"pickled schemes, {kind}", bound=0)


LENGTHS = (13, 17, 29, 31)
STEPS = 6


@torch.no_grad()
def compiles(subject: Subject, expect: Expect) -> None:
    """torch.compile(fullgraph=True) finds no graph break and gives the same logits, with masks and documents too; with
    dynamic=True one graph serves every length."""
    model = subject.model(subject.kinds[0], depth=1)
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for length in LENGTHS:
        tokens = subject.tokens(length)
        expect.equal(compiled(tokens), model(tokens), f"compiled, {length} tokens")
    expect.that(
        graphs.frame_count == 1, f"{graphs.frame_count} graphs were compiled for the lengths {LENGTHS}, instead of one."
    )
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    place = torch.arange(13, device=subject.device).expand(3, -1)
    given: dict[str, Tensor] = {"mask": place > 1, "document_ids": place // 7}
    tokens = subject.tokens(13)
    expect.equal(compiled(tokens, **given)[:, 2:], model(tokens, **given)[:, 2:], "compiled, with a mask and documents")
    torch._dynamo.reset()


@torch.no_grad()
def compiles_decoding(subject: Subject, expect: Expect) -> None:
    """The compiled decoding step has no graph break and gives the logits of the full pass; one graph serves every length, ragged
    rows and a cache that grows, with and without a window, and leaves the cache as the plain step does."""
    need_cache(subject)
    torch._dynamo.reset()
    model, graphs = subject.model("decoder", pattern=({"window": WINDOW}, {})), CompileCounter()
    long = min(GROWTH - 2, (subject.scheme("decoder").limit or GROWTH) - STEPS)
    for length in (LENGTH, long, LENGTH + 1):
        tokens = subject.tokens(length + STEPS)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        if length == LENGTH + 1:
            mask[0, :2] = mask[1, 3:5] = False
        cache = model.new_cache(len(tokens))
        model(tokens[:, :length], mask=mask[:, :length], cache=cache)
        got = _compiled_steps(model, cache, tokens[:, length:-1], graphs)
        got.append(model(tokens[:, -1:], cache=cache))
        want, bound = model(tokens, mask=mask)[:, length:], subject.rounding("decoder", length + STEPS)
        expect.equal(torch.cat(got, 1), want, f"compiled decoding after {length} tokens", bound)
    expect.that(graphs.frame_count == 1, f"{graphs.frame_count} graphs were compiled, instead of one.")
    torch._dynamo.reset()


def _compiled_steps(model: TransformerWrapper, cache: KVCache, tokens: Tensor, backend: CompileCounter) -> list[Tensor]:
    """Logits [B 1 V] of each of the tokens [B T]."""
    steps = CompiledSteps(model, cache, None, 0.0, by_row=False, stores=True, backend=backend)
    alive = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    return [model.logits(steps.feed(t[:, 0], alive, None, draws=False)[0])[:, None] for t in tokens.split(1, 1)]
