"""Continuous inputs instead of token ids: audio frames, sensor readings, embeddings of your own.

B batch, T tokens, M model dim, I input width, O output width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import SeqLens, packed_documents
from x_positional.config.flags import continuous_from_flags
from x_positional.config.models import ContinuousConfig
from x_positional.errors import InputError
from x_positional.models.describe import describe
from x_positional.models.language import bound_config
from x_positional.models.stacks import ConfiguredLayers
from x_positional.modules.norms import Norm


class ContinuousTransformerWrapper(nn.Module):
    """[B T I] -> [B T O]. dim_in and dim_out project from and to the model's width; None leaves that side as it is."""

    def __init__(
        self,
        *,
        attn_layers: ConfiguredLayers,
        max_seq_len: int | None = None,
        dim_in: int | None = None,
        dim_out: int | None = None,
        **flags: Any,
    ):
        super().__init__()
        given = {"max_seq_len": max_seq_len, "dim_in": dim_in, "dim_out": dim_out, **flags}
        fields = continuous_from_flags({**given, "attn_layers": bound_config(attn_layers)})
        self.config = config = ContinuousConfig.model_validate(fields)
        dim = config.layers.dim
        attn_layers.bind(config.layers, max_seq_len, dim)
        self.dim_in = config.dim_in or dim
        self.project_in = None if config.dim_in is None else nn.Linear(config.dim_in, dim, bias=False)
        self.emb_norm = Norm(dim, unit_offset=False) if config.post_emb_norm else None
        self.emb_dropout = nn.Dropout(config.emb_dropout)
        self.attn_layers = attn_layers
        self.project_out = None if config.dim_out is None else nn.Linear(dim, config.dim_out, bias=False)

    def new_cache(
        self,
        batch_size: int,
        max_len: int | None = None,
        window: int | None = None,
        dtype: torch.dtype | None = None,
        *,
        keep_first: int = 0,
        final_lengths: Tensor | None = None,
    ) -> KVCache:
        """A key/value cache for `batch_size` rows; see `AttentionLayers.new_cache`."""
        return self.attn_layers.new_cache(
            batch_size, max_len, window, dtype, keep_first=keep_first, final_lengths=final_lengths
        )

    def describe(self) -> str:
        """What is applied where, which backend runs and why, dtype, parameters."""
        return describe(self, self.config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        return_embeddings: bool = False,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_positions: Tensor | None = None,
        seq_lens: SeqLens | None = None,
    ) -> Tensor:
        """Inputs [B T I] -> [B T O], or [B T M] with return_embeddings; the rest as in `TransformerWrapper.forward`."""
        if x.ndim != 3 or x.shape[-1] != self.dim_in or not x.is_floating_point():
            raise InputError(f"expected floats [batch, tokens, {self.dim_in}]; got {list(x.shape)} of {x.dtype}.")
        layers = self.attn_layers
        document_ids = packed_documents(document_ids, seq_lens, x.shape[0], x.shape[1])
        placed = layers.place(x.shape[0], x.shape[1], x.device, mask, positions, document_ids, cache)
        x = x if self.project_in is None else self.project_in(x)
        x = layers.embed(x, placed)
        x = self.emb_dropout(x if self.emb_norm is None else self.emb_norm(x))
        x = layers.run(x, layers.plan(x.shape[0], placed, x.dtype, cache, context, context_mask, context_positions))
        return x if return_embeddings or self.project_out is None else self.project_out(x)
