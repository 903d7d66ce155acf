"""The same schemes trained in short windows at counted and at drawn positions (`data.positions`), up to four times their length.

    x-positional compare configs/evidence.yaml --schemes absolute,rope,t5,alibi --seeds 3 --lengths 1x,2x,4x --jobs 2 \\
        --model.max_seq_len 1024 --data.seq_len 256 --data.positions pose --out again
    cp again/comparison.json evidence/positions/pose.json
"""

from collections.abc import Iterator

from benchmarks.evidence.pages import interval
from benchmarks.evidence.store import Evidence
from x_positional.evidence.comparison.statistics import t_interval

WORDS = {
    "counted": "counted from 0",
    "random": "`random` (Ruoss et al. 2023, arXiv:2305.16843)",
    "pose": "`pose` (Zhu et al. 2024, arXiv:2309.10400)",
}
"""Files in evidence/positions/, in the order of the table."""


def table(evidence: Evidence) -> Iterator[str]:
    """Losses in bits per byte: a row for each scheme and way to draw positions."""
    ways = [way for way in WORDS if way in evidence.positions]
    comparisons = [evidence.positions[way] for way in ways]
    lengths = comparisons[0].lengths if comparisons else ()
    yield f"| scheme | positions in training | {' | '.join(f'{length:,}' for length in lengths)} |"
    yield f"|---|---|{'---:|' * len(lengths)}"
    for label in dict.fromkeys(entry.label for comparison in comparisons for entry in comparison.entries):
        for way in ways:
            values = [evidence.drawn_bits(way, label, length) for length in lengths]
            shown = " | ".join(interval(t_interval(list(row.values())) if row else None) for row in values)
            yield f"| {label} | {WORDS[way]} | {shown} |"
