"""A stack of blocks: settle where the tokens are once, then run every block.

B batch, T new tokens, M model dim, C context dim, A position axes.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from x_positional.attention.backends.base import torch_func_runs
from x_positional.attention.cache import KVCache
from x_positional.attention.cache_rows import whole_number
from x_positional.attention.cross import NO_CONTEXT, ContextInputs, CrossAttentionKind
from x_positional.attention.inputs import (
    SeqLens,
    check_cache,
    check_final_lengths,
    check_floats,
    check_positions_fit,
    is_traced,
    packed_documents,
    prepare_tokens,
)
from x_positional.attention.maps import MapCollector, WithMaps
from x_positional.attention.ownership import Identity
from x_positional.attention.plan import LayerKind, PassPlan
from x_positional.attention.planner import plan_pass
from x_positional.attention.streaming import keep_first_problem
from x_positional.attention.tokens import TokenLayout
from x_positional.attention.visibility import PrefixLen, read_attention_mask, with_visibility
from x_positional.errors import ArgumentError, InputError, PositionError, shown
from x_positional.modules.block import Block
from x_positional.modules.caching import CachingModule
from x_positional.modules.norms import Norm
from x_positional.schemes.base import AttentionWindow, Dims, PositionScheme

Recomputed = Literal["none", "blocks"]
"""What backward computes again in place of keeping it: nothing, or everything inside each block."""


class AttentionLayers(CachingModule):
    """Blocks, their position schemes and a final norm. Takes modules and numbers, never a config.

    A forward pass is `layout` (where the tokens are, checked), `embed` (absolute positions) and `run` (every block). Called
    alone on embeddings [B T M] it does all three; a model puts its own embedding between them.

    Args:
        dims: sizes of the stack.
        blocks: one a layer.
        final_norm: after the last block, or None.
        cross: what cross-attention reads, None for blocks without it.
        schemes, kinds: as in `set_positions`; a stack without them cannot run until it is called.
    """

    activation_checkpointing: Recomputed = "none"
    """What a training step computes twice; see `set_activation_checkpointing`."""

    def __init__(
        self,
        *,
        dims: Dims,
        blocks: Sequence[Block],
        final_norm: Norm | None,
        cross: CrossAttentionKind | None = None,
        schemes: Sequence[PositionScheme] = (),
        kinds: Sequence[LayerKind] = (),
    ):
        super().__init__()
        self.dims, self.cross = dims, cross
        self.identity = Identity()  # caches carry it, so that one model's keys never serve another
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.set_positions(schemes, kinds)

    def set_positions(self, schemes: Sequence[PositionScheme], kinds: Sequence[LayerKind]) -> None:
        """Set the position schemes.

        Args:
            schemes: the distinct ones, which own parameters.
            kinds: one a block; its scheme is one of them or a Chain of some.
        """
        self.schemes, self.kinds = nn.ModuleList(schemes), list(kinds)

    @property
    def position_schemes(self) -> list[PositionScheme]:
        """The distinct schemes, typed."""
        return [s for s in self.schemes if isinstance(s, PositionScheme)]

    @property
    def shard_units(self) -> list[nn.Module]:
        """The modules whose parameters are gathered and released together where a model is sharded. All other parameters, those
        of schemes included, are shared by layers."""
        return list(self.blocks)

    def new_cache(
        self,
        batch_size: int,
        max_len: int | None = None,
        window: int | None = None,
        dtype: torch.dtype | None = None,
        *,
        keep_first: int = 0,
        rereads: bool = False,
        final_lengths: Tensor | None = None,
    ) -> KVCache:
        """A key/value cache.

        Args:
            batch_size: rows.
            max_len: slots a row, allocated at once; None grows.
            window: keep (and attend to) only the last `window` tokens, in layers without a smaller window of their own.
            dtype: of cached keys and values; None is the dtype they are computed in. torch.int8 adds a scale per token and head.
            keep_first: beside `window`, also keep the first tokens of each row, at distances within the cache (StreamingLLM).
            rereads: the caller recomputes the whole sequence in a new cache wherever a scheme's `cache_key` changes.
            final_lengths: [B] or [1] how long each row will be, for RoPE scalings with length_policy="fixed"; None is max_seq_len.

        Raises:
            PositionError: cached keys would go stale as the sequence grows, or keep_first does not fit a scheme.
            InputError: an encoder, or arguments that do not fit together.
            ArgumentError: a size that is not a positive integer, or a dtype that cannot store keys.
        """
        self._require_schemes()
        batch_size = whole_number("batch_size", batch_size)
        keep_first = whole_number("keep_first", keep_first, least=0)
        window = None if window is None else whole_number("window", window)
        stale = [type(s).__name__ for s in self.position_schemes if not s.capabilities().kv_cacheable]
        if stale and not rereads:
            raise PositionError(
                f"{', '.join(stale)} changes the keys of earlier tokens as the sequence grows, so cached keys go stale. Use "
                "AutoregressiveWrapper.generate without a cache of your own, which recomputes them where that happens; or, for "
                "RoPE scalings that depend on the length, length_policy='fixed'."
            )
        if not self.dims.causal and any(block.attn is not None for block in self._blocks()):
            raise InputError(
                "an encoder is bidirectional: earlier outputs change with later tokens, so a cache cannot be exact."
            )
        windows = [kind.window for kind in self.kinds]
        if window is not None:
            windows = [_narrowed(own, window, keep_first) for own in windows]
        elif keep_first:
            raise InputError(f"keep_first={keep_first} keeps tokens that a window would drop. Set window= too.")
        if problem := keep_first_problem(list(zip(self._schemes_of_layers(), windows, strict=True))):
            raise PositionError(problem)
        device = next(self.parameters()).device
        if final_lengths is not None:
            final_lengths = check_final_lengths(final_lengths, batch_size, self.position_schemes).to(device)
        return KVCache(windows, batch_size, max_len, device, dtype, self.identity, final_lengths)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.identity.claim()

    def _blocks(self) -> list[Block]:
        return [b for b in self.blocks if isinstance(b, Block)]

    def _schemes_of_layers(self) -> list[list[PositionScheme]]:
        """The schemes of each layer, one by one."""
        inside = [set(map(id, kind.scheme.modules())) for kind in self.kinds]
        return [[scheme for scheme in self.position_schemes if id(scheme) in ids] for ids in inside]

    @property
    def has_schemes(self) -> bool:
        """Whether `set_positions` has been called; a stack that waits for a length has none."""
        return len(self.kinds) == len(self.blocks)

    def _require_schemes(self) -> None:
        """Raises PositionError where the stack was built before its schemes could be."""
        if not self.has_schemes:
            raise PositionError("this stack has no position schemes yet. Call set_positions first.")

    def layout(
        self,
        batch: int,
        length: int,
        device: torch.device,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        seq_lens: SeqLens | None = None,
        attention_mask: Tensor | None = None,
        prefix_len: PrefixLen | None = None,
        cache: KVCache | None = None,
        around: CachingModule | None = None,
        checked: bool = False,
    ) -> TokenLayout:
        """Where the new tokens of a forward pass are, checked on the host before any kernel runs.

        Args:
            batch: B.
            length: T, new tokens of each row.
            device: of the inputs.
            mask, positions, document_ids, seq_lens, attention_mask, prefix_len, cache: as in `forward`.
            around: the model that computes the embeddings; a cache depends on its parameters too.
            checked: the caller guarantees that float positions are finite, which takes a device sync to check, and that the
                mask shows a token.

        Raises:
            InputError, PositionError, CacheError.
        """
        self._require_schemes()
        if is_traced():
            raise InputError(
                "torch.jit.trace would record the masks and tables of this one length and apply them to every other. Use "
                "torch.export.export(model, (tokens,), dynamic_shapes=...), or torch.compile."
            )
        document_ids = packed_documents(document_ids, seq_lens, batch, length)
        if cache is not None:
            check_cache(cache)
            cache.check(self.identity, batch, device, (self if around is None else around).stamp())
        pairs = None
        if attention_mask is not None:
            mask, pairs = read_attention_mask(attention_mask, mask, batch, length, cache, checked=checked)
        layout = prepare_tokens(batch, length, device, mask, positions, document_ids, cache, checked=checked)
        if pairs is not None or prefix_len is not None:
            layout = self._with_visibility(layout, batch, pairs, prefix_len, cache, checked=checked)
        check_positions_fit(layout, self.position_schemes)
        return layout

    def _with_visibility(
        self,
        layout: TokenLayout,
        batch: int,
        pairs: Tensor | None,
        prefix_len: PrefixLen | None,
        cache: KVCache | None,
        *,
        checked: bool,
    ) -> TokenLayout:
        """As `with_visibility`, for this stack."""
        if all(block.attn is None for block in self._blocks()):
            given = "prefix_len" if pairs is None else "attention_mask"
            raise InputError(f"{given} would be ignored: this stack has no self-attention. Leave it out.")
        schemes, causal = self.position_schemes, self.dims.causal
        return with_visibility(layout, batch, pairs, prefix_len, schemes, cache, causal=causal, checked=checked)

    def embed(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """[B T M] -> [B T M]: what schemes add to the embeddings (absolute, sinusoidal)."""
        for scheme in self.position_schemes:
            x = scheme.embed(x, layout.positions)
        return x

    def map_collector(self) -> MapCollector:
        """Where `run` puts the attention maps of its layers."""
        return MapCollector.empty(len(self.blocks), self.cross is not None)

    def run(
        self,
        x: Tensor,
        layout: TokenLayout,
        cache: KVCache | None = None,
        context: ContextInputs = NO_CONTEXT,
        maps: MapCollector | None = None,
    ) -> Tensor:
        """[B T M] -> [B T M] through every block and the final norm.

        Args:
            x: hidden states.
            layout: of the same tokens, from `layout`, with the same cache.
            cache: extended by these tokens, after the final norm.
            context: what cross-attention reads.
            maps: from `map_collector`, filled with the attention map of every layer.

        Raises:
            InputError, PositionError, CacheError. A call that fails, for whatever reason, leaves the cache unchanged.
        """
        tracked = cache is not None and self._is_tracked(x, context)
        plan = plan_pass(self.kinds, self.dims, layout, x.shape[0], x.dtype, cache, self.cross, context, tracked)
        plan = plan if maps is None else plan.collecting(maps)
        run = self._recomputed if cache is None and self._recomputes() else self._block
        for i, block in enumerate(self.blocks):
            x = run(x, block, i, plan)
        norm = self.final_norm
        x = x if norm is None else norm(x)
        if plan.cache is not None:
            plan.cache.commit()
        return x

    def _block(self, x: Tensor, block: nn.Module, i: int, plan: PassPlan) -> Tensor:
        """[B T M] -> [B T M] through block i."""
        cross = None if plan.cross is None else plan.cross[i]
        return block(x, self.kinds[i].scheme, plan.layers[i], cross)

    def _recomputed(self, x: Tensor, block: nn.Module, i: int, plan: PassPlan) -> Tensor:
        """The same, keeping only the input for backward. Gradients of what layers share, such as bias tables, flow out of the
        block through the plan."""
        return checkpoint(lambda x: self._block(x, block, i, plan), x, use_reentrant=False)

    def _recomputes(self) -> bool:
        """Whether backward computes blocks again. torch.func does not support checkpoints."""
        on = self.activation_checkpointing == "blocks" and self.training and torch.is_grad_enabled()
        return on and not torch_func_runs()

    def _is_tracked(self, x: Tensor, context: ContextInputs) -> bool:
        """Whether autograd records a pass, so that its graph holds tensors of the cache."""
        if not torch.is_grad_enabled():
            return False
        given = context.context is not None and context.context.requires_grad
        return given or x.requires_grad or any(p.requires_grad for p in self.parameters())

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_positions: Tensor | None = None,
        cache: KVCache | None = None,
        seq_lens: SeqLens | None = None,
        attention_mask: Tensor | None = None,
        prefix_len: PrefixLen | None = None,
        return_attention: bool = False,
    ) -> Tensor | WithMaps:
        """Embeddings [B T M] -> hidden states [B T M].

        Args:
            x: embeddings; with a cache, those of the new tokens alone.
            mask: [B T] bool, True = keep.
            positions: [B T] or [B T A], ints or floats.
            document_ids: [B T], packed rows whose documents do not attend to each other.
            context: [B S C], for cross-attention.
            context_mask: [B S] bool, True = keep.
            context_positions: [B S], to apply positions in cross-attention too.
            cache: from `new_cache`.
            seq_lens: the documents' lengths, in place of document_ids.
            attention_mask, prefix_len: as in `TransformerWrapper.forward`.
            return_attention: return the attention maps too, as in `TransformerWrapper.forward`.

        Raises:
            InputError, PositionError, CacheError.
        """
        check_floats(x, self.dims.dim, f"float embeddings [batch, tokens, dim={self.dims.dim}]")
        layout = self.layout(
            x.shape[0],
            x.shape[1],
            x.device,
            mask=mask,
            positions=positions,
            document_ids=document_ids,
            seq_lens=seq_lens,
            attention_mask=attention_mask,
            prefix_len=prefix_len,
            cache=cache,
        )
        context_inputs = ContextInputs(context, context_mask, context_positions)
        maps = self.map_collector() if return_attention else None
        x = self.run(self.embed(x, layout), layout, cache, context_inputs, maps)
        return x if maps is None else maps.beside(x)


def _narrowed(window: AttentionWindow, size: int, keep_first: int) -> AttentionWindow:
    """A layer's window where a cache keeps only the last `size` tokens. A layer that sees fewer stays as it is."""
    if window.kept is not None and window.kept <= size:
        return window
    return window._replace(size=size, keep_first=max(window.keep_first, keep_first))


Model = TypeVar("Model", bound=nn.Module)


def set_activation_checkpointing(model: Model, recomputed: Recomputed) -> Model:
    """Trade time for memory in training, with torch.utils.checkpoint (Chen et al. 2016, arXiv:1604.06174).

    With "blocks" a training step keeps only the input of each block, and backward computes the block a second time: about a
    third more arithmetic. Gradients are the same, dropout included. It applies in train mode with gradients enabled and without
    a cache, and has no effect elsewhere. It is no part of the config, so a saved model does not remember it.

    Args:
        model: any module with stacks of x_positional in it; all of them are set.
        recomputed: "none" or "blocks".

    Returns:
        The model.

    Raises:
        ArgumentError: another value, or a model without a stack.
    """
    known = get_args(Recomputed)
    if recomputed not in known:
        raise ArgumentError(
            f"activation checkpointing must be {' or '.join(map(repr, known))}; got {shown(recomputed)}."
        )
    stacks = [module for module in model.modules() if isinstance(module, AttentionLayers)]
    if not stacks:
        raise ArgumentError(
            f"{type(model).__name__} holds no Encoder, Decoder or CrossAttender, whose blocks could be checkpointed."
        )
    for stack in stacks:
        stack.activation_checkpointing = recomputed
    return model
