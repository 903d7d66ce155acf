"""Published orderings, and what they are compared with. What decides is the rule in `verdicts.py`."""

from collections.abc import Mapping, Sequence

from benchmarks.evidence.store import Evidence
from benchmarks.evidence.verdicts import Claim, Part, Side
from x_positional.evidence.comparison.statistics import Interval, t_interval
from x_positional.evidence.evaluation.results import Evaluation
from x_positional.evidence.extension.results import Attempt, Extension

FLAT = 0.05
"""Bits per byte: a loss that rises by less counts as flat, one that rises by more as a rise."""
SINKS_BOUND = 1.0
"""Nats per token: what counts as a collapse. The paper reports a thousandfold perplexity."""
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
    lengths = _lengths(evidence)
    return [gap(evidence, "rope", "xpos", lengths), gap(evidence, "alibi", "xpos", lengths)]


def _task(task: str):  # type: ignore[no-untyped-def]
    """The measure of: models without positions solve a task at untrained lengths better than those with them."""

    def measure(evidence: Evidence) -> list[Part]:
        return [answers(evidence, task, "none", other) for other in ("t5", "alibi", "sinusoidal", "rope")]

    return measure


def answers(evidence: Evidence, task: str, better: str, worse: str) -> Part:
    """Accuracy of `better` minus that of `worse`, mean over the untrained lengths up to twice the trained one."""
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


def attempt_of(extension: Extension | None, *words: str) -> Attempt | None:
    """The attempt without fine-tuning whose label starts with one of these words."""
    attempts = () if extension is None else extension.attempts
    return next((a for a in attempts if not a.tuned_tokens and a.label.startswith(words) and a.evaluation), None)


def window_gap(extension: Extension | None, worse: Attempt | None, better: Attempt | None, length: int) -> Part:
    """Loss of one method minus that of another on the same windows, in nats per token."""
    if extension is None:
        return Part("loss of a published checkpoint", None, "above", reason="not measured")
    names = [a.label if a else "a method that was not tried" for a in (worse, better)]
    statistic = f"loss of {names[0]} minus loss of {names[1]}, at {length:,}, nats per token"
    rows = [_windows(a, length) for a in (worse, better)]
    if rows[0] is None or rows[1] is None or len(rows[0]) < 2:
        return Part(statistic, None, "above", reason="not both methods have a loss at this length")
    differences = [a - b for a, b in zip(rows[0], rows[1], strict=True)]
    return Part(statistic, t_interval(differences), "above")


def _windows(attempt: Attempt | None, length: int) -> tuple[float, ...] | None:
    return None if attempt is None or attempt.evaluation is None else windows_of(attempt.evaluation, length)


def windows_of(found: Evaluation, length: int) -> tuple[float, ...] | None:
    """The loss of each window at a length, in nats per token."""
    return next((row.windows for row in found.lengths if row.length == length and row.loss is not None), None)


def _yarn(evidence: Evidence) -> list[Part]:
    extension = evidence.extension
    if extension is None:
        return [window_gap(None, None, None, 0)]
    linear, ntk, yarn = (
        attempt_of(extension, "linear"),
        attempt_of(extension, "ntk x", "ntk "),
        attempt_of(extension, "yarn"),
    )
    return [
        window_gap(extension, worse, better, length)
        for length in (extension.trained_length, extension.target)
        for worse, better in ((ntk, yarn), (linear, ntk))
    ]


def _sinks(evidence: Evidence) -> list[Part]:
    window, kept = (evidence.sinks.get(name) for name in ("window", "window-and-first"))
    if window is None or kept is None:
        return [Part("loss of a published checkpoint", None, "above", reason="not measured")]
    last = window.lengths[-1].length
    rows = [windows_of(found, last) for found in (window, kept)]
    statistic = f"loss without the first tokens minus loss with them, at {last:,}, nats per token"
    if rows[0] is None or rows[1] is None:
        return [Part(statistic, None, "above", SINKS_BOUND, "not both have a loss")]
    return [Part(statistic, t_interval([a - b for a, b in zip(*rows, strict=True)]), "above", SINKS_BOUND)]


CLAIMS = (
    Claim(
        "ALiBi: train short, test long",
        "Press et al. 2021, arXiv:2108.12409, figure 1",
        "The loss of ALiBi does not rise past the trained length; that of sinusoidal embeddings does.",
        _alibi,
    ),
    Claim(
        "RoPE collapses past the trained length",
        "Press et al. 2021, arXiv:2108.12409, figure 1; Kazemnejad et al. 2023, arXiv:2305.19466",
        "The loss of RoPE rises past the trained length, at twice that length and further out.",
        _rope_collapses,
    ),
    Claim(
        "Without positions: better than RoPE past the trained length, not unlimited",
        "Kazemnejad et al. 2023, arXiv:2305.19466; Wang et al. 2024, arXiv:2404.12224",
        "The loss without positions rises less than with RoPE just past the trained length, and fails further out.",
        _nope,
    ),
    Claim(
        "KERPLE (log) over ALiBi",
        "Chi et al. 2022, arXiv:2205.09921",
        "The logarithmic kernel has a lower loss than ALiBi past the trained length.",
        _past("alibi", "kerple"),
    ),
    Claim(
        "FIRE over ALiBi",
        "Li et al. 2023, arXiv:2310.04418",
        "FIRE has a lower loss than ALiBi past the trained length.",
        _past("alibi", "fire"),
    ),
    Claim(
        "FIRE over KERPLE",
        "Li et al. 2023, arXiv:2310.04418",
        "FIRE has a lower loss than KERPLE past the trained length.",
        _past("kerple", "fire"),
    ),
    Claim(
        "T5 bias: between RoPE and ALiBi",
        "Press et al. 2021, arXiv:2108.12409, figure 1",
        "T5's bias extrapolates better than sinusoidal embeddings and RoPE; far out, ALiBi is better still.",
        _t5,
    ),
    Claim(
        "xPos over RoPE and ALiBi",
        "Sun et al. 2022, arXiv:2212.10554",
        "xPos has a lower loss past the trained length than RoPE and ALiBi.",
        _xpos,
        note="The paper evaluates with blockwise causal attention; here attention sees everything.",
    ),
    Claim(
        "Sandwich over ALiBi",
        "Chi et al. 2023, arXiv:2212.10356",
        "Sandwich has a lower loss than ALiBi past the trained length.",
        _past("alibi", "sandwich"),
    ),
    Claim(
        "Cable over ALiBi",
        "Veisi et al. 2025, arXiv:2503.08067",
        "A penalty that depends on content has a lower loss than ALiBi past the trained length.",
        _past("alibi", "cable"),
    ),
    Claim(
        "Forget gates over RoPE",
        "Lin et al. 2025, arXiv:2503.02130",
        "Attention with forget gates has a lower loss than RoPE past the trained length.",
        _past("rope", "forgetting"),
    ),
    Claim(
        "YaRN over NTK over linear interpolation",
        "Peng et al. 2023, arXiv:2309.00071",
        "Without training, YaRN has a lower loss than NTK, and NTK than linear interpolation, inside and outside of the window.",
        _yarn,
        note="SmolLM2-135M in place of Llama 2. Intervals are over windows of text: there is one checkpoint.",
    ),
    Claim(
        "Window attention fails without the first tokens",
        "Xiao et al. 2023, arXiv:2309.17453",
        "With a sliding window, the loss is far lower where the first tokens stay visible: by more than 1 nat here.",
        _sinks,
        note="SmolLM2-135M at 4,096 tokens, of which attention sees 1,024. The interval is over pieces of text.",
    ),
    Claim(
        "Copy: best without positions",
        "Kazemnejad et al. 2023, arXiv:2305.19466",
        "At untrained lengths, models without positions copy better than those with T5's bias, ALiBi, sinusoids or RoPE.",
        _task("copy"),
        note="Models of 0.2 million parameters in place of 107 million, trained for half a minute.",
    ),
    Claim(
        "Repeat: best without positions",
        "Kazemnejad et al. 2023, arXiv:2305.19466",
        "At untrained lengths, models without positions repeat better than those with T5's bias, ALiBi, sinusoids or RoPE.",
        _task("repeat"),
        note="As for copy.",
    ),
)
"""In the order of the page."""
