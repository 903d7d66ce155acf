"""Language models: token ids in, logits or embeddings out.

B batch, T tokens, M model dim, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.attention.cache import KVCache
from x_positional.attention.cross import ContextInputs
from x_positional.attention.embeds import Part, check_covers_prepended, check_embeds, parts_of, places, with_prepended
from x_positional.attention.inputs import INTEGERS, SeqLens, as_tensor, check_shows_a_token, read_bounds
from x_positional.attention.maps import WithMaps
from x_positional.attention.ownership import Stamp
from x_positional.attention.tokens import TokenLayout
from x_positional.attention.visibility import PrefixLen
from x_positional.config.flags import model_from_flags
from x_positional.config.flags.answers import answers
from x_positional.config.layers import NormConfig
from x_positional.config.models import ModelConfig
from x_positional.config.validate import model_report, require
from x_positional.errors import InputError
from x_positional.models.absent import ExplainsAbsent
from x_positional.models.build import build_norm
from x_positional.models.describe import describe
from x_positional.models.resize import LengthSize, NewRows, NewTable, Rows, VocabularySize, fresh_rows, seeded
from x_positional.models.saving import Saveable
from x_positional.models.stacks import ConfiguredLayers, config_of, layers_of_model
from x_positional.modules.caching import CachingModule
from x_positional.modules.cross_entropy import PLAIN, TokenLoss, Unembedding, cross_entropy_by_chunks
from x_positional.modules.dropout import Dropout
from x_positional.modules.feedforward import ACTIVATIONS, FixedActivationKind
from x_positional.modules.norms import Norm
from x_positional.modules.plain import linear, plain_weight
from x_positional.modules.quantized import Int8Embedding


def embedding_table(rows: int, width: int, l2norm: bool) -> nn.Embedding:
    """A new table. l2norm: its vectors are normalised, so that they may start small."""
    table = nn.Embedding(rows, width)
    if l2norm:
        nn.init.normal_(table.weight, std=1e-5)
    else:
        nn.init.kaiming_normal_(table.weight)
    return table


class PredictionHead(nn.Module):
    """BERT-style prediction head: linear, activation, norm (Devlin et al. 2018, arXiv:1810.04805, in the published code).
    [... M] -> [... width of the norm]."""

    def __init__(self, dim: int, activation: FixedActivationKind, bias: bool, norm: Norm):
        super().__init__()
        self.linear = nn.Linear(dim, norm.dim, bias=bias)
        self.activation, self.norm = ACTIVATIONS[activation], norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.linear(x)))


class TransformerWrapper(ExplainsAbsent, CachingModule, Saveable):
    """Token ids -> logits.

    A learned absolute table of `max_seq_len` rows is on only where it is asked for or where no scheme was chosen.

    Args:
        num_tokens: V.
        max_seq_len: the trained length, in tokens.
        attn_layers: an Encoder, Decoder or CrossAttender.
        flags: as in x-transformers (`emb_dim, emb_dropout, post_emb_norm, tie_embedding, use_abs_pos_emb, scaled_sinu_pos_emb,
            l2norm_embed, logits_dim`), or fields of `ModelConfig`; see docs/migration.md.

    Raises:
        FlagError, IncompatibleConfig: with every problem at once.
    """

    has_head: ClassVar[bool] = True

    def __init__(self, *, num_tokens: int, max_seq_len: int, attn_layers: ConfiguredLayers, **flags: Any):
        fields = model_from_flags(
            num_tokens, max_seq_len, {**flags, "attn_layers": config_of(attn_layers, type(self).__name__)}
        )
        self._build(ModelConfig.model_validate(fields), attn_layers)

    @classmethod
    def from_config(cls, config: ModelConfig | Mapping[str, Any]) -> Self:
        """The model of a `ModelConfig` (or of its fields as a dict). Raises IncompatibleConfig with every problem."""
        model = cls.__new__(cls)
        model._build(ModelConfig.model_validate(config))
        return model

    def _build(self, config: ModelConfig, attn_layers: ConfiguredLayers | None = None) -> None:
        """Validate the config, then build what it describes. attn_layers: its layers, where they exist already."""
        require(model_report(config))
        super().__init__()
        self.config, self.num_tokens, self.max_seq_len = config, config.num_tokens, config.max_seq_len
        dim, emb_dim, positions_dim = config.layers.dim, config.emb_dim or config.layers.dim, config.placed_dim
        self.emb_width = emb_dim
        layers = layers_of_model(config.layers, config.max_seq_len, positions_dim or dim, attn_layers)
        self.token_emb = embedding_table(config.num_tokens, emb_dim, config.l2norm_embed)
        self.token_types = config.token_types or 0
        self.token_type_emb = nn.Embedding(config.token_types, emb_dim) if config.token_types else None
        norm = config.emb_norm or NormConfig(unit_offset=False)
        normed = config.post_emb_norm or config.emb_norm is not None
        self.emb_norm = build_norm(config.layers, norm, positions_dim or dim) if normed else None
        self.emb_dropout = Dropout(config.emb_dropout)
        bias, projected = config.emb_proj_bias, config.projected
        self.project_emb = nn.Linear(emb_dim, dim, bias=bias) if projected else None
        self.project_out = nn.Linear(dim, emb_dim, bias=bias) if projected and config.logits_proj else None
        self.attn_layers = layers
        self._build_head(config)

    def _build_head(self, config: ModelConfig) -> None:
        """What turns hidden states into logits."""
        dim, tied, width = config.layers.dim, config.tie_embedding, config.logits_width
        self.logits_width, self.head = width, None
        if config.head is not None and self.has_head:
            norm = build_norm(config.layers, config.head.norm, config.head.width)
            self.head = PredictionHead(dim, config.head.activation, config.head.bias, norm)
        columns = config.logits_dim or config.num_tokens
        own_matrix = self.has_head and not tied
        self.to_logits = nn.Linear(width, columns, bias=config.logits_bias) if own_matrix else None
        tied_bias = self.has_head and tied and config.logits_bias
        self.tied_bias = nn.Parameter(torch.zeros(config.num_tokens)) if tied_bias else None
        self.tie_scale = dim**-0.5 if config.tie_embedding_scale is None else config.tie_embedding_scale

    def logit_tables(self) -> tuple[nn.Module, ...]:
        """The token embedding, where it is tied to the logits."""
        return (self.token_emb,) if self.has_head and self.to_logits is None else ()

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
        rereads: bool = False,
        final_lengths: Tensor | None = None,
    ) -> KVCache:
        """A key/value cache for `batch_size` rows; see `AttentionLayers.new_cache`."""
        return self.attn_layers.new_cache(
            batch_size, max_len, window, dtype, keep_first=keep_first, rereads=rereads, final_lengths=final_lengths
        )

    def vocabulary(self) -> list[Rows]:
        """The parameters with a row for each id."""
        width, l2norm = self.emb_width, self.config.l2norm_embed
        rows: list[Rows] = [
            (self.token_emb, "weight", fresh_rows(lambda n: embedding_table(n, width, l2norm), "weight"))
        ]
        head, read = self.to_logits, self.logits_width
        if head is not None and self.config.logits_dim in (None, self.num_tokens):
            kept = ("weight",) if head.bias is None else ("weight", "bias")
            rows += [(head, name, fresh_rows(lambda n: nn.Linear(read, n), name)) for name in kept]
        if self.tied_bias is not None:
            rows.append((self, "tied_bias", torch.zeros))
        return rows

    def resize_token_embeddings(self, num_tokens: int, *, init: NewRows = "mean", seed: int | None = None) -> Self:
        """Change the number of ids, in place: rows of token_emb, and of the matrix and the bias of the logits.

        Old rows stay bit for bit, and `config` follows, so that the model is saved and read back. Parameters are new objects: make
        the optimizer afterwards, since one made before updates the old ones. Caches made before are refused as stale.

        Args:
            num_tokens: ids from 0 to num_tokens - 1. Fewer than now drops the last rows.
            init: new rows are the "mean" of the old ones, as transformers draws them with mean_resizing=True, but without its tiny
                noise; or "fresh" random ones, as in a new model.
            seed: of fresh rows; None draws from torch's generator. The generator's state is restored.

        Returns:
            The same model.

        Raises:
            ArgumentError, IncompatibleConfig: a size that does not fit, quantized or modified matrices. Nothing is changed then.
        """
        resize = VocabularySize(self, num_tokens, init)
        with seeded(seed):
            resize.apply()
        return self

    def resize_positions(self, max_seq_len: int, how: NewTable | None = None, *, seed: int | None = None) -> Self:
        """Change max_seq_len, in place, and with it the rows of a learned absolute table.

        Where no scheme depends on it, max_seq_len alone changes and every position keeps its numbers. The optimizer and caches: as
        in `resize_token_embeddings`.

        Args:
            max_seq_len: the new length.
            how: the rows of a table: "slice" keeps the first ones of a longer table, "fresh" adds random ones to a shorter one,
                "interpolate" stretches or shrinks all of them linearly, so that the first and the last stay. None where there is
                no table.
            seed: of fresh rows; None draws from torch's generator. The generator's state is restored.

        Returns:
            The same model.

        Raises:
            ArgumentError, IncompatibleConfig: a scheme that is built for max_seq_len (dynamic NTK, LongRoPE, xPos, log_n without a
                length of their own), or a table that `how` does not fit. The model is unchanged then.
        """
        resize = LengthSize(self, max_seq_len, how)
        with seeded(seed):
            resize.apply()
        return self

    def describe(self) -> str:
        """A summary: which schemes apply where, which backend runs and why, dtype, parameters, trained length."""
        return describe(self, self.config)

    def as_ids(self, tokens: Any) -> Tensor:
        """Tokens as they are; lists and numpy arrays as a tensor on the model's device. Raises InputError."""
        ids = as_tensor(tokens, "tokens")
        return ids if ids is tokens else ids.to(next(self.parameters()).device)

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises InputError unless ids are integers of shape [B T] in [0, num_tokens). Forces a device sync."""
        if tokens.dtype not in INTEGERS:
            raise InputError(
                f"tokens must be integer ids; got {tokens.dtype}. Use tokens.long() if they are whole numbers."
            )
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise InputError(
                f"tokens must have shape [batch, tokens], neither of them empty; got {list(tokens.shape)}."
            )
        bounds = read_bounds(tokens)
        if bounds is None:
            return
        low, high = bounds
        if low < 0 or high >= self.num_tokens:
            bad = low if low < 0 else high
            raise InputError(
                f"token id {bad} is outside 0..{self.num_tokens - 1} (num_tokens={self.num_tokens}). Pad with a valid id and "
                "pass mask=, or build the model with a larger num_tokens."
            )

    def check_embeds(self, x: Any, name: str, batch: int | None = None) -> Tensor:
        """Embeddings [B P E] as they are, of `batch` rows where that is given. Raises InputError."""
        return check_embeds(x, name, self.token_emb, self.emb_width, batch)

    def embed_tokens(self, tokens: Any) -> Tensor:
        """Ids [B T] -> [B T E], what `inputs_embeds` takes the place of. Raises InputError for ids out of range."""
        tokens = self.as_ids(tokens)
        self.check_tokens(tokens)
        return self._lookup(tokens)

    @answers("TransformerWrapper.forward", "AttentionLayers.forward")
    def forward(
        self,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        return_embeddings: bool = False,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_positions: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        checked: bool = False,
        seq_lens: SeqLens | None = None,
        attention_mask: Tensor | None = None,
        prefix_len: PrefixLen | None = None,
        token_types: Tensor | None = None,
        targets: Tensor | None = None,
        token_loss: TokenLoss = PLAIN,
        return_attention: bool = False,
    ) -> Tensor | WithMaps:
        """Ids [B T] -> logits [B T V].

        With prepend_embeds a row has P + T places: logits are [B P+T V], and positions, document_ids, seq_lens and targets
        count prepended places like tokens, as a learned table of max_seq_len rows does.

        Args:
            tokens: ids; with a cache, the new ones alone.
            mask: [B T] bool, True = keep; padding may be on either side. Positions follow it unless given.
            positions: [B T] or [B T A], ints or floats; a cache continues after the largest one.
            document_ids: [B T], packed rows whose documents do not attend to each other; positions restart at each unless given.
            cache: from `new_cache`.
            return_embeddings: return the last hidden states [B T M] in place of logits.
            context: [B S C], for layers with cross-attention.
            context_mask: [B S] bool, True = keep.
            context_positions: [B S], to apply positions in cross-attention too.
            inputs_embeds: [B T E] in place of tokens: what `embed_tokens` returns for ids, so emb_scale is not applied to them.
                Token types, positions, norm, dropout and projections follow.
            prepend_embeds: [B P E], such as a soft prompt or an image, before tokens or inputs_embeds. A mask or token_types of
                [B T] then keep these places, as type 0; of [B P+T] they cover them too.
            checked: skip the checks that force a device sync; the caller guarantees that ids are in range, float positions
                finite, and that the mask shows a token.
            seq_lens: the lengths of the documents, in place of document_ids: one list for all rows, or one a row.
            attention_mask: [B S] bool or 0/1 integers is padding, as `mask`; with a cache S may also cover the earlier tokens.
                [B T S] or [B 1 T S] bool is who sees whom, True = may attend, in place of the causal mask; padding, documents and
                windows (|distance| < size) still hide. Its columns are the cached tokens by index, then the T tokens of this
                call. A token that may see nothing gets zeros from attention; forget gates count hidden tokens too.
            prefix_len: the first `prefix_len` tokens of each row see each other, the rest is causal (a prefix LM): one number, or
                [B]. It counts tokens, not padding. With a cache, they must be read in the call that starts the row.
            token_types: [B T], the type of each token; 0 where none are given.
            targets: [B T] int64 ids, -100 where there is none: return the sum of their cross entropies (nats), in float32 or
                float64, in place of logits, which are computed by chunks of tokens. The caller guarantees their range.
            token_loss: what is computed with targets: label smoothing, z-loss, and the sum or the loss of each token [B T].
            return_attention: return (logits, maps), where maps[i] is the attention map [B H T S] of layer i: probabilities before
                dropout, in float32 or wider, zeros at hidden keys and in the rows of padding. Column j is token j of the input;
                with a cache, token j of the row without its padding. None for a layer without self-attention. A stack with
                cross-attention returns (logits, maps, cross_maps). What is returned in place of logits comes first likewise.

        Raises:
            InputError, PositionError, CacheError: before any kernel runs.
        """
        if tokens is not None:
            tokens = self.as_ids(tokens)
            if not checked:
                self.check_tokens(tokens)
        if tokens is None or inputs_embeds is not None or prepend_embeds is not None:
            row = parts_of(tokens, inputs_embeds, prepend_embeds, self.check_embeds)
            mask, token_types = with_prepended(mask, "mask", row, 1), with_prepended(token_types, "token_types", row, 0)
            check_covers_prepended(row, positions=positions, document_ids=document_ids)
        else:
            row = (tokens,)
        batch, length, device = row[0].shape[0], places(row), row[0].device
        if mask is not None and cache is None and not checked:
            check_shows_a_token(as_tensor(mask, "mask"))
        if targets is not None:
            self._check_targets(targets, (batch, length), return_embeddings)
        layers = self.attn_layers
        layout = layers.layout(
            batch,
            length,
            device,
            mask=mask,
            positions=positions,
            document_ids=document_ids,
            seq_lens=seq_lens,
            attention_mask=attention_mask,
            prefix_len=prefix_len,
            cache=cache,
            around=self,
            checked=checked,
        )
        x = self._embed(row, token_types, layout)
        maps = layers.map_collector() if return_attention else None
        x = layers.run(x, layout, cache, ContextInputs(context, context_mask, context_positions), maps)
        out = x if return_embeddings else self._output(x, targets, token_loss)
        return out if maps is None else maps.beside(out)

    def _output(self, x: Tensor, targets: Tensor | None, token_loss: TokenLoss) -> Tensor:
        """Hidden states [B T M] -> logits [B T V], the cross entropies of the targets, or without a head what it would read."""
        if targets is not None:
            return self.token_losses(x, targets, token_loss)
        return self.logits(x) if self.has_head else self.projected(x)

    def token_losses(self, x: Tensor, targets: Tensor, token_loss: TokenLoss = PLAIN) -> Tensor:
        """Hidden states [B T M] -> what `forward` returns for targets [B T], without holding all logits."""
        x, matrix = self._features(x).flatten(0, 1), self.unembedding()
        found = cross_entropy_by_chunks(x, targets.flatten(), self._logits_of_features, matrix, token_loss)
        return found if token_loss.reduction == "sum" else found.view_as(targets)

    def _check_targets(self, targets: Tensor, shape: tuple[int, int], return_embeddings: bool) -> None:
        """Raises InputError."""
        if not self.has_head or return_embeddings:
            reason = "return_embeddings=True leaves out" if self.has_head else f"{type(self).__name__} has none of"
            raise InputError(f"targets are compared with logits, but {reason} them. Leave targets out.")
        if targets.shape != shape or targets.dtype != torch.int64:
            raise InputError(
                f"targets must be torch.int64 of shape {list(shape)}, that of the places; got {targets.dtype} of shape "
                f"{list(targets.shape)}."
            )

    def _lookup(self, tokens: Tensor) -> Tensor:
        """[B T] -> [B T E]."""
        return self.scaled(self.token_emb(tokens.long()))

    def scaled(self, x: Tensor) -> Tensor:
        """Rows of the table of embeddings [... E] -> what `inputs_embeds` takes: times emb_scale, normalised with l2norm_embed."""
        x = x if self.config.emb_scale is None else x * x.new_full((), self.config.emb_scale)  # rounded to the dtype
        return F.normalize(x, dim=-1) if self.config.l2norm_embed else x

    def _embed(self, row: Sequence[Part], token_types: Tensor | None, layout: TokenLayout) -> Tensor:
        """Parts of a row -> [B T M], positions included."""
        parts = [self._lookup(part) if part.ndim == 2 else part for part in row]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        x = self._add_types(x, token_types)
        project, first = self.project_emb, self.config.emb_proj_first
        x = project(x) if project is not None and first else x
        x = self.attn_layers.embed(x, layout)
        x = self.emb_dropout(x if self.emb_norm is None else self.emb_norm(x))
        return project(x) if project is not None and not first else x

    def projected(self, x: Tensor) -> Tensor:
        """[... M] -> what the last projection reads: projected to emb_dim with logits_proj, otherwise unchanged."""
        return x if self.project_out is None else self.project_out(x)

    def _add_types(self, x: Tensor, types: Tensor | None) -> Tensor:
        """[B T M] plus the embeddings of token types [B T], 0 where none are given. Raises InputError."""
        emb = self.token_type_emb
        if emb is None:
            if types is not None:
                raise InputError("token_types were given, but this model has no token type embeddings. Leave them out.")
            return x
        if types is None:
            return x + emb(torch.zeros(1, 1, dtype=torch.long, device=x.device))
        types = as_tensor(types, "token_types").to(x.device)
        needed = f"token_types must be integers from 0 to {self.token_types - 1} of shape {list(x.shape[:2])}; got "
        if types.shape != x.shape[:2] or types.dtype not in INTEGERS:
            raise InputError(f"{needed}{types.dtype} of shape {list(types.shape)}.")
        low, high = read_bounds(types) or (0, 0)
        if low < 0 or high >= self.token_types:
            raise InputError(f"{needed}{low} to {high}.")
        return x + emb(types.long())

    def _tied_logits(self, x: Tensor) -> Tensor:
        """[... E] -> the products with the embedding of every id [... V], that of a wrapped table included."""
        if isinstance(self.token_emb, Int8Embedding):
            return self.token_emb.unembed(x)
        weight = plain_weight(self.token_emb)
        return F.linear(x, self.token_emb(torch.arange(self.num_tokens, device=x.device)) if weight is None else weight)

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states [... M] -> logits [... V]."""
        return self._logits_of_features(self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        """Hidden states [... M] -> what the matrix of the logits reads."""
        return self.projected(x if self.head is None else self.head(x))

    def _logits_of_features(self, x: Tensor) -> Tensor:
        to_logits = self.to_logits
        if to_logits is None:
            x = self._tied_logits(x) * self.tie_scale
            x = x if self.tied_bias is None else x + self.tied_bias
        else:
            x = linear(to_logits, x)
        scale, cap = self.config.logits_scale, self.config.logits_softcap
        x = x if scale is None else x * scale
        return x if cap is None else cap * torch.tanh(x / cap)

    def unembedding(self) -> Unembedding | None:
        """What `_logits_of_features` computes, as tensors; None where its matrix is of a module that was wrapped or changed."""
        head = self.to_logits
        weight = plain_weight(self.token_emb if head is None else head)
        if weight is None:
            return None
        bias, factor = (self.tied_bias, self.tie_scale) if head is None else (head.bias, 1.0)
        scale, cap = self.config.logits_scale, self.config.logits_softcap
        if scale is not None:
            bias, factor = None if bias is None else bias * scale, factor * scale
        return Unembedding(weight, bias, factor, cap)


class TokenEncoder(TransformerWrapper):
    """Token ids -> hidden states [B T M]: a TransformerWrapper without a head. With logits_proj their width is emb_dim."""

    has_head = False


def build_model(config: ModelConfig | Mapping[str, Any]) -> TransformerWrapper:
    """The model of a config. Raises IncompatibleConfig with every problem at once."""
    return TransformerWrapper.from_config(config)
