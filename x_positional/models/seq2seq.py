"""Encoder-decoder: a bidirectional encoder of the source, and a causal decoder that attends to its output.

B batch, S source tokens, T target tokens, N new tokens, M model dim.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.attention.cache import KVCache
from x_positional.attention.embeds import with_prepended
from x_positional.config.flags import xtransformer_from_flags
from x_positional.config.flags.answers import answers
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.config.validate import Report, require
from x_positional.config.validate.fields import invalid_fields
from x_positional.errors import ArgumentError, FlagError, InputError, did_you_mean, shown
from x_positional.generation.beam_search import decode_loop
from x_positional.generation.decoding import DecodeLoop
from x_positional.generation.eval_mode import in_eval_mode
from x_positional.generation.parameters import parameters_of
from x_positional.generation.source import (
    DecodeFromSource,
    GenerateFromSource,
    GenerateFromSourceAndReturnAll,
    GenerateFromSourceAndReturnCache,
    GenerateFromSourceAndReturnLogProbs,
)
from x_positional.models.absent import ExplainsAbsent
from x_positional.models.autoregressive import NET_CALL, AutoregressiveWrapper
from x_positional.models.describe import describe
from x_positional.models.language import TokenEncoder, TransformerWrapper
from x_positional.models.loss import Reduction
from x_positional.models.resize import LengthSize, NewRows, NewTable, VocabularySize, seeded
from x_positional.models.saving import Saveable

Side = Literal["both", "encoder", "decoder"]
"""What of an encoder-decoder to change."""
DECODER_CALL = ("AutoregressiveWrapper.generate", *NET_CALL)
"""The tables of the calls that x-transformers passes further keywords of `generate` on to."""


class XTransformer(ExplainsAbsent, Saveable):
    """`XTransformer(dim=512, enc_num_tokens=256, enc_depth=6, enc_heads=8, enc_max_seq_len=1024, dec_...=..., ...)`.

    Takes the flags of TransformerWrapper and of the layers with the prefix `enc_` or `dec_`. With tie_token_emb both sides
    share one embedding, so they need equal num_tokens and emb_dim.
    """

    def __init__(self, *, dim: int, **flags: Any):
        config = Seq2SeqConfig.model_validate(xtransformer_from_flags(dim, flags))
        if problems := seq2seq_problems(config):
            raise FlagError("XTransformer", problems)
        self._assemble(config)

    @classmethod
    def from_config(cls, config: Seq2SeqConfig | Mapping[str, Any]) -> Self:
        """The model of a `Seq2SeqConfig` (or of its fields as a dict). Raises IncompatibleConfig with every problem."""
        config = Seq2SeqConfig.model_validate(config)
        require(Report(errors=invalid_fields(config) or seq2seq_problems(config)))
        model = cls.__new__(cls)
        model._assemble(config)
        return model

    def _assemble(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.encoder = TokenEncoder.from_config(config.encoder)
        net = TransformerWrapper.from_config(config.decoder)
        if config.tie_token_emb:
            net.token_emb = self.encoder.token_emb
        self.decoder = AutoregressiveWrapper(net, ignore_index=config.ignore_index, pad_value=config.pad_value)
        self.config = config

    def resize_token_embeddings(
        self, num_tokens: int, *, side: Side = "both", init: NewRows = "mean", seed: int | None = None
    ) -> Self:
        """As `TransformerWrapper.resize_token_embeddings`, of the "encoder", the "decoder" or "both", which tie_token_emb needs.

        Resize the model rather than `encoder` or `decoder` themselves: its `config` follows.
        """
        sides = self._sides(side)
        if self.config.tie_token_emb and side != "both":
            raise ArgumentError(
                f"side={side!r} resizes one side, but tie_token_emb=True shares one embedding. Leave side out to resize both."
            )
        self._check_shared_module()
        pads = {"decoder": self.decoder.pad_value}
        resizes = [VocabularySize(net, num_tokens, init, pads.get(name)) for name, net in sides.items()]
        shared: dict[int, nn.Parameter] = {}
        with seeded(seed):
            for resize in resizes:
                resize.apply(shared)
        self._follow_sides()
        return self

    def resize_positions(
        self, max_seq_len: int, how: NewTable | None = None, *, side: Side = "both", seed: int | None = None
    ) -> Self:
        """As `TransformerWrapper.resize_positions`, of the "encoder", the "decoder" or "both"."""
        resizes = [LengthSize(net, max_seq_len, how) for net in self._sides(side).values()]
        with seeded(seed):
            for resize in resizes:
                resize.apply()
        self._follow_sides()
        return self

    def _sides(self, side: Side) -> dict[str, TransformerWrapper]:
        """The models of a side by name. Raises ArgumentError."""
        if side not in get_args(Side):
            raise ArgumentError(f"unknown side={shown(side)}; {did_you_mean(str(side), get_args(Side))}")
        both = {"encoder": self.encoder, "decoder": self.decoder.net}
        return both if side == "both" else {side: both[side]}

    def _follow_sides(self) -> None:
        """Take over the configs of both sides."""
        sides = {"encoder": self.encoder.config, "decoder": self.decoder.net.config}
        self.config = self.config.model_copy(update=sides)

    def describe(self) -> str:
        """A readable summary of both sides."""
        sides = (("encoder", self.encoder), ("decoder", self.decoder.net))
        return "\n".join(f"{name}\n{describe(side, side.config)}" for name, side in sides)

    def _check_shared_module(self) -> None:
        """Raises InputError where the embedding of one side alone was replaced, by an adapter for example."""
        if self.config.tie_token_emb and self.decoder.net.token_emb is not self.encoder.token_emb:
            raise InputError(
                "tie_token_emb=True shares one embedding, but encoder.token_emb and decoder.net.token_emb are different modules. "
                "After replacing or wrapping one of them, assign it to the other side too: "
                "model.decoder.net.token_emb = model.encoder.token_emb."
            )

    def _check_shared_embedding(self) -> None:
        """Raises InputError where the embedding of one side alone was replaced or resized."""
        self._check_shared_module()
        sizes = self.encoder.num_tokens, self.decoder.net.num_tokens
        if self.config.tie_token_emb and sizes[0] != sizes[1]:
            raise InputError(
                f"tie_token_emb=True shares one embedding, but the encoder has num_tokens={sizes[0]} and the decoder {sizes[1]}: "
                "one side was resized alone. Resize both with model.resize_token_embeddings(num_tokens)."
            )

    def _source(
        self, src: Tensor | None, mask: Tensor | None, inputs_embeds: Tensor | None, prepend_embeds: Tensor | None
    ) -> dict[str, Tensor | None]:
        """What cross-attention reads: the encoder's output, and the mask of its places."""
        embeds = {"inputs_embeds": inputs_embeds, "prepend_embeds": prepend_embeds}
        context = self.encoder(src, mask=mask, **embeds)
        if prepend_embeds is not None and mask is not None:
            given = src if inputs_embeds is None else inputs_embeds
            mask = with_prepended(mask, "mask", (prepend_embeds, self.encoder.as_ids(given)), 1)
        return {"context": context, "context_mask": mask}

    @answers("XTransformer.forward", *NET_CALL)
    def forward(
        self,
        src: Tensor | None,
        tgt: Tensor,
        mask: Tensor | None = None,
        *,
        tgt_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        src_prepend_embeds: Tensor | None = None,
        loss_mask: Tensor | None = None,
        reduction: Reduction = "mean",
        num_targets: float | Tensor | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor:
        """Source ids [B S], target ids [B T] -> mean cross entropy (nats) of target tokens 1 .. T-1.

        Args:
            src: [B S] source ids.
            tgt: [B T] target ids.
            mask: [B S] bool, True = keep.
            tgt_mask: [B T] bool, True = keep; padding is not a target.
            labels: [B T] the targets where they differ from tgt, as in `AutoregressiveWrapper.forward`.
            inputs_embeds: [B S E] in place of source ids, with src=None: see `TransformerWrapper.forward`.
            src_prepend_embeds: [B P E] before the source; a mask of [B S] keeps them.
            loss_mask: [B T] bool, True = this token is a target, as there.
            reduction: "mean", "sum" or "none", as there.
            num_targets: What the mean divides by, as there: from `decoder.count_targets(tgt, mask=tgt_mask, ...)`.
            label_smoothing: As there.
            z_loss: As there.
        """
        self._check_shared_embedding()
        return self.decoder(
            tgt,
            mask=tgt_mask,
            labels=labels,
            loss_mask=loss_mask,
            reduction=reduction,
            num_targets=num_targets,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            **self._source(src, mask, inputs_embeds, src_prepend_embeds),
        )

    @answers("XTransformer.logits", "XTransformer.forward", *NET_CALL)
    def logits(
        self,
        src: Tensor | None,
        tgt: Tensor,
        mask: Tensor | None = None,
        *,
        tgt_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        src_prepend_embeds: Tensor | None = None,
    ) -> Tensor:
        """Source ids [B S], target ids [B T] -> logits [B T V], each predicting the next target token.

        Args:
            src: [B S] source ids.
            tgt: [B T] target ids.
            mask: [B S] bool, True = keep.
            tgt_mask: [B T] bool, True = keep.
            inputs_embeds: [B S E] in place of source ids, with src=None.
            src_prepend_embeds: [B P E] before the source.

        Raises:
            InputError, PositionError: For ids, masks or positions that do not fit.
        """
        self._check_shared_embedding()
        return self.decoder.net(tgt, mask=tgt_mask, **self._source(src, mask, inputs_embeds, src_prepend_embeds))

    @overload
    @parameters_of(GenerateFromSourceAndReturnAll)
    def generate(self, options: GenerateFromSourceAndReturnAll) -> tuple[Tensor, Tensor, KVCache]: ...
    @overload
    @parameters_of(GenerateFromSourceAndReturnLogProbs)
    def generate(self, options: GenerateFromSourceAndReturnLogProbs) -> tuple[Tensor, Tensor]: ...
    @overload
    @parameters_of(GenerateFromSourceAndReturnCache)
    def generate(self, options: GenerateFromSourceAndReturnCache) -> tuple[Tensor, KVCache]: ...
    @overload
    @parameters_of(GenerateFromSource)
    def generate(self, options: GenerateFromSource) -> Tensor: ...
    @answers("XTransformer.generate", *DECODER_CALL)
    @parameters_of(GenerateFromSource)
    def generate(self, options: GenerateFromSource) -> Any:
        """Source ids [B S] and target prompts [B T] -> new target tokens [B N].

        The encoder runs once, and the keys of its output are computed once. The parameters are those of
        `AutoregressiveWrapper.generate`, with the source in place of `context`.

        Returns:
            As `AutoregressiveWrapper.generate`.

        Raises:
            InputError, PositionError, CacheError, ArgumentError: Before anything is decoded.
        """
        return self._loop(options).results()

    @answers("XTransformer.stream", "XTransformer.generate", *DECODER_CALL)
    @parameters_of(DecodeFromSource)
    def stream(self, options: DecodeFromSource) -> Iterator[Tensor]:
        """The tokens of `generate`, [B] at a time as they are drawn. The encoder runs before the first one.

        A `cache` holds every token that was handed out, also if the caller stops early.
        """
        return self._loop(options).stream()

    def _loop(self, options: DecodeFromSource) -> DecodeLoop:
        """Encodes the source. Raises as `generate` does."""
        self._check_shared_embedding()
        given = options.src, options.mask, options.inputs_embeds, options.src_prepend_embeds
        source = {}
        if options.reads_source:
            with torch.no_grad():
                source = in_eval_mode(self)._source(*given)
        return decode_loop(self.decoder.net, options.with_context(**source), self.decoder.pad_value)


def seq2seq_problems(config: Seq2SeqConfig) -> list[str]:
    """Problems between the two sides, besides those within either."""
    encoder, decoder, found = config.encoder, config.decoder, []
    kinds = {"encoder": encoder.layers.kind, "decoder": decoder.layers.kind}
    found += [f"the {side} has layers of kind {kind!r}. Use {side!r}." for side, kind in kinds.items() if kind != side]
    if decoder.layers.kind == "decoder" and not decoder.layers.cross_attend:
        found.append("the decoder has no cross-attention, so it would ignore the source. Set cross_attend=True.")
    width, expected = encoder.layers.dim, decoder.layers.context_dim or decoder.layers.dim
    if width != expected:
        found.append(
            f"the decoder's cross-attention expects {expected} channels, but the encoder outputs {width}. "
            f"Set context_dim={width}."
        )
    if config.tie_token_emb:
        ours, theirs = ([side.num_tokens, side.emb_dim or side.layers.dim] for side in (decoder, encoder))
        if ours != theirs:
            found.append(
                f"tie_token_emb=True shares one table, but the decoder's is {ours} and the encoder's {theirs}. "
                "Give both the same num_tokens and emb_dim."
            )
    return found
