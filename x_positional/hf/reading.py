"""One pass of a model of x_positional over inputs of transformers.

B batch, T tokens, S tokens so far, M model dim, H heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import Cache

from x_positional.attention.inputs import read_value
from x_positional.errors import InputError
from x_positional.hf.caching import XPositionalCache
from x_positional.hf.inputs import given_cache, own_cache, read_places
from x_positional.models.language import TransformerWrapper
from x_positional.modules.stack import AttentionLayers


class Read(NamedTuple):
    """What a pass returns."""

    hidden: Tensor
    """[B T M], after the final norm."""
    cache: XPositionalCache | None
    hidden_states: tuple[Tensor, ...] | None
    """The embeddings, then what each block returns, the last one normed."""
    attentions: tuple[Any, ...] | None
    """[B H T S] a layer, None for one without self-attention."""
    cross_attentions: tuple[Any, ...] | None = None


def cacheable(net: TransformerWrapper) -> bool:
    """Whether cached keys stay right as rows grow."""
    layers = net.attn_layers
    return layers.dims.causal and all(s.capabilities().kv_cacheable for s in layers.position_schemes)


def read(
    model: Any,
    net: TransformerWrapper,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    *,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: Cache | None = None,
    cache: Cache | None = None,
    use_cache: bool | None,
    output_attentions: bool | None,
    output_hidden_states: bool | None,
    context: dict[str, Tensor | None] | None = None,
) -> Read:
    """One pass. Raises InputError, PositionError and CacheError before any kernel runs.

    Args:
        model: Of transformers, whose config has the defaults.
        net: What reads.
        input_ids: As in `XPositionalForCausalLM.forward`, as are the others.
        context: What cross-attention reads, for the first call over a cache.
    """
    row = inputs_embeds if input_ids is None else input_ids
    if row is None or (input_ids is not None and inputs_embeds is not None):
        raise InputError("pass exactly one of input_ids and inputs_embeds.")
    if row.ndim < 2:
        raise InputError(
            f"input_ids have shape {list(row.shape)}, but must be [batch, tokens]. Use input_ids[None] for one row."
        )
    batch, length, config = row.shape[0], row.shape[1], model.config
    by_default = config.use_cache and not model.training and cacheable(net)
    held = given_cache(past_key_values, cache)
    if held is None and (by_default if use_cache is None else use_cache):
        held = XPositionalCache()
    own, kv = own_cache(held, net, batch)
    places = read_places(length, batch, attention_mask, position_ids, own)
    given: dict[str, Any] = {**places.given, "token_types": token_type_ids}
    if inputs_embeds is not None:
        given["inputs_embeds"] = net.scaled(net.check_embeds(inputs_embeds, "inputs_embeds"))
    maps = config.output_attentions if output_attentions is None else output_attentions
    states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    if context is not None and (kv is None or kv.state.cross_context is None):
        given |= context
    if token_type_ids is not None and not net.token_types and read_value((token_type_ids == 0).all()) is True:
        given["token_types"] = None  # tokenizers return zeros for a single text, whatever the model
    with recorded(net.attn_layers, bool(states)) as seen:
        out = net(input_ids, cache=kv, return_embeddings=True, return_attention=bool(maps), **given)
    hidden, *found = out if isinstance(out, tuple) else (out,)
    if own is not None and kv is not None:
        own.added(kv, length, places.columns)
    of_self, of_cross = (*(tuple(layers) for layers in found), None, None)[:2]
    return Read(hidden, own, (*seen[:-1], hidden) if states else None, of_self, of_cross)


@contextmanager
def recorded(layers: AttentionLayers, on: bool) -> Iterator[list[Tensor]]:
    """Collects the input of the first block, and what each block returns."""
    seen: list[Tensor] = []
    blocks: list[nn.Module] = list(layers.blocks) if on else []

    def before(block: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given[0])

    def after(block: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        seen.append(out)

    hooks = [block.register_forward_hook(after) for block in blocks]
    hooks += [block.register_forward_pre_hook(before) for block in blocks[:1]]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
