"""Published orderings, and what they are compared with. What decides is the rule in `verdicts.py`."""

from collections.abc import Mapping, Sequence

from benchmarks.evidence.store import Evidence
from benchmarks.evidence.verdicts import Claim, Part, Side
from x_positional.evidence.comparison.statistics import Interval, paired_interval, t_interval
from x_positional.evidence.evaluation.results import Evaluation
from x_positional.evidence.extension.results import Attempt, Extension

FLAT = 0.05
"""Bits per byte: a loss that rises by less counts as flat, one that rises by more as a rise."""
SINKS_BOUND = 0.39
"""Nats per token: what counts as a collapse. It is the smallest rise in tables 1 to 3 of the paper (Falcon-7B, perplexity 12.12 to
17.90); the largest is 6.9 (Llama-2-13B, 5.40 to 5158.07)."""
LEARNED = 0.9
"""Accuracy at the trained length from which a task counts as learned."""


def over_seeds(values: Mapping[int, float]) -> Interval | None:
    """The mean of one value a seed with its interval; None for fewer than two seeds."""
    return t_interval(list(values.values())) if len(values) > 1 else None


def _lengths(evidence: Evidence) -> tuple[int, ...]:
    """Lengths past the trained one."""
    return tuple(n for n in evidence.comparison.lengths if n > evidence.comparison.trained_length)


def gap(evidence: Evidence, worse: str, better: str, lengths: Sequence[int], side: Side = "above") -> Part:
    """Mean loss of `worse` minus that of `better` over these lengths, paired by seed."""
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    for length in lengths:
        first, second = evidence.bits(worse, length), evidence.bits(better, length)
        for seed in first.keys() & second.keys():
            sums[seed] = sums.get(seed, 0.0) + first[seed] - second[seed]
            counts[seed] = counts.get(seed, 0) + 1
    complete = {seed: total / len(lengths) for seed, total in sums.items() if counts[seed] == len(lengths)}
    return _part(f"loss of {worse} minus loss of {better}, {_at(lengths)}", over_seeds(complete), side)


def rise(evidence: Evidence, label: str, length: int, side: Side) -> Part:
    """Loss at a length minus that at the trained length; flat is below `FLAT`."""
    trained = evidence.comparison.trained_length
    short, long = evidence.bits(label, trained), evidence.bits(label, length)
    found = over_seeds({seed: long[seed] - short[seed] for seed in short.keys() & long.keys()})
    return _part(f"loss of {label} at {length:,} minus that at {trained:,}", found, side, FLAT)


def less_rise(evidence: Evidence, steep: str, flat: str, length: int) -> Part:
    """How much more the loss of `steep` rises than that of `flat`, from the trained length on."""
    trained = evidence.comparison.trained_length
    seeds = [evidence.bits(label, n) for label in (steep, flat) for n in (trained, length)]
    shared = set(seeds[0]).intersection(*seeds[1:])
    found = {seed: (seeds[1][seed] - seeds[0][seed]) - (seeds[3][seed] - seeds[2][seed]) for seed in shared}
    return _part(f"rise of {steep} minus rise of {flat}, {trained:,} to {length:,}", over_seeds(found), "above")


def _at(lengths: Sequence[int]) -> str:
    if len(lengths) == 1:
        return f"at {lengths[0]:,}"
    return f"mean over {lengths[0]:,} to {lengths[-1]:,}"


def _part(statistic: str, found: Interval | None, side: Side, bound: float = 0.0) -> Part:
    reason = "" if found is not None else "fewer than two seeds have both losses"
    return Part(statistic, found, side, bound, reason)


def _past(worse: str, better: str):  # type: ignore[no-untyped-def]
    """The measure of: one scheme is better than another past the trained length."""
    return lambda evidence: [gap(evidence, worse, better, _lengths(evidence))]


def _alibi(evidence: Evidence) -> list[Part]:
    last = _lengths(evidence)[-1]
    return [
        rise(evidence, "alibi", last, "below"),
        rise(evidence, "sinusoidal", last, "above"),
        gap(evidence, "sinusoidal", "alibi", _lengths(evidence)),
    ]


def _rope_collapses(evidence: Evidence) -> list[Part]:
    return [rise(evidence, "rope", length, "above") for length in (_lengths(evidence)[0], _lengths(evidence)[-1])]


def _nope(evidence: Evidence) -> list[Part]:
    lengths = _lengths(evidence)
    return [less_rise(evidence, "rope", "none", lengths[0]), rise(evidence, "none", lengths[-1], "above")]


def _t5(evidence: Evidence) -> list[Part]:
    lengths = _lengths(evidence)
    return [
        gap(evidence, "rope", "t5", lengths),
        gap(evidence, "sinusoidal", "t5", lengths),
        gap(evidence, "t5", "alibi", lengths[-1:]),
    ]


def _xpos(evidence: Evidence) -> list[Part]:
    twice, four_times = _lengths(evidence)[:2]
    return [
        gap(evidence, "rope", "xpos", (twice, four_times)),
        gap(evidence, "alibi", "xpos", (twice,)),
        gap(evidence, "xpos", "alibi", (four_times,)),
    ]


def _sandwich(evidence: Evidence) -> list[Part]:
    return [rise(evidence, "sandwich", _lengths(evidence)[-1], "below")]


def _task(task: str, *pairs: tuple[str, str]):  # type: ignore[no-untyped-def]
    """The measure of: the first scheme of each pair solves a task at untrained lengths better than the second."""
    return lambda evidence: [answers(evidence, task, better, worse) for better, worse in pairs]


def answers(evidence: Evidence, task: str, better: str, worse: str) -> Part:
    """`Evidence.accuracy` of `better` minus that of `worse`, mean over the untrained lengths up to twice the trained one."""
    trained, *longer = evidence.task_lengths or (0,)
    lengths = [n for n in longer if n <= 2 * trained]
    scores = {(label, n): evidence.accuracy(label, task, n) for label in (better, worse) for n in (trained, *lengths)}
    shared = set(scores[better, trained]).intersection(*scores.values())
    found = over_seeds(
        {
            seed: sum(scores[better, n][seed] - scores[worse, n][seed] for n in lengths) / max(1, len(lengths))
            for seed in shared
        }
    )
    unlearned = [
        f"{label} reaches {sum(scores[label, trained].values()) / len(scores[label, trained]):.2f}"
        for label in (better, worse)
        if scores[label, trained] and sum(scores[label, trained].values()) < LEARNED * len(scores[label, trained])
    ]
    reason = "" if found else "fewer than two seeds have both scores"
    if unlearned:
        reason = f"not learned at the trained length: {', '.join(unlearned)}, below {LEARNED}"
    statistic = f"accuracy of {better} minus accuracy of {worse}" + (f", {_at(lengths)}" if lengths else "")
    return Part(statistic, found, "above", 0.0, reason, valid=not unlearned)


def attempt_of(extension: Extension, method: str) -> Attempt | None:
    """What a method reached without fine-tuning; None where it was not tried."""
    named = (a for a in extension.attempts if a.label.split(" x")[0] == method)
    return next((a for a in named if not a.tuned_tokens and a.evaluation), None)


def window_gap(extension: Extension | None, worse: str, better: str, length: int) -> Part:
    """Loss of one method minus that of another on the same windows, in nats per token."""
    if extension is None:
        return Part(f"loss of {worse} minus loss of {better}", None, "above", reason="not measured")
    found = [attempt_of(extension, method) for method in (worse, better)]
    names = [a.label if a else method for a, method in zip(found, (worse, better), strict=True)]
    statistic = f"loss of {names[0]} minus loss of {names[1]}, at {length:,}, nats per token"
    rows = [_windows(a, length) for a in found]
    if rows[0] is None or rows[1] is None or len(rows[0]) < 2:
        missing = [name for name, row in zip(names, rows, strict=True) if row is None]
        reason = f"{' and '.join(missing)} not measured" if missing else "fewer than two windows"
        return Part(statistic, None, "above", reason=reason)
    return Part(statistic, paired_interval(rows[0], rows[1]), "above")


def _windows(attempt: Attempt | None, length: int) -> tuple[float, ...] | None:
    return None if attempt is None or attempt.evaluation is None else windows_of(attempt.evaluation, length)


def windows_of(found: Evaluation, length: int) -> tuple[float, ...] | None:
    """The loss of each window at a length, in nats per token."""
    return next((row.windows for row in found.lengths if row.length == length and row.loss is not None), None)


def _yarn(evidence: Evidence) -> list[Part]:
    extension = evidence.extension
    lengths = (0,) if extension is None else (extension.trained_length, extension.target)
    return [
        window_gap(extension, worse, better, length)
        for length in lengths
        for worse, better in (("ntk", "yarn"), ("linear", "ntk"))
    ]


def drawn(evidence: Evidence, one: str, other: str, label: str, multiple: int) -> Part:
    """The loss of a scheme under one way to draw positions minus that under another, paired by seed.

    Args:
        multiple: Of the trained length, where the loss is taken.
    """
    statistic = f"loss of {label} with positions {one} minus {other}"
    if not {one, other} <= evidence.positions.keys():
        return Part(statistic, None, "above", reason="not measured")
    length = multiple * evidence.positions[one].trained_length
    statistic += f", at {length:,}"
    first, second = (evidence.drawn_bits(way, label, length) for way in (one, other))
    apart = {seed: first[seed] - second[seed] for seed in first.keys() & second.keys()}
    return _part(statistic, over_seeds(apart), "above")


def first_tokens(evidence: Evidence) -> list[Part]:
    """How much a sliding window loses without the first tokens, see `sinks.py`."""
    window, kept = (evidence.sinks.get(name) for name in ("window", "window-and-first"))
    if window is None or kept is None:
        return [Part("loss without the first tokens minus loss with them", None, "above", SINKS_BOUND, "not measured")]
    last = window.lengths[-1].length
    rows = [windows_of(found, last) for found in (window, kept)]
    statistic = f"loss without the first tokens minus loss with them, at {last:,}, nats per token"
    if rows[0] is None or rows[1] is None:
        return [Part(statistic, None, "above", SINKS_BOUND, "not both have a loss")]
    return [Part(statistic, paired_interval(rows[0], rows[1]), "above", SINKS_BOUND)]


_FIRE = (
    "Cited from the abstract; the paper's tables were not checked. Veisi et al. 2025 (arXiv:2503.08067, version 3, "
    "table 1) find the opposite: past the trained length FIRE has a higher loss than ALiBi and KERPLE."
)
_SMALL = (
    "Models of 0.2 million parameters in place of 107 million, trained for half a minute, and scored by the share of right tokens "
    "in place of exact matches; RoPE rotates whole heads, and in the authors' code a quarter of each."
)
CLAIMS = (
    Claim(
        "ALiBi: train short, test long",
        "Press et al. 2021, arXiv:2108.12409, figure 1, tables 2 and 3",
        "The loss of ALiBi does not rise past the trained length; that of sinusoidal embeddings does.",
        _alibi,
    ),
    Claim(
        "RoPE collapses past the trained length",
        "Press et al. 2021, arXiv:2108.12409, figure 1, tables 2 and 3; Kazemnejad et al. 2023, arXiv:2305.19466, figure F.2",
        "The loss of RoPE rises past the trained length, at twice that length and further out.",
        _rope_collapses,
    ),
    Claim(
        "Without positions: better than RoPE past the trained length, not unlimited",
        "Kazemnejad et al. 2023, arXiv:2305.19466, figure F.2; Wang et al. 2024, arXiv:2404.12224, figure 1",
        "At twice the trained length the loss without positions has risen less than with RoPE; further out it rises too.",
        _nope,
    ),
    Claim(
        "KERPLE (log) over ALiBi",
        "Chi et al. 2022, arXiv:2205.09921, table 3",
        "The logarithmic kernel has a lower loss than ALiBi past the trained length.",
        _past("alibi", "kerple"),
    ),
    Claim(
        "FIRE over ALiBi",
        "Li et al. 2023, arXiv:2310.04418, abstract",
        "FIRE generalises better to longer contexts than earlier encodings, ALiBi among them: its loss past the trained length "
        "is lower.",
        _past("alibi", "fire"),
        note=_FIRE,
    ),
    Claim(
        "FIRE over KERPLE",
        "Li et al. 2023, arXiv:2310.04418, abstract",
        "The same against KERPLE.",
        _past("kerple", "fire"),
        note=_FIRE,
    ),
    Claim(
        "T5 bias: between RoPE and ALiBi",
        "Press et al. 2021, arXiv:2108.12409, figure 1, tables 2 and 3",
        "T5's bias extrapolates better than sinusoidal embeddings and RoPE; far out, ALiBi is better still.",
        _t5,
    ),
    Claim(
        "xPos over RoPE, and over ALiBi only near the trained length",
        "Sun et al. 2022, arXiv:2212.10554, table 5",
        "Without blockwise attention, xPos has a lower loss than RoPE at two and four times the trained length, and a lower "
        "loss than ALiBi at twice but a higher one at four times that length.",
        _xpos,
        note="The paper's better results past the trained length (tables 2 and 5) need blockwise causal attention.",
    ),
    Claim(
        "Sandwich extrapolates",
        "Chi et al. 2023, arXiv:2212.10356, abstract",
        "Sandwich uses tokens farther away than the trained length: its loss does not rise past it.",
        _sandwich,
        note="Cited from the abstract; the paper's tables were not checked. The sinusoids have 24 channels, the width of "
        "a head.",
    ),
    Claim(
        "Cable over ALiBi",
        "Veisi et al. 2025, arXiv:2503.08067, version 3, table 1",
        "A penalty that depends on content has a lower loss than ALiBi past the trained length.",
        _past("alibi", "cable"),
        note="As in the first version of the paper, without the weights per query that version 3 adds.",
    ),
    Claim(
        "Forget gates over RoPE",
        "Lin et al. 2025, arXiv:2503.02130, abstract",
        "The Forgetting Transformer has a lower loss past the trained length than a Transformer with RoPE.",
        _past("rope", "forgetting"),
    ),
    Claim(
        "YaRN over NTK over linear interpolation",
        "Peng et al. 2023, arXiv:2309.00071, sections 3.1 and 3.4",
        "Without fine-tuning, NTK has a lower loss than linear interpolation, and YaRN a lower one than both.",
        _yarn,
        note="The paper has no table of this: tables 1 and 2 are of fine-tuned models, among which linear interpolation is "
        "level with YaRN inside the extended window (perplexity 3.34 and 3.35 at 8,192) and NTK behind (3.59). SmolLM2-135M "
        "in place of Llama 2. Intervals are over windows of text: there is one checkpoint.",
    ),
    Claim(
        "PoSE: short windows teach long positions",
        "Zhu et al. 2024, arXiv:2309.10400, table 5",
        "Trained in short windows with skipped positions, a model with RoPE has a lower loss past them than at counted positions, "
        "and inside a lower one than at random positions.",
        lambda evidence: [drawn(evidence, "counted", "pose", "rope", 4), drawn(evidence, "random", "pose", "rope", 1)],
        note="Trained from scratch at 256 bytes for 1,024; the paper fine-tunes Llama with interpolated positions from 2,048 to "
        "16,384 tokens (perplexity on Proof-pile at 16,384: 2.60, more than 1,000 without; at 2,048: 2.95, and 7.26 at random "
        "positions).",
    ),
    Claim(
        "Window attention fails without the first tokens",
        "Xiao et al. 2023, arXiv:2309.17453, tables 1 and 2",
        f"With a sliding window, the loss is higher where the first four tokens are dropped: by {SINKS_BOUND} to 6.9 nats in the "
        "paper.",
        first_tokens,
        note="SmolLM2-135M at 4,096 tokens, of which attention sees 1,024 as in table 1. The interval is over pieces of text.",
    ),
    Claim(
        "Copy: T5's bias best, RoPE and sinusoids worst",
        "Kazemnejad et al. 2023, arXiv:2305.19466, figure F.4, Copy (Variant 3)",
        "At untrained lengths, models with T5's bias copy best, those with ALiBi or without positions come next, and those "
        "with RoPE or sinusoids fail.",
        _task(
            "copy",
            ("t5", "alibi"),
            ("t5", "none"),
            *((better, worse) for better in ("alibi", "none") for worse in ("rope", "sinusoidal")),
        ),
        note=f"{_SMALL} The paper's headline, that models without positions generalise best (figures 1 to 3), is a mean rank "
        "over ten tasks, and the Copy of its figure 3 repeats a single symbol.",
    ),
    Claim(
        "One symbol: no positions best, then T5's bias, then ALiBi",
        "Kazemnejad et al. 2023, arXiv:2305.19466, figure 3 (Copy) and figure F.4, Copy (Variant 1)",
        "Where the input is one symbol over and over, models without positions copy it best at untrained lengths, then those with "
        "T5's bias, then those with ALiBi; those with RoPE or sinusoids fail.",
        _task("one_symbol", ("none", "t5"), ("t5", "alibi"), ("alibi", "rope"), ("alibi", "sinusoidal")),
        note="Models of 0.2 million parameters in place of 107 million, trained for half a minute. An answer counts if all its "
        "tokens are right, each given the right ones before it. RoPE rotates whole heads, and in the authors' code a quarter of "
        "each.",
    ),
    Claim(
        "Repeat: ALiBi best, RoPE and sinusoids worst",
        "Kazemnejad et al. 2023, arXiv:2305.19466, figure F.4, Copy (Variant 3 (2x))",
        "Where the input is to be written twice, models with ALiBi are best at untrained lengths, then those with T5's bias, "
        "then those without positions; those with RoPE or sinusoids fail.",
        _task("repeat", ("alibi", "t5"), ("t5", "none"), ("none", "rope"), ("none", "sinusoidal")),
        note="As for copy.",
    ),
)
"""In the order of the page."""
