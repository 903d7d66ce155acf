"""Continuous inputs in place of token ids: audio frames, sensor readings, precomputed embeddings.

B batch, T tokens, M model dim, I input width, O output width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.attention.cache import KVCache
from x_positional.attention.cross import ContextInputs
from x_positional.attention.inputs import SeqLens, check_floats
from x_positional.attention.maps import WithMaps
from x_positional.attention.ownership import Stamp
from x_positional.attention.visibility import PrefixLen
from x_positional.config.flags import continuous_from_flags
from x_positional.config.flags.answers import answers
from x_positional.config.models import ContinuousConfig
from x_positional.config.validate import model_report, require
from x_positional.models.describe import describe
from x_positional.models.stacks import ConfiguredLayers, config_of, layers_of_model
from x_positional.modules.caching import CachingModule
from x_positional.modules.dropout import Dropout
from x_positional.modules.norms import Norm


class ContinuousTransformerWrapper(CachingModule):
    """Floats [B T I] -> [B T O].

    Args:
        attn_layers: an Encoder, Decoder or CrossAttender.
        max_seq_len: the trained length; None for no learned table.
        dim_in: I, projected to the model's width; None is that width, without a projection.
        dim_out: O, projected from the model's width; None is that width, without a projection.
        flags: `emb_dropout, post_emb_norm`, as in x-transformers.

    Raises:
        FlagError, IncompatibleConfig: with every problem at once.
    """

    def __init__(
        self,
        *,
        attn_layers: ConfiguredLayers,
        max_seq_len: int | None = None,
        dim_in: int | None = None,
        dim_out: int | None = None,
        **flags: Any,
    ):
        given = {"max_seq_len": max_seq_len, "dim_in": dim_in, "dim_out": dim_out, **flags}
        fields = continuous_from_flags({**given, "attn_layers": config_of(attn_layers, "ContinuousTransformerWrapper")})
        self._build(ContinuousConfig.model_validate(fields), attn_layers)

    @classmethod
    def from_config(cls, config: ContinuousConfig | Mapping[str, Any]) -> Self:
        """The model of a `ContinuousConfig` (or of its fields as a dict). Raises IncompatibleConfig with every problem."""
        model = cls.__new__(cls)
        model._build(ContinuousConfig.model_validate(config))
        return model

    def _build(self, config: ContinuousConfig, attn_layers: ConfiguredLayers | None = None) -> None:
        """Validate the config, then build what it describes. attn_layers: its layers, where they exist already."""
        require(model_report(config))
        super().__init__()
        self.config, dim = config, config.layers.dim
        layers = layers_of_model(config.layers, config.max_seq_len, dim, attn_layers)
        self.dim_in = config.dim_in or dim
        self.project_in = None if config.dim_in is None else nn.Linear(config.dim_in, dim, bias=False)
        self.emb_norm = Norm(dim, unit_offset=False) if config.post_emb_norm else None
        self.emb_dropout = Dropout(config.emb_dropout)
        self.attn_layers = layers
        self.project_out = None if config.dim_out is None else nn.Linear(dim, config.dim_out, bias=False)

    def stamp(self) -> Stamp:
        """How often the parameters that cached keys depend on have been found changed."""
        return Stamp(self.attn_layers.changes(), self.changes())

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
        """A summary: which schemes apply where, which backend runs and why, dtype, parameters."""
        return describe(self, self.config)

    @answers("ContinuousTransformerWrapper.forward", "AttentionLayers.forward")
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
        attention_mask: Tensor | None = None,
        prefix_len: PrefixLen | None = None,
        return_attention: bool = False,
    ) -> Tensor | WithMaps:
        """Floats [B T I] -> [B T O], or hidden states [B T M] with return_embeddings. The rest is as in
        `TransformerWrapper.forward`."""
        check_floats(x, self.dim_in, f"floats [batch, tokens, {self.dim_in}]")
        layers = self.attn_layers
        layout = layers.layout(
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
            around=self,
        )
        x = layers.embed(x if self.project_in is None else self.project_in(x), layout)
        x = self.emb_dropout(x if self.emb_norm is None else self.emb_norm(x))
        maps = layers.map_collector() if return_attention else None
        x = layers.run(x, layout, cache, ContextInputs(context, context_mask, context_positions), maps)
        out = x if return_embeddings or self.project_out is None else self.project_out(x)
        return out if maps is None else maps.beside(out)
