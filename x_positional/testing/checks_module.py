"""The scheme as a module: nothing but parameters, made on the meta device, saved, copied and pickled.

T tokens.
"""

import copy
import pickle

import torch
from torch import Tensor, nn

from x_positional.models.language import TransformerWrapper, build_model
from x_positional.testing.judge import Judge
from x_positional.testing.subject import Kind, Subject

LENGTH = 13


def no_buffers(subject: Subject, judge: Judge) -> None:
    """A scheme holds parameters or nothing: a buffer is cast by .bfloat16() and lost on the meta device."""
    for kind in subject.kinds:
        layers = subject.model(kind).attn_layers
        found = [name for name, _ in layers.named_buffers() if name.startswith("schemes.")]
        judge.require(not found, f"buffers: {', '.join(found)}. Recompute them from positions.")
        loose = [
            f"{type(module).__name__}.{name}"
            for scheme in layers.position_schemes
            for module in scheme.modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        ]
        judge.require(
            not loose, f"tensors that are no parameters: {', '.join(loose)}. They stay behind when a model moves."
        )


def on_meta(subject: Subject, kind: Kind) -> TransformerWrapper:
    """Built without memory, then given memory that holds no numbers."""
    with torch.device("meta"):
        model = build_model(subject.config(kind))
    model = model.to_empty(device=subject.device).eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    return model


@torch.no_grad()
def meta_init(subject: Subject, judge: Judge) -> None:
    """Built on the meta device, given memory with to_empty and loaded, a model gives exactly the same logits."""
    for kind in subject.kinds:
        tokens, model = subject.tokens(LENGTH), subject.fresh(kind)
        empty = on_meta(subject, kind)
        empty.load_state_dict(model.state_dict())
        judge.equal(empty(tokens), model(tokens), f"from the meta device, {kind}", tolerance=0)


@torch.no_grad()
def state_dict(subject: Subject, judge: Judge) -> None:
    """A state dict holds all there is: loaded into a model with other parameters, it gives exactly the same logits."""
    for kind in subject.kinds:
        tokens, model, other = subject.tokens(LENGTH), subject.fresh(kind), subject.fresh(kind, seed=1)
        judge.differ(other(tokens), model(tokens), f"another seed, {kind}")
        other.load_state_dict(model.state_dict())
        judge.equal(other(tokens), model(tokens), f"after load_state_dict, {kind}", tolerance=0)


@torch.no_grad()
def copies(subject: Subject, judge: Judge) -> None:
    """A deep copy and a pickled scheme give exactly the same logits, and share nothing with the original."""
    for kind in subject.kinds:
        tokens, model = subject.tokens(LENGTH), subject.fresh(kind)
        want = model(tokens)
        twin = copy.deepcopy(model)
        judge.equal(twin(tokens), want, f"a deep copy, {kind}", tolerance=0)
        for parameter in twin.parameters():
            parameter.add_(1.0)
        judge.equal(model(tokens), want, f"the original after its copy was changed, {kind}", tolerance=0)
        layers = model.attn_layers
        schemes, kinds = pickle.loads(pickle.dumps((list(layers.schemes), layers.kinds)))
        layers.set_positions(schemes, kinds)
        judge.equal(model(tokens), want, f"pickled schemes, {kind}", tolerance=0)
