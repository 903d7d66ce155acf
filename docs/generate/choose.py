"""Renders docs/choose.md: a scheme for each situation, beside what was measured.

Run from the repository root: PYTHONPATH=. python docs/generate/choose.py

A recommendation is written by hand and names the statistics that it rests on. They are computed from evidence/, and by the rule
of `benchmarks/evidence/verdicts.py` each holds, fails or is open. A recommendation of which a part fails is an error of the page:
`tests/docs/test_choose.py` names it.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.evidence import examples
from benchmarks.evidence.claims import FLAT, LEARNED, drawn, first_tokens, gap, over_seeds, rise, window_gap
from benchmarks.evidence.pages import decoding, interval, ranked
from benchmarks.evidence.store import Evidence, read
from benchmarks.evidence.verdicts import Part, decide
from x_positional.evidence.comparison.statistics import t_interval

PAGE = Path(__file__).parents[1] / "choose.md"

INTRODUCTION = """\
# Which scheme should I choose?

If you have no special need, take `rope`: it only rotates queries and keys, so every attention kernel runs it, cached keys stay
valid, and most published models and serving engines use it. Otherwise find your situation.
"""

READING = """\
## What the recommendations rest on

Recommendations are written by hand; the numbers below are generated from `evidence/` by `make docs`. A statistic *holds* where
its whole 95 % interval is on the side that the recommendation needs, and is *open* where the interval contains the bound. Where a
whole interval is on the other side, the recommendation is contradicted and a test of this repository fails. Losses are in bits
per byte unless noted and, unless a checkpoint is named, of models of less than a million parameters: at scale the order may
differ. A recommendation also weighs what no loss shows, such as which engines run a scheme. To compare on your own text and
budget:

```sh
x-positional compare configs/small_rotary.yaml --schemes rope,alibi,t5,none --seeds 2 --budget 8m
```
"""
UNMEASURED = """\
**Nothing has been measured yet.** `make evidence` measures what this page rests on; until then it holds reasons alone.
"""
WORDS = {True: "holds", False: "**contradicts the recommendation**", None: "open"}
PROPERTY = "a property of the schemes"
MARKS = {"reproduced": "yes", "contradicted": "**contradicted**", "not measured": "not measured"}


@dataclass(frozen=True)
class Line:
    """A situation and what to take in it."""

    situation: str
    take: str
    """The recommendation, in a few words of Markdown."""
    because: str
    """Why, as far as it needs no measurement, and what else may fit."""
    measure: Callable[[Evidence], Sequence[Part]] | None = None
    """The statistics that the recommendation rests on. None: it rests on a property."""
    shown: Callable[[Evidence], str] | None = None
    """More figures, on which nothing rests."""
    example: Callable[[examples.Examples], str] | None = None
    """What an example measures in one run, in place of the leaderboard."""
    more: tuple[tuple[str, str], ...] = ()
    """Titles and pages with more."""

    @property
    def anchor(self) -> str:
        """Where the section of this line begins."""
        kept = "".join(letter for letter in self.situation.lower() if letter.isalnum() or letter in " -_")
        return kept.replace(" ", "-")


def trained(evidence: Evidence) -> int:
    return evidence.comparison.trained_length


def longer(evidence: Evidence) -> tuple[int, ...]:
    """Lengths past the trained one."""
    return tuple(n for n in evidence.comparison.lengths if n > trained(evidence))


def best_at(evidence: Evidence, lengths: Sequence[int], count: int = 3) -> str:
    """The schemes with the lowest mean loss over these lengths."""
    means = {}
    for label in evidence.labels:
        found = [evidence.bits(label, n) for n in lengths]
        if all(found):
            means[label] = sum(sum(one.values()) / len(one) for one in found) / len(found)
    best = sorted(means, key=means.__getitem__)[:count]
    return ", ".join(f"`{label}` {means[label]:.3f}" for label in best) or "none yet"


def accuracy(evidence: Evidence, task: str, label: str) -> Part:
    """Accuracy on a task at the longest trained input; a task counts as learned from `LEARNED`."""
    length = next(iter(evidence.task_lengths), 0)
    found = over_seeds(evidence.accuracy(label, task, length)) if length else None
    reason = "" if found else "fewer than two seeds have a score"
    return Part(f"accuracy of {label} on {task}, inputs of {length}", found, "above", LEARNED, reason)


def faster(evidence: Evidence, fast: str, slow: str) -> Part:
    """How much faster one scheme decodes than another, paired by round."""
    rounds = [evidence.cost.decode_seconds.get(label, ()) for label in (fast, slow)] if evidence.cost else [(), ()]
    ratios = [slower / faster - 1 for faster, slower in zip(*rounds, strict=True)]
    found = t_interval(ratios) if len(ratios) > 1 else None
    reason = "" if found else "not both were timed"
    return Part(f"decoding speed of {fast} over that of {slow}, minus 1", found, "above", 0.0, reason)


def _fixed(evidence: Evidence) -> list[Part]:
    lengths = [trained(evidence)]
    return [gap(evidence, "none", "rope", lengths), gap(evidence, "absolute", "rope", lengths)]


def _fixed_shown(evidence: Evidence) -> str:
    return f"Lowest losses at {trained(evidence):,}: {best_at(evidence, [trained(evidence)], 5)}."


def _extrapolates(evidence: Evidence) -> list[Part]:
    lengths = longer(evidence)
    return [rise(evidence, "alibi", lengths[-1], "below"), gap(evidence, "rope", "alibi", lengths)]


def _extrapolates_shown(evidence: Evidence) -> str:
    lengths = longer(evidence)
    flat = []
    for label in ranked(evidence):
        short, long = evidence.bits(label, trained(evidence)), evidence.bits(label, lengths[-1])
        found = over_seeds({seed: long[seed] - short[seed] for seed in short.keys() & long.keys()})
        if found and found.high is not None and found.high < FLAT:
            flat.append(f"`{label}`")
    words = f"Lowest mean losses over {lengths[0]:,} to {lengths[-1]:,}: {best_at(evidence, lengths, 5)}."
    return f"{words} Losses that do not rise to {lengths[-1]:,}: {', '.join(flat) or 'none'}."


def _stretched(evidence: Evidence) -> list[Part]:
    extension = evidence.extension
    target = extension.target if extension else 0
    return [window_gap(extension, "none", "yarn", target)]


def _short_windows(evidence: Evidence) -> list[Part]:
    return [drawn(evidence, "counted", "pose", "rope", 4)]


def _short_windows_shown(evidence: Evidence) -> str:
    words = []
    for label, way in (("rope", "pose"), ("rope", "counted"), ("alibi", "counted"), ("t5", "counted")):
        comparison = evidence.positions.get(way)
        found = comparison and evidence.drawn_bits(way, label, 4 * comparison.trained_length)
        if found:
            words.append(f"`{label}` at {way} positions {interval(t_interval(list(found.values())))}")
    return f"Losses at four times the window: {', '.join(words)}." if words else ""


def _retrieval(evidence: Evidence) -> list[Part]:
    return [accuracy(evidence, "copy", "rope")]


def _retrieval_shown(evidence: Evidence) -> str:
    length = next(iter(evidence.task_lengths), 0)
    shares = {label: evidence.accuracy(label, "copy", length) for label in ("none", "alibi", "kerple", "fire", "t5")}
    known = [f"`{label}` {interval(t_interval(list(found.values())), 2)}" for label, found in shares.items() if found]
    return f"Other schemes on copy: {', '.join(known)}." if known else ""


def _streaming(evidence: Evidence) -> list[Part]:
    """Any gain supports the recommendation; the claim of the paper is about its size."""
    return [replace(part, bound=0.0) for part in first_tokens(evidence)]


def _decode(evidence: Evidence) -> list[Part]:
    return [faster(evidence, "rope", "cope")]


def _decode_shown(evidence: Evidence) -> str:
    times = decoding(evidence)
    order = sorted(times, key=times.__getitem__)
    if len(order) < 6:
        return ""
    words = [", ".join(f"`{label}` {times[label] * 1e3:.2f}" for label in part) for part in (order[:3], order[-3:])]
    return f"Milliseconds a token of one sequence, timed side by side on one thread: fastest {words[0]}; slowest {words[1]}."


def _tiny_shown(evidence: Evidence) -> str:
    return (
        f"This is what the leaderboard measures. Lowest losses at {trained(evidence):,}: "
        f"{best_at(evidence, [trained(evidence)])}; over longer contexts: {best_at(evidence, longer(evidence))}."
    )


def _tiny(evidence: Evidence) -> list[Part]:
    return [gap(evidence, "absolute", "alibi", [trained(evidence)])]


def _images(ran: examples.Examples) -> str:
    words = [
        f"`{scheme}` {', '.join(f'{share:.1%} at {size}' for size, share in shares.items())}"
        for scheme, shares in ran.images.items()
    ]
    return f"Accuracy on digits, one run, trained at the first size: {'; '.join(words)}."


def _reversed(ran: examples.Examples) -> str:
    return f"One run: {ran.reversed_words:.1%} of unseen words are reversed without a mistake."


LINES = (
    Line(
        "The length is known",
        "`rope`",
        "Prompt and answer together never exceed the length you train at, where every scheme is defined. Several have a lower loss "
        "in our small models (below), but every kernel and engine runs `rope`. `absolute` is simpler, and its table has no row "
        "past `max_seq_len`.",
        _fixed,
        _fixed_shown,
        more=(("rope", "schemes/rope.md"),),
    ),
    Line(
        "Longer than trained, without fine-tuning",
        "`alibi`",
        "Its bias falls linearly with distance and has no parameters, so at untrained distances keys only weigh less. That is also "
        "its price: at 1,000 tokens even the flattest slope, 1/256, divides the weight of a key by 50. The bias of `kerple` falls "
        "with the logarithm of distance, so more weight remains. Several other schemes stay flat as well (below), but few serving "
        "engines can run them.",
        _extrapolates,
        _extrapolates_shown,
        more=(("alibi", "schemes/alibi.md"), ("kerple", "schemes/kerple.md")),
    ),
    Line(
        "The final length is known, but too costly to train at",
        "`rope`, trained with `data.positions: pose`",
        "Windows stay short, and their positions are drawn up to the final length (PoSE: Zhu et al. 2024, arXiv:2309.10400). This "
        "teaches the positions of long texts, not what is in them: where you can, train at the full length in the end.",
        _short_windows,
        _short_windows_shown,
        more=(("Short windows, long positions", "training.md#short-windows-long-positions"),),
    ),
    Line(
        "A published model past its window",
        "`rope` with a scaling: `yarn`",
        "`x-positional extend` ranks the scalings on your text and writes a folder that transformers reads. Fine-tune if you can: "
        "linear interpolation of LLaMA 7B to four times its length had a perplexity of 16.1 without it and 7.1 after 200 steps "
        "(Chen et al. 2023, arXiv:2306.15595, table 3).",
        _stretched,
        more=(("YaRN", "rotary/yarn.md"), ("Linear", "rotary/linear.md"), ("NTK", "rotary/ntk.md")),
    ),
    Line(
        "Retrieval far back",
        "`rope`, trained at the full length",
        "A bias that falls with distance gives little weight to what lies far back, and a window none. If you need windows to save "
        "memory, leave some layers without a window and without positions: `configs/recipes/`.",
        _retrieval,
        _retrieval_shown,
        more=(("What each layer sees", "layers.md"),),
    ),
    Line(
        "Streaming without end",
        "`rope` with `window` and `keep_first`",
        "The cache holds a window and the first few tokens (StreamingLLM: Xiao et al. 2023, arXiv:2309.17453). Without the first "
        "tokens the loss rises once they have left the window. Tokens between the two are forgotten: this is for "
        "fluent text, not for retrieval.",
        _streaming,
        more=(("What each layer sees", "layers.md"),),
    ),
    Line(
        "Speed at decode",
        "`rope`, or `none` in some layers",
        "What acts on queries, keys or embeddings costs the same at any length and runs in any kernel. A bias is read or computed "
        "for every key at every token; `cope` needs whole rows of scores.",
        _decode,
        _decode_shown,
        more=(("Performance", "performance.md"),),
    ),
    Line(
        "A tiny model, bytes or characters",
        "`alibi`, or the first of the leaderboard",
        "Its preference for near tokens needs no training. Measure on your own text: a scheme and a seed take minutes.",
        _tiny,
        _tiny_shown,
        more=(("alibi", "schemes/alibi.md"), ("Training", "training.md")),
    ),
    Line(
        "Images and video",
        "`axial`",
        "RoPE for each axis: any resolution, any kernel, and the cls token needs no position. `mixed` learns diagonal "
        "directions; `absolute` resizes its table for other sizes. The leaderboard is of text, so the numbers are from "
        "[vit_digits.py](../examples/vit_digits.py), which trains `axial` and `absolute` and evaluates them at two more sizes.",
        example=_images,
        more=(("Images", "images.md"), ("axial", "schemes/axial.md")),
    ),
    Line(
        "Encoder-decoder",
        "`rope` in the encoder, `rope` or `alibi` in the decoder; `t5` to follow T5",
        "An encoder needs a scheme that tells left from right: `rope`, `t5` and `absolute` do, symmetric `alibi` does not. "
        "Cross-attention needs no positions. The leaderboard is of decoders, so the number is from "
        "[rope_encoder_alibi_decoder.py](../examples/rope_encoder_alibi_decoder.py), which trains such a pair.",
        example=_reversed,
        more=(("Encoder-decoder", "how-to/encoder-decoder.md"),),
    ),
    Line(
        "A serving engine must run it",
        "`rope` with a published scaling; `alibi` where the engine names it",
        "vLLM, llama.cpp and similar engines have kernels for RoPE and its common scalings, some for ALiBi, and none for an "
        "arbitrary learned bias. `convert` writes what transformers reads, and refuses what its config cannot express.",
        more=(("Published models", "pretrained.md"), ("Families", "families.md")),
    ),
)


def word(line: Line, evidence: Evidence | None) -> str:
    """What the table shows: whether the measurement supports the recommendation."""
    if line.measure is None:
        return "one run of an example" if line.example else PROPERTY
    return MARKS.get(decide(line.measure(evidence)), "open") if evidence else "not yet"


def table(evidence: Evidence | None) -> list[str]:
    """The decision table."""
    lines = ["| situation | take | supported by the measurement |", "|---|---|---|"]
    return lines + [f"| [{one.situation}](#{one.anchor}) | {one.take} | {word(one, evidence)} |" for one in LINES]


def part_words(part: Part) -> str:
    """A statistic, its bound and whether it holds."""
    if part.found is None:
        return f"{part.statistic}: {part.reason or 'not measured'}."
    needed = f"needs {part.side} {part.bound:g}"
    return f"{part.statistic}: {interval(part.found, sign=True)} ({needed}: {WORDS[part.holds]})."


def figures(line: Line, evidence: Evidence | None) -> list[str]:
    """What was measured for one situation."""
    found = []
    if evidence and line.measure:
        found += [part_words(part) for part in line.measure(evidence)]
    if evidence and line.shown and (shown := line.shown(evidence)):
        found.append(shown)
    if line.example and (ran := examples.read()):
        found.append(line.example(ran))
    return [filled(f"- {figure[0].upper()}{figure[1:]}", "  ") for figure in found]


def section(line: Line, evidence: Evidence | None) -> list[str]:
    """Reasons and figures of one situation."""
    found = figures(line, evidence)
    lines = [
        f"### {line.situation}",
        "",
        filled(f"Take {line.take}. {line.because}"),
        "",
        *found,
        *([""] if found else []),
    ]
    links = [f"[{title}]({page})" for title, page in line.more]
    if evidence and (line.measure or line.shown):
        links.append("[Evidence](evidence.md)")
    return [*lines, f"More: {', '.join(links)}.", ""]


def filled(text: str, indent: str = "") -> str:
    """Text in lines of at most 120 characters."""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def render(evidence: Evidence | None) -> str:
    """The whole page."""
    lines = [INTRODUCTION, *([] if evidence else [UNMEASURED]), *table(evidence), "", READING]
    for line in LINES:
        lines += section(line, evidence)
    return "\n".join(lines).rstrip() + "\n"


def contradicted(evidence: Evidence) -> list[str]:
    """The statistics that are on the wrong side of what a recommendation needs."""
    return [
        f"{line.situation}, take {line.take}: {part_words(part)}"
        for line in LINES
        for part in (line.measure(evidence) if line.measure else ())
        if part.holds is False
    ]


if __name__ == "__main__":
    PAGE.write_text(render(read()), encoding="utf-8")
