"""The targets of docs/performance.md, each met or missed by what was measured. One entry of TARGETS a line of the page."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from x_positional.evidence.benchmark.models import OURS
from x_positional.evidence.benchmark.record import RowRecord

Rows = Mapping[str, RowRecord]
Direction = Literal["≥", "≤"]
"""At least so many times as fast as another side, or at most so many times its time or memory."""


@dataclass(frozen=True)
class Verdict:
    """What a target came to."""

    value: str
    """As shown: the ratio and its interval, or the reason why there is none."""
    met: bool | None
    """None: not measured."""

    @property
    def word(self) -> str:
        return {True: "met", False: "missed", None: "not measured"}[self.met]


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """A bound on something that one or two rows contain."""

    work: str
    """What the page calls it."""
    bound: float

    @abstractmethod
    def wanted(self) -> str:
        """The bound in words."""

    @abstractmethod
    def verdict(self, rows: Rows) -> Verdict:
        """Met or missed."""


@dataclass(frozen=True, kw_only=True)
class Compared(Target):
    """A bound on the ratio of two sides of the same row."""

    direction: Direction
    row: str
    than: str
    side: str = OURS

    def wanted(self) -> str:
        return f"{self.direction} {self.bound:g}× {self.than}"

    def verdict(self, rows: Rows) -> Verdict:
        row = rows.get(self.row)
        above, below = (self.than, self.side) if self.direction == "≥" else (self.side, self.than)
        ratio = None if row is None else row.ratio(above, below)
        if ratio is None:
            return _missing(row, self.row, self.than, self.side)
        met = ratio.median >= self.bound if self.direction == "≥" else ratio.median <= self.bound
        return Verdict(f"{ratio.median:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})", met)


faster = partial(Compared, direction="≥")
costs = partial(Compared, direction="≤")


@dataclass(frozen=True, kw_only=True)
class NearLimit(Target):
    """At least this fraction of the limit."""

    row: str
    side: str

    def wanted(self) -> str:
        return f"≥ {self.bound:.0%} of the limit"

    def verdict(self, rows: Rows) -> Verdict:
        row = rows.get(self.row)
        found = None if row is None else row.sides.get(self.side)
        if found is None or found.fraction is None:
            return _missing(row, self.row, self.side)
        return Verdict(f"{found.fraction:.0%}", found.fraction >= self.bound)


@dataclass(frozen=True, kw_only=True)
class Grows(Target):
    """From one row to another, a side grows at most `bound` times; by default as much as the bytes it must read."""

    row: str
    to: str
    side: str = OURS
    bound: float = 0.0

    def wanted(self) -> str:
        return f"≤ {self.bound:g}×" if self.bound else "≤ the growth of its bytes"

    def verdict(self, rows: Rows) -> Verdict:
        small, large = rows.get(self.row), rows.get(self.to)
        below = None if small is None else small.sides.get(self.side)
        above = None if large is None else large.sides.get(self.side)
        if below is None or above is None or below.median is None or above.median is None:
            return _missing(None, f"{self.row} or {self.to}", self.side)
        growth, bound = above.median / below.median, self.bound
        if not bound and small is not None and large is not None:
            bound = large.demand[self.side] / small.demand[self.side]
            return Verdict(f"{growth:.2f}×, its bytes {bound:.2f}×", growth <= bound)
        return Verdict(f"{growth:.2f}×", growth <= bound)


def _missing(row: RowRecord | None, name: str, *sides: str) -> Verdict:
    if row is None:
        return Verdict(f"row {name} was not measured", None)
    reasons = [f"{side}: {row.sides[side].why_not}" for side in sides if side in row.sides and row.sides[side].why_not]
    absent = [f"{side} is not a side of {name}" for side in sides if side not in row.sides]
    return Verdict("; ".join([*reasons, *absent]) or f"row {name} was not measured", None)


COMPILED, INT8, NONE = f"{OURS} compiled", f"{OURS} int8 compiled", f"{OURS} none"
STATIC, PEER = "transformers static", "x-transformers"


def _decode_targets() -> list[Target]:
    one, eight, smol = "decode-b1", "decode-b8", "decode-smollm2"
    return [
        faster(work="decode, batch 1, float32, compiled", row=one, side=COMPILED, than="transformers", bound=2),
        faster(work="decode, batch 1, float32, eager", row=one, than="transformers", bound=1.3),
        faster(work="decode, batch 1, float32, compiled", row=one, side=COMPILED, than=STATIC, bound=1.3),
        NearLimit(work="decode, batch 1, float32, compiled", row=one, side=COMPILED, bound=0.6),
        faster(work="decode, batch 1, int8 weights, compiled", row=one, side=INT8, than="transformers", bound=5),
        faster(work="decode, batch 8, float32, compiled", row=eight, side=COMPILED, than="transformers", bound=2),
        faster(work="decode, 1 M parameters, eager", row="versus-decode", than="before", bound=1.5),
        faster(work="decode, 1 M parameters, compiled", row="versus-decode", side=COMPILED, than="before", bound=5),
        faster(work="SmolLM2-135M, float32, compiled", row=smol, side=COMPILED, than="transformers", bound=2),
        faster(work="SmolLM2-135M, int8 weights, compiled", row=smol, side=INT8, than="transformers", bound=5),
        Grows(work="a token after 4096 tokens, against 256", row="decode-context-256", to="decode-context-4096"),
    ]


SHORT = {"forgetting": 1.15, "polar": 1.4, "cope": 1.6}
LONG = {"forgetting": 1.25, "polar": 1.6, "cope": 2.0}
AGAINST_PEER = {"rotary": 1.15, "alibi": 1.15, "t5": 3, "dynamic": 2, "cope": 3, "polar": 1.5}


def _train_targets() -> list[Target]:
    over_none = ("alibi", "t5", "dynamic", "forgetting", "polar", "cope")
    return [
        *(
            costs(work=f"training step, {s}, 1024 tokens", row=f"train-{s}", than=NONE, bound=SHORT.get(s, 1.1))
            for s in over_none
        ),
        *(
            costs(work=f"training step, {s}, 4096 tokens", row=f"train-4096-{s}", than=NONE, bound=LONG.get(s, 1.15))
            for s in over_none
        ),
        *(
            faster(work=f"training step, {s}, 1024 tokens", row=f"train-{s}", than=PEER, bound=bound)
            for s, bound in AGAINST_PEER.items()
        ),
        *(
            Grows(
                work=f"peak memory, {s}, 1024 to 2048 tokens", row=f"memory-{s}-1024", to=f"memory-{s}-2048", bound=2.2
            )
            for s in ("t5", "dynamic", "alibi", "forgetting", "cope")
        ),
    ]


TARGETS = (*_decode_targets(), *_train_targets())
CUDA_TARGETS = (
    NearLimit(work="decode, 1 B parameters, bfloat16", row="cuda-decode", side=COMPILED, bound=0.8),
    NearLimit(
        work="training step, 1 B parameters, 4096 tokens, bfloat16", row="cuda-train-rotary", side=OURS, bound=0.5
    ),
    *(
        costs(
            work=f"training step, {s}, 1 B parameters, 4096 tokens, bfloat16",
            row=f"cuda-train-{s}",
            than=NONE,
            bound=1.3,
        )
        for s in ("alibi", "t5")
    ),
)


def verdicts(rows: Rows, device: str = "cpu") -> list[tuple[Target, Verdict]]:
    """Every target of a kind of device, and what it came to."""
    return [(target, target.verdict(rows)) for target in (CUDA_TARGETS if device == "cuda" else TARGETS)]
