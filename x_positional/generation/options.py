"""The parameters of one decoding call, as one validated object.

B batch, T prompt tokens, S context tokens, M model dim, A axes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.attention.visibility import PrefixLen
from x_positional.errors import InputError, shown
from x_positional.generation.beams import BeamRules, EarlyStopping
from x_positional.generation.callbacks import LogitsProcessor, StoppingCriterion, callable_problems
from x_positional.generation.contrast import ContrastWith
from x_positional.generation.prompts import EmbedsLike, PromptsLike
from x_positional.generation.proposals import DraftModel, PromptLookup
from x_positional.generation.sampling import (
    COUNT,
    NON_NEGATIVE,
    POSITIVE,
    FilterChoice,
    LogitsFilter,
    Range,
    is_integer,
    keep_the_largest,
    resolve_filters,
)
from x_positional.generation.speculative import Speculate

AT_LEAST_ONE = Range(1, integer=True)
POWER = Range(-30, 30)
MAX_POWER = 30
"""Decimal digits of length ** length_penalty, at most: float32 holds 38."""


@dataclass(frozen=True, eq=False)
class DecodeOptions:
    """The parameters of `generate` and `stream`.

    Args:
        prompts: One prompt [T], a right-padded batch [B T] with `prompt_lens`, or a list of prompts of any lengths; None
            continues from `cache` or `prepend_embeds` without tokens. Each row gives the tokens it would give alone.
        seq_len: The largest number of new tokens per row.
        eos_token: One end-of-sequence id or several. After its eos a row is filled with `pad_value`; decoding stops
            once every row has ended.
        temperature: Divides the logits before the draw; 0 takes the most likely token that the filters keep.
        prompt_lens: [B] the number of tokens in each row of a padded batch.
        filter_logits_fn: "top_k", "top_p", "min_p", "top_a", "typical", a function of the logits [B V], a list of these
            that is applied in order, or None.
        restrict_to_max_seq_len: Beyond the model's max_seq_len each token attends to the last max_seq_len tokens only;
            False: to all of them.
        filter_kwargs: Options of the filter as a dict; for a list of filters, one dict per filter or {name: dict}.
        cache_kv: Keep keys and values between steps; False recomputes the whole sequence for every token.
        repetition_penalty: Above 1, tokens of the prompt and of this call become less likely; 1 is off.
        generator: Source of random numbers, on the model's device.
        seed: Seed of a new generator, in place of `generator`.
        cache: A cache to continue from, or a new one to fill. Afterwards it holds every token that was read or drawn,
            up to each row's eos; prompts then hold only the tokens that are not in it yet.
        context: [B S M] for the model's cross-attention.
        context_mask: [B S] bool, True = keep.
        compile: True compiles the decoding step, which takes about half a minute once and makes every later step of the
            model faster; False does not; "auto" does once a model on a CPU has been asked for 20,000 tokens.
        positions: [B T] or [B T A] positions of the prompts, -1 for no token; new tokens continue after the largest
            position of their row.
        prepend_embeds: [B P E], or a list of [P E] of any lengths, one a row: embeddings that are read before the prompts, such
            as a soft prompt or an image, as in `TransformerWrapper.forward`. `positions` then cover P + T places, and
            max_seq_len counts them. With prompts=None they are the whole prompt.
        prefill_chunk_size: Read the prompts into the cache this many tokens at a time, which bounds the memory of a long
            prompt; None reads them in one pass. The tokens are the same.
        speculate: `PromptLookup()` or `DraftModel(net)` proposes several tokens, which one pass accepts or rejects: fewer
            passes, and the same distribution of tokens. For a single row.
        contrast: `ContrastWith(amateur)` draws tokens that the model finds likelier than a weaker model does.
        prefix_len: For prefix LMs: the first `prefix_len` tokens of each prompt see each other, one number or [B]; "prompt"
            is the whole prompt. New tokens are causal.
        num_return_sequences: Sequences per prompt, n: rows i * n to i * n + n - 1 continue prompt i. Prompts are read once.
        logits_processors: A function (new tokens [R N], logits [R V]) -> logits [R V], or a list of them, applied after
            the repetition penalty and before filters and temperature. R rows are those of the result, or with beams the
            num_beams beams of each prompt in turn. N counts the tokens of this call, which are 0 at first; prompts are not
            included.
        stopping_criteria: A function of the new tokens [R N], the last one included, or a list of them. It returns a bool
            for all rows or [R] bool; a row that stops is filled with `pad_value`, as after an eos. With beams, R rows are
            the candidates of a step, and those that stop are finished.
    """

    prompts: PromptsLike
    seq_len: int
    eos_token: int | Sequence[int] | None = None
    temperature: float = 1.0
    prompt_lens: Tensor | Sequence[int] | None = None
    filter_logits_fn: FilterChoice | Sequence[FilterChoice] | None = "top_k"
    restrict_to_max_seq_len: bool = True
    filter_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None
    cache_kv: bool = True
    _: KW_ONLY
    repetition_penalty: float = 1.0
    generator: torch.Generator | None = None
    seed: int | None = None
    cache: KVCache | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None
    positions: Tensor | None = None
    prepend_embeds: EmbedsLike = None
    compile: bool | Literal["auto"] = "auto"
    prefill_chunk_size: int | None = None
    speculate: Speculate | None = None
    contrast: ContrastWith | None = None
    prefix_len: PrefixLen | Literal["prompt"] | None = None
    num_return_sequences: int = 1
    logits_processors: LogitsProcessor | Sequence[LogitsProcessor] | None = None
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None
    filters: list[LogitsFilter] = field(init=False, repr=False)
    """The filters as functions [B V] -> [B V]; none where they have no effect."""

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise InputError("\n".join(problems))
        filters = resolve_filters(self.filter_logits_fn, self.filter_kwargs)
        if self.temperature == 0 and keep_the_largest(filters):
            filters = []
        object.__setattr__(self, "filters", filters)

    def _problems(self) -> Iterator[str]:
        if is_integer(self.seq_len) and self.seq_len < 0:
            yield f"seq_len={self.seq_len} is the number of new tokens; it cannot be negative."
        else:
            yield from Range(0, integer=True).problems("seq_len", self.seq_len)
        yield from self._switch_problems()
        if self.cache is not None and not isinstance(self.cache, KVCache):
            yield (
                f"cache={_brief(self.cache)} must be a cache from model.new_cache(batch_size); return_cache=True returns a new one."
            )
        if self.keeps_cache is True and self.cache_kv is False:
            yield "cache= and return_cache=True need cache_kv=True."
        if self.prefill_chunk_size is not None:
            yield from COUNT.problems("prefill_chunk_size", self.prefill_chunk_size)
            if self.cache_kv is False:
                yield "prefill_chunk_size needs cache_kv=True: chunks are read into the cache."
        if self.speculate is not None:
            if not isinstance(self.speculate, PromptLookup | DraftModel):
                yield f"speculate={_brief(self.speculate)} must be PromptLookup(...), DraftModel(net) or None."
            if self.compile is True:
                yield "speculate= and compile=True cannot be combined: the compiled step takes one token."
            if self.logits_processors:
                yield "speculate= and logits_processors= cannot be combined: one pass judges several tokens at once."
        yield from self._contrast_problems()
        if self.seed is not None and self.generator is not None:
            yield "seed= and generator= cannot be combined: each makes the draw reproducible. Pass one."
        if self.seed is not None and not (is_integer(self.seed) and -(2**63) <= self.seed < 2**64):
            yield f"seed={self.seed!r} must be an integer from -2**63 to 2**64 - 1."
        if not isinstance(self.generator, torch.Generator | None):
            yield f"generator={self.generator!r} must be a torch.Generator. seed= takes a number."
        if not (self.compile == "auto" or isinstance(self.compile, bool)):
            yield f"compile={self.compile!r} must be True, False or 'auto'."
        yield from NON_NEGATIVE.problems("temperature", self.temperature)
        yield from POSITIVE.problems("repetition_penalty", self.repetition_penalty)
        yield from callable_problems("logits_processors", self.logits_processors)
        yield from callable_problems("stopping_criteria", self.stopping_criteria)
        yield from self._sequence_problems()

    def _sequence_problems(self) -> Iterator[str]:
        """Options of how many sequences there are."""
        yield from AT_LEAST_ONE.problems("num_return_sequences", self.num_return_sequences)
        if self.beams is None and self.temperature == 0 and self.num_return_sequences != 1:
            yield (
                f"num_return_sequences={self.num_return_sequences} with temperature=0 would return equal sequences. Use a higher "
                "temperature, or generate(..., num_beams=...)."
            )

    def _contrast_problems(self) -> Iterator[str]:
        """Options that contrastive decoding cannot be combined with."""
        if self.contrast is None:
            return
        if not isinstance(self.contrast, ContrastWith):
            yield f"contrast={_brief(self.contrast)} must be ContrastWith(amateur, ...) or None."
        if self.keeps_cache:
            yield "contrast= and cache= or return_cache=True cannot be combined: the amateur's cache ends with the call."
        if self.speculate is not None:
            yield "contrast= and speculate= cannot be combined: proposals are judged by one model."
        if self.prepend_embeds is not None:
            yield "contrast= and prepend_embeds= cannot be combined: embeddings are those of one model."
        if self.compile is True:
            yield "contrast= and compile=True cannot be combined: the compiled step runs one model."
        if self.beams is not None or self.num_return_sequences != 1:
            yield (
                "contrast= and num_beams= or num_return_sequences= cannot be combined: the amateur's cache follows one row per "
                "prompt. Repeat the prompts for several samples."
            )
        if self.keeps_log_probs:
            yield "contrast= and return_log_probs=True cannot be combined: tokens are drawn from two models."

    def _switch_problems(self) -> Iterator[str]:
        """Options that are True or False."""
        for name in ("restrict_to_max_seq_len", "cache_kv"):
            if not isinstance(value := getattr(self, name), bool):
                yield f"{name}={value!r} must be a bool."

    @property
    def keeps_cache(self) -> bool:
        """Whether the cache outlives the call, and so has to hold every token that was handed out."""
        return self.cache is not None

    @property
    def keeps_log_probs(self) -> bool:
        """Whether the log-probabilities of new tokens are computed."""
        return False

    @property
    def beams(self) -> BeamRules | None:
        """The rules of a beam search; None where tokens are drawn."""
        return None


@dataclass(frozen=True, eq=False, kw_only=True)
class BeamOptions(DecodeOptions):
    """The parameters of `stream`, and those of beam search, whose sequences are known only at its end.

    Args:
        num_beams: Above 1, beam search: the `num_return_sequences` best continuations that it finds, best first, by the
            sum of their log-probabilities over length ** length_penalty. Nothing is drawn, and the default filter is not
            applied.
        length_penalty: Above 0 favors long sequences, below 0 short ones.
        early_stopping: When a prompt with num_beams finished sequences is done: True, at once; False, when no running beam
            is better at its present length; "never", when none can become better.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beams is not None:
            object.__setattr__(self, "filters", [])

    @property
    def beams(self) -> BeamRules | None:
        if not is_integer(self.num_beams) or self.num_beams < 2:
            return None
        returned, steps = self.num_return_sequences, self.seq_len
        return BeamRules(self.num_beams, returned, steps, self.length_penalty, self.early_stopping)

    def _sequence_problems(self) -> Iterator[str]:
        yield from super()._sequence_problems()
        yield from AT_LEAST_ONE.problems("num_beams", self.num_beams)
        if not (self.early_stopping == "never" or isinstance(self.early_stopping, bool)):
            yield f"early_stopping={self.early_stopping!r} must be True, False or 'never'."
        yield from POWER.problems("length_penalty", self.length_penalty)
        if self.beams is not None:
            yield from self._beam_problems()
        elif self.num_beams == 1:
            for name, default in (("length_penalty", 1.0), ("early_stopping", False)):
                if (value := getattr(self, name)) != default:
                    yield f"{name}={value!r} has an effect with num_beams above 1 only."

    def _beam_problems(self) -> Iterator[str]:
        """What cannot be combined with a beam search."""
        beams = f"num_beams={self.num_beams}"
        if is_integer(self.num_return_sequences) and self.num_return_sequences > self.num_beams:
            yield f"num_return_sequences={self.num_return_sequences} exceeds {beams}."
        if self.temperature not in (0, 1):
            yield f"{beams} and temperature={self.temperature!r} cannot be combined: beam search draws nothing."
        if self.filter_kwargs is not None or (self.filter_logits_fn is not None and self.filter_logits_fn != "top_k"):
            yield f"{beams} and filters cannot be combined: beam search draws nothing. logits_processors= change its logits."
        if self.speculate is not None:
            yield f"{beams} and speculate= cannot be combined: proposals continue a single row."
        if self.compile is True:
            yield f"{beams} and compile=True cannot be combined: rows of the cache are reordered between steps."
        checked = POWER.allows(self.length_penalty) and is_integer(self.seq_len)
        if checked and abs(self.length_penalty) * math.log10(max(1, self.seq_len)) > MAX_POWER:
            yield f"length_penalty={self.length_penalty!r} overflows for sequences of seq_len={self.seq_len} tokens."


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerateOptions(BeamOptions):
    """The parameters of `generate`.

    Args:
        return_log_probs: Also return the log-probability of each new token [R N] under the model itself: the log-softmax of
            its logits, before repetition penalty, logits processors, filters and temperature. 0 after the end of a row.
        return_cache: Also return the cache.
    """

    return_log_probs: bool = False
    return_cache: bool = False

    def _switch_problems(self) -> Iterator[str]:
        yield from super()._switch_problems()
        for name in ("return_log_probs", "return_cache"):
            if not isinstance(value := getattr(self, name), bool):
                yield f"{name}={value!r} must be a bool."

    @property
    def keeps_cache(self) -> bool:
        return self.return_cache or self.cache is not None

    @property
    def keeps_log_probs(self) -> bool:
        return self.return_log_probs


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerateAndReturnCache(BeamOptions):
    """The parameters of `generate(..., return_cache=True)`, for type checkers alone: that call returns a pair."""

    return_log_probs: Literal[False] = False
    return_cache: Literal[True]


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerateAndReturnLogProbs(BeamOptions):
    """The parameters of `generate(..., return_log_probs=True)`, for type checkers alone: that call returns a pair."""

    return_log_probs: Literal[True]
    return_cache: Literal[False] = False


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerateAndReturnAll(BeamOptions):
    """The parameters of `generate(..., return_log_probs=True, return_cache=True)`, for type checkers alone."""

    return_log_probs: Literal[True]
    return_cache: Literal[True]


def _brief(value: Any) -> str:
    """A value for a message; of a model its class, since its repr has a line for every layer."""
    return type(value).__name__ if isinstance(value, torch.nn.Module) else shown(value)
