"""Models around a stack of layers: language models, and continuous inputs.

B batch, T tokens, M model dim, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import SeqLens, packed_documents
from x_positional.config.flags import model_from_flags
from x_positional.config.layers import LayersConfig, NormConfig
from x_positional.config.models import ModelConfig
from x_positional.config.validate import model_report, require
from x_positional.errors import InputError
from x_positional.models.build import build_norm
from x_positional.models.describe import describe
from x_positional.models.head import PredictionHead
from x_positional.models.saving import Saveable
from x_positional.models.stacks import ConfiguredLayers, layers_from_config


def bound_config(layers: ConfiguredLayers) -> dict[str, Any]:
    """The fields of a stack's config, for the flags of the wrapper to be read beside."""
    return {name: getattr(layers.config, name) for name in LayersConfig.model_fields}


class TransformerWrapper(Saveable):
    """Token ids -> logits. Flags as in x-transformers (`emb_dim, emb_dropout, post_emb_norm, tie_embedding,
    use_abs_pos_emb, scaled_sinu_pos_emb, l2norm_embed, logits_dim`); see docs/migration.md.

    A learned absolute table of `max_seq_len` rows is on only where it is asked for or where no scheme was chosen.
    """

    has_head: ClassVar[bool] = True

    def __init__(self, *, num_tokens: int, max_seq_len: int, attn_layers: ConfiguredLayers, **flags: Any):
        super().__init__()
        fields = model_from_flags(num_tokens, max_seq_len, {**flags, "attn_layers": bound_config(attn_layers)})
        self.config = config = ModelConfig.model_validate(fields)
        require(model_report(config))
        self.num_tokens, self.max_seq_len = num_tokens, max_seq_len
        emb_dim = config.emb_dim or config.layers.dim
        placed_dim = config.placed_dim or config.layers.dim
        attn_layers.bind(config.layers, max_seq_len, placed_dim)
        self.token_emb = nn.Embedding(num_tokens, emb_dim)
        if config.l2norm_embed:
            nn.init.normal_(self.token_emb.weight, std=1e-5)
        else:
            nn.init.kaiming_normal_(self.token_emb.weight)
        self.token_type_emb = nn.Embedding(config.token_types, emb_dim) if config.token_types else None
        norm = config.emb_norm or NormConfig(unit_offset=False)
        normed = config.post_emb_norm or config.emb_norm is not None
        self.emb_norm = build_norm(config.layers, norm, placed_dim) if normed else None
        self.emb_dropout = nn.Dropout(config.emb_dropout)
        between = config.projected
        self.project_emb = nn.Linear(emb_dim, config.layers.dim, bias=config.emb_proj_bias) if between else None
        back = between and config.logits_proj
        self.project_out = nn.Linear(config.layers.dim, emb_dim, bias=config.emb_proj_bias) if back else None
        self.attn_layers = attn_layers
        self.head = self._build_head(config)
        columns, rows = config.logits_dim or num_tokens, emb_dim if back else config.layers.dim
        own_head = self.has_head and not config.tie_embedding
        self.to_logits = nn.Linear(rows, columns, bias=config.logits_bias) if own_head else None
        biased = self.has_head and config.logits_bias and config.tie_embedding
        self.tied_bias = nn.Parameter(torch.zeros(num_tokens)) if biased else None
        scale = config.tie_embedding_scale
        self.tie_scale = config.layers.dim**-0.5 if scale is None else scale

    def _build_head(self, config: ModelConfig) -> PredictionHead | None:
        """What stands before the last projection."""
        if config.head is None or not self.has_head:
            return None
        norm = build_norm(config.layers, config.head.norm)
        return PredictionHead(config.layers.dim, config.head.activation, config.head.bias, norm)

    @classmethod
    def from_config(cls, config: ModelConfig | Mapping[str, Any]) -> Self:
        """The model of a `ModelConfig` (or of its fields as a dict)."""
        config = ModelConfig.model_validate(config)
        own = {n: getattr(config, n) for n in ModelConfig.model_fields if n != "layers"}
        defaults = {n: f.default for n, f in ModelConfig.model_fields.items() if not f.is_required()}
        flags = {n: v for n, v in own.items() if n not in defaults or v != defaults[n]}
        return cls(attn_layers=layers_from_config(config.layers), **flags)

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
        """A key/value cache for `batch_size` rows; see `AttentionLayers.new_cache`."""
        return self.attn_layers.new_cache(
            batch_size, max_len, window, dtype, keep_first=keep_first, rereads=rereads, final_lengths=final_lengths
        )

    def describe(self) -> str:
        """What is applied where, which backend runs and why, dtype, parameters, trained length."""
        return describe(self, self.config)

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises InputError where ids are not integers of shape [B T] in [0, num_tokens). Looks at the values."""
        if tokens.is_floating_point() or tokens.dtype == torch.bool or tokens.is_complex():
            raise InputError(
                f"tokens must be integer ids; these are {tokens.dtype}. Use tokens.long() if they are whole."
            )
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise InputError(
                f"tokens must have shape [batch, tokens], neither of them empty; these are {list(tokens.shape)}."
            )
        if torch.compiler.is_compiling():
            return
        low, high = (int(v) for v in tokens.aminmax())
        if low < 0 or high >= self.num_tokens:
            bad = low if low < 0 else high
            raise InputError(
                f"token id {bad} is outside 0..{self.num_tokens - 1} (num_tokens={self.num_tokens}). Pad with a real id and "
                "say mask=, or build the model with a larger num_tokens."
            )

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        return_embeddings: bool = False,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_positions: Tensor | None = None,
        checked: bool = False,
        seq_lens: SeqLens | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Ids [B T] -> logits [B T V], or embeddings [B T M] with return_embeddings.

        mask: [B T] bool, True = keep, padded left or right; positions follow it unless given. positions: [B T] or
        [B T A], ints or floats; a cache goes on after the largest. document_ids: [B T], packed rows whose documents do not
        see each other, and whose positions start again unless given; seq_lens: the same said by the lengths of the
        documents, one list for all rows or one a row. cache: from `new_cache`; tokens
        then holds only the new ones. context: for layers with cross-attention. token_types: [B T], which kind each token
        is; all 0 where none are given. checked: the caller vouches for the ids,
        which spares a look at the device.
        Raises InputError, PositionError, CacheError before any kernel runs.
        """
        if not checked:
            self.check_tokens(tokens)
        layers = self.attn_layers
        B, T = tokens.shape
        document_ids = packed_documents(document_ids, seq_lens, B, T)
        placed = layers.place(B, T, tokens.device, mask, positions, document_ids, cache)
        x = self.token_emb(tokens.long())
        x = x if self.config.emb_scale is None else x * torch.tensor(self.config.emb_scale, dtype=x.dtype)
        if self.config.l2norm_embed:
            x = F.normalize(x, dim=-1)
        x = self._typed(x, token_types)
        first = self.config.emb_proj_first
        x = self.project_emb(x) if self.project_emb is not None and first else x
        x = layers.embed(x, placed)
        x = self.emb_dropout(x if self.emb_norm is None else self.emb_norm(x))
        x = self.project_emb(x) if self.project_emb is not None and not first else x
        plan = layers.plan(B, placed, x.dtype, cache, context, context_mask, context_positions)
        x = layers.run(x, plan)
        if return_embeddings:
            return x
        return self.logits(x) if self.has_head else self.projected(x)

    def projected(self, x: Tensor) -> Tensor:
        """[... M] -> what the head reads: as wide as the token embeddings with logits_proj, otherwise as it is."""
        return x if self.project_out is None else self.project_out(x)

    def _typed(self, x: Tensor, types: Tensor | None) -> Tensor:
        """[B T M] and the vectors of token types [B T], or of type 0 where none are given. Raises InputError."""
        emb = self.token_type_emb
        if emb is None:
            if types is not None:
                raise InputError("token_types were given, and this model has none. Leave them out.")
            return x
        if types is None:
            return x + emb.weight[0]
        whole = not (types.is_floating_point() or types.dtype == torch.bool)
        low, high = (0, 0) if torch.compiler.is_compiling() else (int(types.min()), int(types.max()))
        if types.shape != x.shape[:2] or not whole or low < 0 or high >= emb.num_embeddings:
            raise InputError(
                f"token_types must be integers from 0 to {emb.num_embeddings - 1} of shape {list(x.shape[:2])}; these are "
                f"{types.dtype} of shape {list(types.shape)}, from {low} to {high}."
            )
        return x + emb(types.long())

    def logits(self, x: Tensor) -> Tensor:
        """[... M] -> [... V]: the head alone."""
        x = self.projected(x if self.head is None else self.head(x))
        if self.to_logits is None:
            x = F.linear(x, self.token_emb.weight) * self.tie_scale
            x = x if self.tied_bias is None else x + self.tied_bias
        else:
            x = self.to_logits(x)
        scale, cap = self.config.logits_scale, self.config.logits_softcap
        x = x if scale is None else x * scale
        return x if cap is None else cap * torch.tanh(x / cap)


class TokenEncoder(TransformerWrapper):
    """Token ids -> embeddings [B T M]: a TransformerWrapper without a head. With logits_proj they are emb_dim wide."""

    has_head = False


def build_model(config: ModelConfig | Mapping[str, Any]) -> TransformerWrapper:
    """The model of a config. Raises IncompatibleConfig with every problem at once."""
    return TransformerWrapper.from_config(config)
