"""One decoding step as a program of torch.export: tensors in, tensors out, for any length up to the cache's.

B batch, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from x_positional.attention.cache import CacheState, KVCache
from x_positional.attention.cache_fixed import filled, fixed_state, leaf_names, leaves
from x_positional.attention.ownership import UNKNOWN
from x_positional.errors import CacheError, InputError, listed
from x_positional.schemes.base import lowest_limit

REFUSED = {
    "flex": "FlexAttention compiles its own kernels",
    "varlen": "varlen packs rows by lengths that only the host has",
}
"""Backends that an exported program cannot contain, and why."""


class DecodeStep(nn.Module):
    """Reads one token a row: (token [B], tensors of the cache) -> (logits [B V], the tensors that replace them).

    It changes none of its inputs. A row that holds max_len tokens already gets NaN logits, since a program cannot raise.

    Args:
        net: the model, in eval mode.
        cache: whose windows and sizes hold.
        form: of the state.
    """

    def __init__(self, net: nn.Module, cache: KVCache, form: CacheState):
        super().__init__()
        self.net, self.cache, self.form, self.names = net, cache, form, leaf_names(form)
        self.max_len = form.span + 1

    def forward(self, token: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        lengths = state["lengths"]
        before = filled(self.form, (state[name] for name in self.names))
        before = replace(
            before, lengths=lengths.clamp(max=self.max_len - 1), in_graph=True
        )  # nothing is written in place
        cache = self.cache.in_state(before)
        logits = self.net(token[:, None], cache=cache, checked=True)[:, -1]
        is_full = lengths >= self.max_len
        after = dict(zip(self.names, leaves(cache.state), strict=True))
        return logits.masked_fill(is_full[:, None], float("nan")), after


@dataclass(frozen=True)
class ExportedStep:
    """A decoding step that `export_step` made."""

    program: ExportedProgram
    """(token [B] int64, state) -> (logits [B V], state): for torch.export.save, AOTInductor, or torch.onnx.export."""
    step: DecodeStep
    """What it was traced from."""

    def state(self, cache: KVCache) -> dict[str, Tensor]:
        """The tensors of a cache that has read a prefix, or nothing yet, as the program takes them. The cache stays as it is.

        Each has a row for each row of the cache, so `torch.utils._pytree.tree_map(lambda t: t[rows], state)` selects rows.

        Raises:
            CacheError: it was made for another model or batch size, or it does not have the form of the one exported with.
        """
        step = self.step
        cache.check(step.cache.owner, step.form.batch_size, step.cache.device, step.net.stamp())  # type: ignore[operator]
        held = _fixed(step.net, cache, step.max_len)
        given = dict(zip(leaf_names(held), leaves(held), strict=True))
        wanted = {name: _described(t) for name, t in zip(step.names, leaves(step.form), strict=True)}
        found = {name: _described(t) for name, t in given.items()}
        problems = [
            f"{name} is {found.get(name, 'missing')} here, and {wanted.get(name, 'missing')} in the program"
            for name in dict.fromkeys((*wanted, *found))
            if found.get(name) != wanted.get(name)
        ]
        if problems:
            more = [f"and {len(problems) - 4} more"] if len(problems) > 4 else []
            way_out = f"Make it with the same new_cache arguments as the one exported with (max_len={step.max_len})"
            problems = [*problems[:4], *more, way_out]
            raise CacheError(listed("this cache does not have the form of the exported one:", problems))
        return given

    def cache(self, state: Mapping[str, Tensor]) -> KVCache:
        """A cache with copies of these tensors: to read several tokens at once, or to crop it."""
        step = self.step
        held = filled(step.form, (state[name] for name in step.names))
        return step.cache.in_state(replace(held, weights=step.net.stamp())).copy()  # type: ignore[operator]


def export_step(model: Any, cache: KVCache) -> ExportedStep:
    """Export the decoding step of a model with a cache like this one, as a program of tensors.

    The lengths of the rows are a tensor, so one program serves every length up to max_len. It returns the logits of the eager
    step. The program shares the model's parameters.

    Args:
        model: a TransformerWrapper, in eval mode.
        cache: `model.new_cache(batch_size, max_len=...)`, with any window or dtype; its number of rows and max_len are those of
            the program. One that has read a prefix is exported as such: with its context, with given positions. It stays as it is.

    Raises:
        InputError: the step cannot be exported; the message gives every reason.
    """
    if reasons := _obstacles(model, cache):
        raise InputError(listed("this decoding step cannot be exported:", reasons))
    cache.check(cache.owner, cache.batch_size, cache.device, model.stamp())
    with torch.no_grad():
        form = _fixed(model, cache, cache.max_len or 0)
        step = DecodeStep(model, cache.in_state(form), form).eval()
        token = torch.zeros(cache.batch_size, dtype=torch.long, device=cache.device)
        state = dict(zip(step.names, leaves(form), strict=True))
        return ExportedStep(torch.export.export(step, (token, state), strict=False), step)


def _obstacles(model: Any, cache: KVCache) -> list[str]:
    """Why a step cannot be exported."""
    layers = model.attn_layers
    reasons = []
    if any(part.training for part in model.modules()):
        reasons.append("the model is in training mode. Call model.eval() first")
    if cache.max_len is None:
        reasons.append(
            "a growing cache has no size to export. Make it with new_cache(batch_size, max_len=...), the most tokens a row has"
        )
    if names := [type(s).__name__ for s in layers.position_schemes if not s.capabilities().kv_cacheable]:
        reasons.append(f"{', '.join(names)} changes the keys of earlier tokens as the sequence grows")
    limit = lowest_limit(layers.position_schemes)
    if limit is not None and cache.max_len is not None and cache.max_len > limit:
        reasons.append(f"max_len={cache.max_len} exceeds the {limit} positions of the model. Make the cache shorter")
    if cache.state.last_document is not None:
        reasons.append("the cache holds packed documents, and a step has no document_ids. Read one document a row")
    if layers.cross is not None and cache.state.cross_context is None:
        reasons.append("the cache has not read its context yet. Pass one that read a first token with context=")
    backends = {kind.choice.name for kind in layers.kinds}
    reasons += [f"backend {name!r}: {why}. Use backend='sdpa'" for name, why in REFUSED.items() if name in backends]
    return reasons


@torch.no_grad()
def _fixed(model: Any, cache: KVCache, size: int) -> CacheState:
    """The state of a cache in tensors alone, without what one call knows: gradients, the parameters' versions."""
    cache = cache.copy()
    if not cache.span:  # its tensors exist once it has read a token
        model(torch.zeros(cache.batch_size, 1, dtype=torch.long, device=cache.device), cache=cache, checked=True)
        cache.crop(0)
    batch = cache.batch_size
    state = fixed_state(cache, size, batch).map(lambda t: t.detach().expand(batch, *t.shape[1:]).contiguous())
    return replace(
        state, weights=UNKNOWN, weights_move=False, inference=torch.is_inference_mode_enabled(), in_graph=False
    )


def _described(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
