"""Pick the next token from logits: filters that remove unlikely tokens, the repetition penalty and the draw itself.

B batch, V vocabulary, T tokens. A filter maps logits [B V] to [B V] of the same dtype: a removed token becomes -inf,
a kept one stays bit for bit, and at least one of a row stays. Tokens that tie at the edge of the kept set are all kept:
the order of the vocabulary has no say. Half precision is summed in float32. No value is read back to the host.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from inspect import Parameter, signature
from numbers import Integral, Real
from types import FunctionType
from typing import Annotated, Any, get_args

import torch
from torch import Tensor

LogitsFilter = Callable[..., Tensor]
FilterChoice = str | LogitsFilter


@dataclass(frozen=True)
class Range:
    """The allowed values of a number. Put it into `Annotated` on a filter's option and `resolve_filters` checks it."""

    low: float
    high: float = math.inf
    above: bool = False  # low itself is excluded
    integer: bool = False
    optional: bool = False  # None is allowed

    def __str__(self) -> str:
        noun = "an integer" if self.integer else "a finite number"
        low = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        high = "" if math.isinf(self.high) else f" to {self.high:g}"
        return f"{noun} {low}{high}{' or None' if self.optional else ''}"

    def allows(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, Integral if self.integer else Real):
            return False
        number = float(value)
        return self.low <= number <= self.high and number < math.inf and not (self.above and number == self.low)

    def require(self, name: str, value: object) -> None:
        """Raises ValueError where the value is not allowed."""
        if not self.allows(value):
            raise ValueError(f"{name}={value!r} is not allowed: it must be {self}")


UNIT = Range(0.0, 1.0)
NON_NEGATIVE = Range(0.0)
POSITIVE = Range(0.0, above=True)
COUNT = Range(1, integer=True, optional=True)


def _value_where_mass_is_reached(ordered: Tensor, probs: Tensor, mass: float) -> Tensor:
    """Values [B V] in the order they are kept and their probabilities -> [B 1]: the last value of the smallest
    prefix that holds `mass`. The first is always in."""
    last = (probs.cumsum(-1)[..., :-1] < mass).sum(-1, keepdim=True)
    return ordered.gather(-1, last)


def _wide_dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def top_k(
    logits: Tensor, frac_num_tokens: Annotated[float, UNIT] = 0.1, k: Annotated[int | None, COUNT] = None
) -> Tensor:
    """Keep the k largest logits [B V] (Fan et al. 2018, arXiv:1805.04833), and all that equal the k-th.

    Without k, ceil(frac_num_tokens * V) tokens, at least one. A k of V or more keeps everything.
    Raises ValueError for a k below 1 or a fraction outside [0, 1].
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
    """Keep the nucleus of logits [B V]: the fewest likeliest tokens whose probabilities sum to at least `thres`.

    Holtzman et al. 2020, arXiv:1904.09751, section 3.1. 0 keeps the likeliest token, 1 keeps everything.
    Raises ValueError for a thres outside [0, 1].
    """
    UNIT.require("thres", thres)
    if thres == 1.0:  # a rounded sum may pass 1 before the last token
        return logits
    ordered = logits.sort(dim=-1, descending=True).values
    threshold = _value_where_mass_is_reached(ordered, ordered.softmax(-1, dtype=_wide_dtype(logits)), thres)
    return logits.masked_fill(logits < threshold, -math.inf)


def min_p(logits: Tensor, min_p: Annotated[float, UNIT] = 0.1) -> Tensor:
    """Keep the tokens of logits [B V] with at least `min_p` times the probability of the likeliest one.

    Nguyen et al. 2024, arXiv:2407.01082, section 3. 0 keeps everything, 1 keeps the likeliest.
    Raises ValueError for a min_p outside [0, 1].
    """
    UNIT.require("min_p", min_p)
    if min_p == 0.0:
        return logits
    # p < min_p * p_max is the same comparison between logits: the softmax's sum cancels
    threshold = logits.amax(-1, keepdim=True).to(_wide_dtype(logits)) + math.log(min_p)
    return logits.masked_fill(logits < threshold, -math.inf)


def top_a(
    logits: Tensor, min_p_pow: Annotated[float, NON_NEGATIVE] = 2.0, min_p_ratio: Annotated[float, UNIT] = 0.02
) -> Tensor:
    """Keep the tokens of logits [B V] with a probability of at least min_p_ratio * p_max ** min_p_pow.

    The limit follows how sure the model is: a flat row keeps nearly everything. A power below 1 can put the limit above
    p_max: the likeliest token stays. Raises ValueError for a negative power or a ratio outside [0, 1].
    """
    NON_NEGATIVE.require("min_p_pow", min_p_pow)
    UNIT.require("min_p_ratio", min_p_ratio)
    if min_p_ratio == 0.0:
        return logits
    wide = logits.to(_wide_dtype(logits))
    largest = wide.amax(-1, keepdim=True)
    surprise = (wide - largest).exp().sum(-1, keepdim=True).log()  # -log p_max
    below = ((1 - min_p_pow) * surprise + math.log(min_p_ratio)).clamp_max(0.0)
    return logits.masked_fill(wide < largest + below, -math.inf)


def typical(logits: Tensor, mass: Annotated[float, UNIT] = 0.9) -> Tensor:
    """Keep the tokens of logits [B V] whose surprise -log p is nearest to the entropy, until they hold `mass`.

    Meister et al. 2022, arXiv:2202.00666. This may remove the likeliest token. 0 keeps the most typical token,
    1 keeps everything. Raises ValueError for a mass outside [0, 1].
    """
    UNIT.require("mass", mass)
    if mass == 1.0:
        return logits
    log_probs = logits.log_softmax(-1, dtype=_wide_dtype(logits))
    probs = log_probs.exp()
    entropy = torch.special.entr(probs).sum(-1, keepdim=True)  # entr(0) = 0: removed tokens add nothing
    distance = (log_probs + entropy).abs()
    ordered, order = distance.sort(dim=-1)
    farthest = _value_where_mass_is_reached(ordered, probs.gather(-1, order), mass)
    return logits.masked_fill(distance > farthest, -math.inf)


FILTERS: dict[str, LogitsFilter] = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "top_a": top_a, "typical": typical}


def seen_tokens(tokens: Tensor, num_tokens: int, mask: Tensor | None = None) -> Tensor:
    """Tokens [B T], mask [B T] bool (True = a token, the rest is skipped) -> [B V] bool: the tokens each row holds."""
    if mask is not None:
        tokens = torch.where(mask, tokens, num_tokens)
    seen = torch.zeros(tokens.shape[0], num_tokens + 1, dtype=torch.bool, device=tokens.device)
    return seen.scatter_(1, tokens, True)[:, :num_tokens].contiguous()


def mark_seen(seen: Tensor, tokens: Tensor) -> Tensor:
    """Mark new tokens [B] in seen [B V] bool, in place, on the device. Returns seen."""
    return seen.scatter_(1, tokens.unsqueeze(1), True)


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens marked in seen [B V] bool less likely in logits [B V].

    Keskar et al. 2019, arXiv:1909.05858, section 4.1: a seen token's logit is divided by the penalty. Below zero that
    would favour the token, so there the logit is multiplied, as is common. Above 1 repeats get rarer (the paper uses
    1.2), below 1 more frequent, 1 changes nothing.
    Raises ValueError for a penalty of 0 or less and for a `seen` of another shape or dtype.
    """
    POSITIVE.require("penalty", penalty)
    if seen.dtype != torch.bool or seen.shape != logits.shape:
        raise ValueError(
            f"seen is {list(seen.shape)} {seen.dtype}, but the logits {list(logits.shape)} need bool marks of the same "
            "shape: make them with seen_tokens(tokens, num_tokens)"
        )
    if penalty == 1.0:
        return logits
    wide = logits.to(_wide_dtype(logits))
    return torch.where(seen, torch.where(wide > 0, wide / penalty, wide * penalty), wide).to(logits.dtype)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    filters: Iterable[LogitsFilter] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token a row: logits [B V] -> [B] int64, from softmax(filtered / temperature).

    The filters run one after the other on the logits as given, before the temperature: which tokens are kept does not
    change with it. Temperature 0 takes the largest logit and runs no filter. A repetition penalty comes before this
    call, so it counts at temperature 0 too. The generator must live on the device of the logits.
    Raises ValueError for a negative or infinite temperature and for a filter that changes the shape.
    """
    NON_NEGATIVE.require("temperature", temperature)
    if temperature == 0:
        return logits.argmax(-1)
    shape = logits.shape
    for keep in filters:
        logits = keep(logits)
        if logits.shape != shape:
            raise ValueError(f"the filter {keep!r} made {list(logits.shape)} of logits {list(shape)}: keep the shape")
    wide = logits.to(_wide_dtype(logits))
    number = torch.finfo(wide.dtype)  # outside its range a temperature would be rounded to 0 or infinity
    weights = ((wide - wide.amax(-1, keepdim=True)) / min(max(temperature, number.tiny), number.max)).exp()
    # Exponential race: of independent clocks with rates w, the first to ring is i with probability w_i / sum(w).
    # A clock at exactly 0 would make 0 / 0 of a removed token, and argmax takes NaN for the largest.
    clocks = torch.empty_like(weights).exponential_(generator=generator).clamp_min_(number.tiny)
    return (weights / clocks).argmax(-1)


def resolve_filters(
    filter_logits_fn: FilterChoice | Sequence[FilterChoice] | None,
    filter_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
) -> list[LogitsFilter]:
    """Names of `FILTERS`, callables, or a list of both -> functions logits [B V] -> [B V], their options bound.

    One filter takes its options as a dict. A list takes a list of dicts, one a filter (None for no options), or a dict
    from filter name to options. None or an empty list means no filter.
    Raises ValueError that names every unknown filter, unknown option and value out of range.
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
        else:
            known = ", ".join(FILTERS)
            problems.append(f"{choice!r} is no filter{_nearest(choice, FILTERS)}: give {known} or a function")
    if problems:
        raise ValueError("the logits filters cannot be used:\n" + "\n".join(f"- {problem}" for problem in problems))
    return [partial(found, **options) for found, options in chosen]


def _pair_up(given: Any, options: Any, problems: list[str]) -> list[tuple[Any, dict[str, Any]]]:
    """Each filter beside its own options; what does not fit is reported and left out."""
    if not isinstance(given, list | tuple):
        given, options = [given], [options]
    elif isinstance(options, Mapping):
        for key in [key for key in options if key not in given]:
            problems.append(
                f"filter_kwargs has {key!r}, which names no filter of the list{_nearest(key, given)}; for a list give "
                "{filter name: {option: value}} or one dict a filter"
            )
        options = [options.get(choice) if isinstance(choice, str) else None for choice in given]
    elif options is None:
        options = [None] * len(given)
    elif not isinstance(options, list | tuple) or len(options) != len(given):
        problems.append(f"filter_kwargs={options!r} does not fit {len(given)} filters: give each a dict or None")
        options = [None] * len(given)
    for choice, entry in zip(given, options, strict=True):
        if not isinstance(entry, Mapping | None):
            problems.append(f"the options of {choice!r} are {entry!r}: give a dict from option to value")
    fitting = [dict(entry) if isinstance(entry, Mapping) else {} for entry in options]
    return list(zip(given, fitting, strict=True))


def _nearest(word: Any, known: Iterable[Any]) -> str:
    near = get_close_matches(str(word), [name for name in known if isinstance(name, str)], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _option_problems(found: LogitsFilter, options: Mapping[str, Any]) -> list[str]:
    """Options the function does not take, options it needs and does not get, and values outside an annotated Range."""
    try:
        declared = list(signature(found).parameters.values())[1:]
    except ValueError:  # written in C, without a signature to read
        return []
    name = found.__name__ if isinstance(found, FunctionType) else repr(found)
    takes = {p.name: p for p in declared if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
    ranges = {p: [note for note in get_args(takes[p].annotation) if isinstance(note, Range)] for p in takes}
    problems = [
        f"{name} needs the option {option!r}"
        for option, parameter in takes.items()
        if parameter.default is Parameter.empty and option not in options
    ]
    open_ended = any(p.kind is Parameter.VAR_KEYWORD for p in declared)
    listed = "; ".join(" is ".join([option, *map(str, ranges[option])]) for option in takes) or "none"
    for option, value in options.items():
        if option not in takes and not open_ended:
            problems.append(f"{name} has no option {option!r}{_nearest(option, takes)}; options: {listed}")
        for allowed in ranges.get(option, []):
            if not allowed.allows(value):
                problems.append(f"{name} cannot use {option}={value!r}: it must be {allowed}")
    return problems
