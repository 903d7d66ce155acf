"""Pick the next token from logits: filters that remove unlikely tokens, the repetition penalty and the draw itself.

B batch, V vocabulary, T tokens. A filter maps logits [B V] to [B V] of the same dtype: a removed token becomes -inf,
a kept one is unchanged bit for bit, and each row keeps at least one token. Tokens tied at the edge of the kept set are
all kept, so the result does not depend on the order of the vocabulary. Half precision is summed in float32. No filter and
no draw forces a device sync, and a whole step compiles into one graph; that is why options are checked by `Range` and not
by pydantic, whose validators would break the graph.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from numbers import Integral, Real
from types import FunctionType
from typing import Annotated, Any, TypeGuard, get_args

import torch
from torch import Tensor

from x_positional.errors import ArgumentError, SamplingError, did_you_mean, listed
from x_positional.schemes.precision import wide_dtype, widened

LogitsFilter = Callable[..., Tensor]
FilterChoice = str | LogitsFilter
READ_AT_ONCE = ("cpu",)
"""Devices whose values the host reads without waiting for them."""


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer, of Python or of numpy, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Range:
    """The allowed values of a number. `resolve_filters` checks each filter option that is `Annotated` with one."""

    low: float
    high: float = math.inf
    above: bool = False
    """Excludes `low` itself."""
    integer: bool = False
    optional: bool = False
    """Allows None."""

    def __str__(self) -> str:
        noun = "an integer" if self.integer else "a finite number"
        if math.isinf(self.high):
            limits = f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        else:
            limits = f"{'above' if self.above else 'from'} {self.low:g} to {self.high:g}"
        return f"{noun} {limits}{', or None' if self.optional else ''}"

    def allows(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, Integral if self.integer else Real):
            return False
        try:
            number = float(value)
        except OverflowError:  # an integer beyond every float
            return False
        return self.low <= number <= self.high and number < math.inf and not (self.above and number == self.low)

    def problems(self, name: str, value: object) -> Iterator[str]:
        """The message for a value that is not allowed, if it is not."""
        if not self.allows(value):
            yield f"{name}={value!r} must be {self}."

    def require(self, name: str, value: object) -> None:
        """Raises ArgumentError for a value that is not allowed."""
        if not self.allows(value):
            raise ArgumentError(f"{name}={value!r} must be {self}.")


UNIT = Range(0.0, 1.0)
NON_NEGATIVE = Range(0.0)
POSITIVE = Range(0.0, above=True)
COUNT = Range(1, integer=True, optional=True)


def _value_where_mass_is_reached(ordered: Tensor, probs: Tensor, mass: float) -> Tensor:
    """Values [B V] in the order in which they are kept, and their probabilities -> [B 1] the last value to keep.

    It ends the shortest prefix that holds `mass`; the first value is always kept.
    """
    last = (probs.cumsum(-1)[..., :-1] < mass).sum(-1, keepdim=True)
    return ordered.gather(-1, last)


def log_probabilities(logits: Tensor) -> Tensor:
    """Logits [... V] -> their log-softmax [... V], in float32 or wider."""
    return logits.log_softmax(-1, dtype=wide_dtype(logits.dtype))


def top_k(
    logits: Tensor, frac_num_tokens: Annotated[float, UNIT] = 0.1, k: Annotated[int | None, COUNT] = None
) -> Tensor:
    """Keep the k largest logits [B V] (Fan et al. 2018, arXiv:1805.04833), and all that tie with the k-th.

    Args:
        logits: [B V].
        frac_num_tokens: Without k, ceil(frac_num_tokens * V) tokens are kept, at least one. From 0 to 1.
        k: Number of tokens to keep, at least 1; V or more keeps everything.

    Raises:
        ArgumentError: For a value out of range.
    """
    UNIT.require("frac_num_tokens", frac_num_tokens)
    COUNT.require("k", k)
    num_tokens = logits.shape[-1]
    count = max(1, math.ceil(frac_num_tokens * num_tokens)) if k is None else k
    if count >= num_tokens:
        return logits
    threshold = logits.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return logits.masked_fill(logits < threshold, -math.inf)


def top_p(logits: Tensor, thres: Annotated[float, UNIT] = 0.9) -> Tensor:
    """Keep the nucleus of logits [B V]: the fewest most likely tokens whose probabilities sum to at least `thres`.

    Holtzman et al. 2020, arXiv:1904.09751, section 3.1.

    Args:
        logits: [B V].
        thres: 0 keeps the most likely token, 1 keeps everything.

    Raises:
        ArgumentError: For a `thres` outside [0, 1].
    """
    UNIT.require("thres", thres)
    if thres == 1.0:  # a rounded sum may exceed 1 before the last token
        return logits
    ordered = logits.sort(dim=-1, descending=True).values
    threshold = _value_where_mass_is_reached(ordered, ordered.softmax(-1, dtype=wide_dtype(logits.dtype)), thres)
    return logits.masked_fill(logits < threshold, -math.inf)


def min_p(logits: Tensor, min_p: Annotated[float, UNIT] = 0.1) -> Tensor:
    """Keep the tokens with at least `min_p` times the probability of the most likely one.

    Nguyen et al. 2024, arXiv:2407.01082, section 3.

    Args:
        logits: [B V].
        min_p: 0 keeps everything, 1 keeps the most likely token.

    Raises:
        ArgumentError: For a `min_p` outside [0, 1].
    """
    UNIT.require("min_p", min_p)
    if min_p == 0.0:
        return logits
    # p < min_p * p_max, compared as logits: the normalizer of the softmax cancels
    threshold = logits.amax(-1, keepdim=True).to(wide_dtype(logits.dtype)) + math.log(min_p)
    return logits.masked_fill(logits < threshold, -math.inf)


def top_a(
    logits: Tensor, min_p_pow: Annotated[float, NON_NEGATIVE] = 2.0, min_p_ratio: Annotated[float, UNIT] = 0.02
) -> Tensor:
    """Keep the tokens with a probability of at least min_p_ratio * p_max ** min_p_pow.

    The threshold rises with the model's confidence: a flat row keeps nearly everything. With a power below 1 it can exceed
    p_max; the most likely token is kept all the same.

    Args:
        logits: [B V].
        min_p_pow: The power, 0 or more.
        min_p_ratio: The ratio, from 0 to 1; 0 keeps everything.

    Raises:
        ArgumentError: For a value out of range.
    """
    NON_NEGATIVE.require("min_p_pow", min_p_pow)
    UNIT.require("min_p_ratio", min_p_ratio)
    if min_p_ratio == 0.0:
        return logits
    wide = widened(logits)
    largest = wide.amax(-1, keepdim=True)
    surprise = (wide - largest).exp().sum(-1, keepdim=True).log()  # -log p_max
    below = ((1 - min_p_pow) * surprise + math.log(min_p_ratio)).clamp_max(0.0)
    return logits.masked_fill(wide < largest + below, -math.inf)


def typical(logits: Tensor, mass: Annotated[float, UNIT] = 0.9) -> Tensor:
    """Keep the tokens whose surprisal -log p is closest to the entropy, until their probabilities sum to `mass`.

    Meister et al. 2022, arXiv:2202.00666. This may remove the most likely token.

    Args:
        logits: [B V].
        mass: 0 keeps the most typical token, 1 keeps everything.

    Raises:
        ArgumentError: For a `mass` outside [0, 1].
    """
    UNIT.require("mass", mass)
    if mass == 1.0:
        return logits
    log_probs = log_probabilities(logits)
    probs = log_probs.exp()
    entropy = torch.special.entr(probs).sum(-1, keepdim=True)  # entr(0) = 0: removed tokens add nothing
    distance = (log_probs + entropy).abs()
    ordered, order = distance.sort(dim=-1)
    farthest = _value_where_mass_is_reached(ordered, probs.gather(-1, order), mass)
    return logits.masked_fill(distance > farthest, -math.inf)


FILTERS: dict[str, LogitsFilter] = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "top_a": top_a, "typical": typical}


def seen_tokens(tokens: Tensor, num_tokens: int, mask: Tensor | None = None) -> Tensor:
    """Tokens [B T] -> [B V] bool: which tokens each row contains. mask [B T] bool: False = ignore."""
    if mask is not None:
        tokens = torch.where(mask, tokens, num_tokens)
    seen = torch.zeros(tokens.shape[0], num_tokens + 1, dtype=torch.bool, device=tokens.device)
    return seen.scatter_(1, tokens, True)[:, :num_tokens].contiguous()


def mark_seen(seen: Tensor, tokens: Tensor) -> Tensor:
    """Mark new tokens [B] in seen [B V] bool, in place. Returns seen."""
    return seen.scatter_(1, tokens.unsqueeze(1), True)


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens marked in `seen` less likely.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1: the logit of a seen token is divided by the penalty. Dividing a
    negative logit would make the token more likely, so it is multiplied instead, as is common practice.

    Args:
        logits: [B V].
        seen: [B V] bool, from `seen_tokens`.
        penalty: Above 1 repeats get rarer (the paper uses 1.2), below 1 more frequent; 1 has no effect.

    Raises:
        ArgumentError: For a penalty of 0 or less, or a `seen` of another shape or dtype.
    """
    POSITIVE.require("penalty", penalty)
    if seen.dtype != torch.bool or seen.shape != logits.shape:
        raise ArgumentError(
            f"seen is {list(seen.shape)} {seen.dtype}, but the logits {list(logits.shape)} need a bool tensor of the same "
            "shape: make it with seen_tokens(tokens, num_tokens)."
        )
    if penalty == 1.0:
        return logits
    wide = widened(logits)
    return torch.where(seen, torch.where(wide > 0, wide / penalty, wide * penalty), wide).to(logits.dtype)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    filters: Iterable[LogitsFilter] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token per row from softmax(filtered / temperature): logits [B V] -> [B] int64.

    The filters run in order on the logits before the temperature divides them, so the kept tokens do not depend on it.
    Apply `repetition_penalty` before this call. A row without a finite largest logit gets an arbitrary token; `draw` tells.

    Args:
        logits: [B V].
        temperature: 0 takes the largest logit that the filters keep.
        filters: Functions [B V] -> [B V], as `resolve_filters` returns them.
        generator: Source of random numbers on the device of the logits; None uses torch's global one.

    Raises:
        ArgumentError: For a negative or infinite temperature, or a filter that changes the shape.
    """
    NON_NEGATIVE.require("temperature", temperature)
    return draw(logits, temperature, filters, generator)[0]


def draw(
    logits: Tensor,
    temperature: float = 1.0,
    filters: Iterable[LogitsFilter] = (),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The tokens [B] of `sample`, and the largest filtered logit of each row [B], for `LogitsGuard`. Options are not checked.

    The largest logit is NaN where any is NaN, and -inf where the filters leave no token.
    """
    for keep in filters:
        logits = _filtered(keep, logits)
    if temperature == 0:
        largest, tokens = logits.max(-1)
        return tokens, largest
    return race(logits, usable_temperature(temperature, logits.dtype), race_times(logits, generator))


def usable_temperature(temperature: float, dtype: torch.dtype) -> float:
    """Within the range of the dtype that logits are divided in, where it would round to 0 or infinity."""
    number = torch.finfo(wide_dtype(dtype))
    return min(max(temperature, number.tiny), number.max)


def race_times(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """[B V] independent standard exponentials, for `race`."""
    times = torch.empty_like(logits, dtype=wide_dtype(logits.dtype)).exponential_(generator=generator)
    # a time of exactly 0 would give a removed token 0 / 0, and argmax takes NaN for the largest
    return times.clamp_min_(torch.finfo(times.dtype).tiny)


def race(logits: Tensor, temperature: float | Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row from softmax(logits / temperature), and the largest logit of each row: logits [B V] -> [B], [B].

    Exponential race: the smallest of independent exponentials with rates w is the i-th with probability w_i / sum(w).
    """
    wide = widened(logits)
    largest = wide.amax(-1, keepdim=True)
    weights = ((wide - largest) / temperature).exp()
    return (weights / times).argmax(-1), largest[..., 0]


def _filtered(keep: LogitsFilter, logits: Tensor) -> Tensor:
    """Raises ArgumentError for a filter that does not return logits of the same shape."""
    kept = keep(logits)
    if not isinstance(kept, Tensor) or not kept.is_floating_point():
        got = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
        raise ArgumentError(f"the filter {keep!r} returned {got}; a filter must return the logits [batch, vocabulary].")
    if kept.shape != logits.shape:
        raise ArgumentError(
            f"the filter {keep!r} turned logits {list(logits.shape)} into {list(kept.shape)}; a filter must keep the shape."
        )
    return kept


class LogitsGuard:
    """Raises SamplingError for rows from which no token can be drawn: NaN, infinite, or nothing left by the filters.

    On a CPU each step is checked before its token is handed out. On other devices that would force a sync per token, so the
    largest logits are kept there and read with `wait`, where the host waits anyway, or with `finish`, at the end.
    """

    def __init__(self, device: torch.device):
        self._immediate = device.type in READ_AT_ONCE
        self._unread: list[Tensor] = []
        self._step = 0  # of the first unread one

    def add(self, largest: Tensor) -> None:
        """The largest filtered logit of each row [B] of the next step."""
        if self._immediate and math.isfinite(float(largest if len(largest) == 1 else largest.sum())):
            self._step += 1
            return
        self._unread.append(largest)
        if self._immediate:
            self.finish()

    def wait(self, flag: Tensor) -> bool:
        """The value of a flag [] on the device, and a check of every step so far, in a single device sync."""
        if not self._unread:
            return bool(flag)
        unknown = sum((largest - largest).sum() for largest in self._unread)  # 0, or NaN
        value = float(flag + unknown)
        if math.isnan(value):
            self.finish()
        self._forget()
        return bool(value)

    def finish(self) -> None:
        """Check every step that has not been checked. Forces a device sync if there is one."""
        if self._unread and not bool(torch.stack(self._unread).isfinite().all()):
            rows = torch.stack(self._unread)
            step, row = (int(i) for i in rows.isfinite().logical_not().nonzero()[0])
            raise SamplingError(_undrawable(float(rows[step, row]), self._step + step, row))
        self._forget()

    def _forget(self) -> None:
        self._step += len(self._unread)
        self._unread.clear()


def _undrawable(largest: float, step: int, row: int) -> str:
    """Why no token can be drawn from a row with this largest logit. step: 0 draws the first new token."""
    place = f"row {row} at step {step}"
    if math.isnan(largest):
        return (
            f"the logits of {place} contain NaN. Look for NaN in the weights, the inputs or what a logits processor returns, and "
            "for overflow in float16 (bfloat16 and float32 have a larger range)."
        )
    if largest > 0:
        return f"a logit of {place} is infinite. A filter that forces a token sets all others to -inf instead."
    return (
        f"no token is left for {place}: after the filters every logit is -inf. Each row must keep at least one token: "
        "loosen filter_logits_fn or logits_processors."
    )


def vocabulary_problems(filters: Iterable[LogitsFilter], num_tokens: int) -> Iterator[str]:
    """Options of the filters that do not fit a vocabulary."""
    for found in filters:
        k = found.keywords.get("k") if isinstance(found, partial) and found.func is top_k else None
        if k is not None and k > num_tokens:
            yield f"top_k: k={k} exceeds the vocabulary of {num_tokens} tokens."


def keep_the_largest(filters: Iterable[LogitsFilter]) -> bool:
    """Whether the filters are known to keep the largest logit, so that they have no effect at temperature 0."""
    return all(isinstance(found, partial) and found.func in (top_k, top_p, min_p, top_a) for found in filters)


def resolve_filters(
    filter_logits_fn: FilterChoice | Sequence[FilterChoice] | None,
    filter_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
) -> list[LogitsFilter]:
    """Filters by name or as functions -> functions [B V] -> [B V] with their options bound.

    Args:
        filter_logits_fn: A name from `FILTERS`, a function, or a list of both; None or an empty list means no filter.
        filter_kwargs: For one filter a dict of its options. For a list, a list of dicts, one per filter (None for no
            options), or a dict {filter name: options}.

    Raises:
        ArgumentError: Lists every unknown filter, unknown option and value out of range.
    """
    if filter_logits_fn is None and not filter_kwargs:
        return []
    problems: list[str] = []
    chosen: list[tuple[LogitsFilter, dict[str, Any]]] = []
    for choice, options in _pair_up(filter_logits_fn, filter_kwargs, problems):
        found: LogitsFilter | None = FILTERS.get(choice) if isinstance(choice, str) else choice
        if callable(found):
            problems += _option_problems(found, options)
            chosen.append((found, options))
        elif isinstance(choice, str):
            problems.append(f"unknown filter {choice!r}; {did_you_mean(choice, FILTERS)}")
        else:
            problems.append(f"{choice!r} is not a filter; pass a function or one of {', '.join(FILTERS)}")
    if problems:
        raise ArgumentError(listed("invalid logits filters:", problems))
    return [partial(found, **options) for found, options in chosen]


def _pair_up(given: Any, options: Any, problems: list[str]) -> list[tuple[Any, dict[str, Any]]]:
    """Each filter with its own options. Options that belong to no filter go to `problems`."""
    if not isinstance(given, list | tuple):
        given, options = [given], [options]
    elif isinstance(options, Mapping):
        names = [name for name in given if isinstance(name, str)]
        for key in [key for key in options if key not in given]:
            hint = f" ({did_you_mean(str(key), names)})" if names else ""
            problems.append(
                f"filter_kwargs has {key!r}, which is not a filter of the list{hint}; for a list, pass "
                "{filter name: {option: value}} or one dict per filter"
            )
        options = [options.get(choice) if isinstance(choice, str) else None for choice in given]
    elif options is None:
        options = [None] * len(given)
    elif not isinstance(options, list | tuple) or len(options) != len(given):
        problems.append(
            f"filter_kwargs={options!r} does not match {len(given)} filters: pass one dict or None for each"
        )
        options = [None] * len(given)
    for choice, entry in zip(given, options, strict=True):
        if not isinstance(entry, Mapping | None):
            problems.append(f"the options of {choice!r} are {entry!r}; pass a dict {{option: value}}")
    matching = [dict(entry) if isinstance(entry, Mapping) else {} for entry in options]
    return list(zip(given, matching, strict=True))


def _option_problems(found: LogitsFilter, options: Mapping[str, Any]) -> Iterator[str]:
    """Unknown options, missing ones, and values outside an annotated Range."""
    try:
        declared = list(signature(found).parameters.values())[1:]
    except ValueError:  # written in C, without a signature to read
        return
    name = found.__name__ if isinstance(found, FunctionType) else repr(found)
    takes = {p.name: p for p in declared if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in declared)
    for option, parameter in takes.items():
        if parameter.default is Parameter.empty and option not in options:
            yield f"{name} needs the option {option!r}"
    for option, value in options.items():
        if option in takes:
            ranges = [note for note in get_args(takes[option].annotation) if isinstance(note, Range)]
            yield from (f"{name}: {problem}" for allowed in ranges for problem in allowed.problems(option, value))
        elif not takes_any:
            hint = did_you_mean(str(option), takes) if takes else "it has none"
            yield f"{name} has no option {option!r}; {hint}"
