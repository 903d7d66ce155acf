"""Training loss and text generation of a language model.

B batch, T prompt tokens, N new tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, overload

from torch import Tensor, nn
from typing_extensions import Self

from x_positional.attention.cache import KVCache
from x_positional.attention.embeds import arguments_of, check_covers_prepended, parts_of, places, with_prepended
from x_positional.attention.inputs import (
    SeqLens,
    check_documents,
    check_finite,
    check_positions,
    check_shows_a_token,
    packed_documents,
    token_mask,
)
from x_positional.attention.visibility import PrefixLen, prefix_of_loss
from x_positional.config.flags.answers import answers
from x_positional.config.models import ModelConfig
from x_positional.errors import InputError
from x_positional.generation.beam_search import decode_loop
from x_positional.generation.decoding import DecodeLoop
from x_positional.generation.options import (
    DecodeOptions,
    GenerateAndReturnAll,
    GenerateAndReturnCache,
    GenerateAndReturnLogProbs,
    GenerateOptions,
)
from x_positional.generation.parameters import parameters_of
from x_positional.generation.prompts import EmbedsLike, PromptsLike, as_ids, read_prompts
from x_positional.generation.sampling import is_integer
from x_positional.models.absent import ExplainsAbsent
from x_positional.models.language import TransformerWrapper
from x_positional.models.loss import LossOptions, Reduction, marked_labels, sums_by_chunks, targets_after
from x_positional.models.resize import NewRows, NewTable, VocabularySize, seeded
from x_positional.modules.cross_entropy import NO_TARGET

NET_CALL = ("TransformerWrapper.forward", "AttentionLayers.forward")
"""The tables of the calls that x-transformers passes further keywords on to."""


@dataclass(frozen=True, eq=False)
class LossInputs:
    """What a loss reads and predicts: the arguments of `forward` with the same names, see there."""

    tokens: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None
    document_ids: Tensor | None = None
    _: KW_ONLY
    labels: Tensor | None = None
    loss_mask: Tensor | None = None
    inputs_embeds: Tensor | None = None
    prepend_embeds: Tensor | None = None
    seq_lens: SeqLens | None = None
    prefix_len: PrefixLen | None = None


@dataclass(frozen=True)
class _Batch:
    """The checked inputs of a loss: rows of P prepended places and T tokens."""

    row: tuple[Tensor, ...]
    """The parts of a row, as in `parts_of`."""
    present: Tensor | None
    """[B P+T] bool; None where no mask was given: positions of -1 carry it too."""
    positions: Tensor | None
    documents: Tensor | None
    targets: Tensor
    """[B P+T-1]."""
    prefix_len: int | Tensor | None
    """How many of the first places see each other."""

    def all_but_last(self) -> tuple[Tensor | None, dict[str, Any]]:
        """The tokens of a model's call that predicts every place but the first, and its keyword arguments."""
        tokens, given = arguments_of([*self.row[:-1], self.row[-1][:, :-1]])
        of_places = {"mask": self.present, "positions": self.positions, "document_ids": self.documents}
        cut = {name: None if value is None else value[:, :-1] for name, value in of_places.items()}
        prefix = {} if self.prefix_len is None else {"prefix_len": self.prefix_len}
        return tokens, {**given, **cut, **prefix}


class AutoregressiveWrapper(ExplainsAbsent):
    """Next-token loss and sampling for a `TransformerWrapper` of a Decoder.

    Args:
        net: The model.
        ignore_index: Targets with this id do not count; the model is fed `pad_value` in their place.
        pad_value: The id that fills rows after their eos.
    """

    @answers("AutoregressiveWrapper")
    def __init__(self, net: TransformerWrapper, ignore_index: int = -100, pad_value: int = 0):
        super().__init__()
        config = _config_of(net)
        if config.layers.kind != "decoder":
            raise InputError(
                "AutoregressiveWrapper predicts each token from those before it, but layers of kind "
                f"{config.layers.kind!r} attend to all tokens. Use a Decoder."
            )
        if config.logits_dim not in (None, net.num_tokens):
            raise InputError(
                f"logits_dim={config.logits_dim} differs from num_tokens={net.num_tokens}: a language model needs one "
                "logit per token. Leave logits_dim out."
            )
        if not is_integer(ignore_index):
            raise InputError(f"ignore_index={ignore_index!r} must be an integer.")
        if not is_integer(pad_value) or not 0 <= pad_value < net.num_tokens:
            raise InputError(
                f"pad_value={pad_value!r} is fed to the model, so it must be from 0 to {net.num_tokens - 1}."
            )
        self.net, self.ignore_index, self.pad_value = net, ignore_index, pad_value

    @answers("AutoregressiveWrapper.forward", *NET_CALL)
    def forward(
        self,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        reduction: Reduction = "mean",
        num_targets: float | Tensor | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        seq_lens: SeqLens | None = None,
        prefix_len: PrefixLen | None = None,
    ) -> Tensor:
        """Mean cross entropy (nats) of tokens 1 .. T-1, each predicted from those before it, in float32 or wider.

        Padding, the token after left padding, ignore_index and the first token of a packed document are not targets. Without
        any target the loss is 0, and so is its gradient. Prepended embeddings are no targets; with them token 0 is one too, as it
        is predicted from the last of them.

        Args:
            tokens: [B T] ids, T at least 2, or 1 after prepended embeddings.
            mask: [B T] bool, True = keep.
            positions: [B T] or [B T A], -1 for no token.
            document_ids: [B T], the document that each token of a packed row belongs to.
            labels: [B T] the target of each place, ignore_index for a token that is read but is no target, such as the prompt
                in instruction tuning. They align with tokens and are shifted here, as in transformers. Defaults to tokens.
            loss_mask: [B T] bool, True = this token is a target, unless labels or padding exclude it. Shifted like labels.
            reduction: "mean" over the targets, "sum", or "none": [B T-1], or [B P+T-1] after P prepended embeddings, 0 where there
                is no target.
            num_targets: What the mean divides by in place of the targets of this batch: their number in all micro-batches of a
                step, from `count_targets`. Then the losses and gradients of the micro-batches add up to those of one batch.
            label_smoothing: Share of each target that is spread evenly over the vocabulary, as in torch's cross_entropy
                (Szegedy et al. 2016, arXiv:1512.00567, section 7).
            z_loss: Weight of logsumexp(logits)^2, added for each target (PaLM: Chowdhery et al. 2022, arXiv:2204.02311,
                section 5, with 1e-4).
            context: [B S M] for cross-attention.
            context_mask: [B S] bool, True = keep.
            inputs_embeds: [B T E] in place of tokens; needs labels.
            prepend_embeds: [B P E] before the tokens, such as a soft prompt. Positions, documents and seq_lens then cover P + T
                places; labels cover the T tokens, and so may a mask: see `TransformerWrapper.forward`.
            seq_lens: The lengths of packed documents, in place of `document_ids`.
            prefix_len: The first `prefix_len` tokens of each row see each other (a prefix LM): one number, or [B]. They are
                context and no targets, whatever `labels` are, since the model sees them; the loss is on the tokens after them.

        Raises:
            InputError: For fewer than two tokens, a mask that hides all of them, and ids, labels, masks, positions, documents
                or options that do not fit.
        """
        inputs = LossInputs(
            tokens,
            mask,
            positions,
            document_ids,
            labels=labels,
            loss_mask=loss_mask,
            inputs_embeds=inputs_embeds,
            prepend_embeds=prepend_embeds,
            seq_lens=seq_lens,
            prefix_len=prefix_len,
        )
        options = LossOptions(reduction, num_targets, label_smoothing, z_loss)
        batch = self._read(inputs, options)
        targets, token_loss = batch.targets, options.token_loss()
        by_chunks = sums_by_chunks(self.net, targets, token_loss.reduction)
        inner = {"targets": targets, "token_loss": token_loss} if by_chunks else {}
        read, places_given = batch.all_but_last()
        found = self.net(read, context=context, context_mask=context_mask, checked=True, **places_given, **inner)
        if not by_chunks:
            found = token_loss.of_logits(found.flatten(0, 1), targets.flatten())
            found = found if token_loss.reduction == "sum" else found.view_as(targets)
        return options.reduced(found, targets)

    @parameters_of(LossInputs)
    def count_targets(self, inputs: LossInputs) -> Tensor:
        """The number of targets of `forward` with these arguments, as a tensor [] on the device of the tokens.

        `total = sum(model.count_targets(part) for part in parts)`, then `model(part, num_targets=total).backward()` for each
        part, gives the gradients of one batch with the rows of all parts. Raises InputError as `forward` does.
        """
        return (self._read(inputs, LossOptions()).targets != NO_TARGET).sum()

    def _read(self, inputs: LossInputs, options: LossOptions) -> _Batch:
        """Raises InputError."""
        row, labels = self._row(inputs, options)
        batch, length, device = row[0].shape[0], places(row), row[0].device
        mask, positions = with_prepended(inputs.mask, "mask", row, 1), inputs.positions
        check_covers_prepended(row, positions=positions, document_ids=inputs.document_ids)
        positions = None if positions is None else check_positions(positions, batch, length)
        if positions is not None:
            check_finite(positions)
        present = token_mask(batch, length, mask, positions)
        if present is not None:
            check_shows_a_token(present)
        documents = packed_documents(inputs.document_ids, inputs.seq_lens, batch, length)
        if documents is not None:
            documents = check_documents(documents, batch, length).to(device)
        prefix, prepended = None, length - labels.shape[1]
        if inputs.prefix_len is not None:
            prefix, hidden = prefix_of_loss(inputs.prefix_len, batch, length, present)
            labels = labels.masked_fill(hidden[:, prepended:].to(device), NO_TARGET)
        targets = targets_after(labels, prepended, present, documents)
        return _Batch(row, None if inputs.mask is None else present, positions, documents, targets, prefix)

    def _row(self, inputs: LossInputs, options: LossOptions) -> tuple[tuple[Tensor, ...], Tensor]:
        """The parts of a row, as in `parts_of`, with ids that the model can read, and marked labels [B T]. Raises InputError."""
        tokens, prepend_embeds = inputs.tokens, inputs.prepend_embeds
        if tokens is not None:
            tokens = as_ids(self.net.as_ids(tokens))
            if tokens.ndim != 2 or tokens.shape[1] < 2 - (prepend_embeds is not None):
                raise InputError(f"a loss needs [batch, tokens] with at least two tokens; got {list(tokens.shape)}.")
        row = parts_of(tokens, inputs.inputs_embeds, prepend_embeds, self.net.check_embeds)
        if places(row) < 2:
            raise InputError(f"a loss needs at least two places a row; inputs_embeds has shape {list(row[-1].shape)}.")
        known = {"ignore_index": self.ignore_index, "num_tokens": self.net.num_tokens}
        marked = marked_labels(row[-1], inputs.labels, inputs.loss_mask, options=options, **known)
        if tokens is None:
            return row, marked
        ids = tokens.masked_fill(tokens == self.ignore_index, self.pad_value)
        self.net.check_tokens(ids)
        return (*row[:-1], ids), marked

    def resize_token_embeddings(self, num_tokens: int, *, init: NewRows = "mean", seed: int | None = None) -> Self:
        """As `TransformerWrapper.resize_token_embeddings`; pad_value must stay an id."""
        resize = VocabularySize(self.net, num_tokens, init, self.pad_value)
        with seeded(seed):
            resize.apply()
        return self

    def resize_positions(self, max_seq_len: int, how: NewTable | None = None, *, seed: int | None = None) -> Self:
        """As `TransformerWrapper.resize_positions`."""
        self.net.resize_positions(max_seq_len, how, seed=seed)
        return self

    @overload
    @parameters_of(GenerateAndReturnAll)
    def generate(self, options: GenerateAndReturnAll) -> tuple[Tensor, Tensor, KVCache]: ...
    @overload
    @parameters_of(GenerateAndReturnLogProbs)
    def generate(self, options: GenerateAndReturnLogProbs) -> tuple[Tensor, Tensor]: ...
    @overload
    @parameters_of(GenerateAndReturnCache)
    def generate(self, options: GenerateAndReturnCache) -> tuple[Tensor, KVCache]: ...
    @overload
    @parameters_of(GenerateOptions)
    def generate(self, options: GenerateOptions) -> Tensor: ...
    @answers("AutoregressiveWrapper.generate", *NET_CALL)
    @parameters_of(GenerateOptions)
    def generate(self, options: GenerateOptions) -> Any:
        """Continue prompts by up to `seq_len` tokens. The parameters are the fields of `GenerateOptions`.

        Frequencies with length_policy="fixed" and no length are those of a row's prompt plus seq_len, or of the
        final_lengths that the cache was made with.

        Returns:
            The new tokens [R N], R the number of prompts times num_return_sequences ([N] for one sequence of one prompt [T]);
            with `return_log_probs=True` also their log-probabilities, of the same shape; with `return_cache=True` also the
            cache, to pass as `cache`: it has R rows.

        Raises:
            InputError, PositionError, CacheError, ArgumentError: Before anything is computed.
            SamplingError: No token can be drawn, or beam search finds fewer sequences than are returned.
        """
        return decode_loop(self.net, options, self.pad_value).results()

    @answers("AutoregressiveWrapper.stream", "AutoregressiveWrapper.generate", *NET_CALL)
    @parameters_of(DecodeOptions)
    def stream(self, options: DecodeOptions) -> Iterator[Tensor]:
        """The tokens of `generate`, [B] at a time as they are drawn. The parameters are the fields of `DecodeOptions`.

        A `cache` holds every token that was handed out, also if the caller stops early.
        """
        return DecodeLoop(self.net, options, self.pad_value).stream()

    @answers("AutoregressiveWrapper.prefill", "AutoregressiveWrapper.generate", *NET_CALL)
    def prefill(
        self,
        prompts: PromptsLike,
        *,
        prompt_lens: Tensor | Sequence[int] | None = None,
        cache: KVCache | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
        prepend_embeds: EmbedsLike = None,
        prefill_chunk_size: int | None = None,
        prefix_len: PrefixLen | Literal["prompt"] | None = None,
    ) -> KVCache:
        """Read prompts into a cache, without new tokens: a prefix that several calls of `generate` continue.

        `generate(prompts, seq_len, cache=prefix.copy().repeat(len(prompts)))` continues one prefix in every row, and
        `generate(None, seq_len, cache=prefix.copy().repeat(4))` draws four samples of it.

        Args:
            prompts: One prompt [T], a right-padded batch [B T] with `prompt_lens`, or a list of prompts.
            prompt_lens: [B] the number of tokens in each row of a padded batch.
            cache: Filled and returned. By default a new one, in which each token attends to the last max_seq_len tokens.
            context: [B S M] for the model's cross-attention.
            context_mask: [B S] bool, True = keep.
            positions: [B T] or [B T A] positions of the prompts, -1 for no token.
            prepend_embeds: [B P E] before the prompts, as in `generate`.
            prefill_chunk_size: Tokens to read at a time; None reads them in one pass.
            prefix_len: How many first tokens of each prompt see each other; "prompt" is all of them.

        Raises:
            InputError, PositionError, CacheError, ArgumentError: Before anything is computed.
        """
        if cache is None:
            device = next(self.parameters()).device
            rows = read_prompts(prompts, prompt_lens, None, device, prepend_embeds, self.net.check_embeds).tokens
            cache = self.net.new_cache(len(rows), window=self.net.max_seq_len)
        options = DecodeOptions(
            prompts,
            0,
            prompt_lens=prompt_lens,
            restrict_to_max_seq_len=False,  # the cache decides
            cache=cache,
            context=context,
            context_mask=context_mask,
            positions=positions,
            prepend_embeds=prepend_embeds,
            prefill_chunk_size=prefill_chunk_size,
            prefix_len=prefix_len,
        )
        DecodeLoop(self.net, options, self.pad_value).generate()
        return cache


def _config_of(net: Any) -> ModelConfig:
    """The config of a language model. Raises InputError for anything else."""
    config = getattr(net, "config", None)
    if not isinstance(config, ModelConfig):
        reason = "" if not isinstance(net, nn.Module) else ", which has no logits of a vocabulary"
        raise InputError(
            f"AutoregressiveWrapper needs a TransformerWrapper; got {type(net).__name__}{reason}. For continuous outputs "
            "use ContinuousAutoregressiveWrapper."
        )
    if not net.has_head:
        raise InputError(
            f"AutoregressiveWrapper needs logits, but {type(net).__name__} has none. Use a TransformerWrapper."
        )
    return config
