"""The validator's report: errors, warnings, the backend and why, what the schemes can do, in words and as data."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from x_positional.errors import IncompatibleConfig
from x_positional.schemes.base import Capabilities


@dataclass(frozen=True, kw_only=True)
class Report:
    """The validator's verdict. Fields are None where errors leave them undetermined."""

    errors: list[str] = field(default_factory=list)
    """What cannot work: the value, the reason and the way out, as in `warnings`."""
    warnings: list[str] = field(default_factory=list)
    """What works and may be unintended."""
    position: str | None = None
    """The names of the schemes."""
    backend: str | None = None
    """The attention backend that will run."""
    reason: str | None = None
    """Why that one."""
    capabilities: Capabilities | None = None
    """What all schemes together can do."""
    decodes: str | None = None
    """Which cache is correct."""
    past: str | None = None
    """What happens after max_seq_len."""
    stacks: dict[str, "Report"] = field(default_factory=dict)
    """A report for each stack of layers, by name, where a model has more than one."""

    @property
    def ok(self) -> bool:
        """Whether there are no errors; there may be warnings."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {"ok": self.ok, **asdict(self), "stacks": {name: stack.to_dict() for name, stack in self.stacks.items()}}

    def __str__(self) -> str:
        lines = [_verdict(self)]
        for name, stack in self.stacks.items():
            lines += [name, *(f"  {line}" for line in _facts(stack))]
        lines += _facts(self)
        for title, problems in (("errors", self.errors), ("warnings", self.warnings)):
            if problems:
                lines += [title, *(f"  - {problem}" for problem in problems)]
        return "\n".join(lines)


def _verdict(report: Report) -> str:
    counts = [_count(len(report.errors), "error"), _count(len(report.warnings), "warning")]
    return ("ok" if report.ok else "refused") + ": " + ", ".join(counts)


def _count(n: int, what: str) -> str:
    return f"{n or 'no'} {what}{'' if n == 1 else 's'}"


def _facts(report: Report) -> list[str]:
    backend = report.backend and f"{report.backend} ({report.reason})"
    can = report.capabilities and capability_words(report.capabilities)
    rows = {"position": report.position, "backend": backend, "can": can, "decodes": report.decodes, "past": report.past}
    return [f"{name:<9} {text}" for name, text in rows.items() if text]


def capability_words(caps: Capabilities) -> str:
    """The capability row in words."""
    kernels = {"fused": "any kernel", "bias": "kernels with a bias", "rows": "kernels with whole rows of scores"}
    return ", ".join(
        [
            f"{kernels[caps.kernel]}",
            "cached keys stay valid" if caps.kv_cacheable else "cached keys become stale",
            "no limit of positions" if caps.unbounded else "limited positions",
            "absolute positions" if caps.absolute else "relative positions",
            "causal only" if caps.causal_only else "causal or bidirectional",
            "float positions"
            if caps.continuous and caps.uses_positions
            else "integer positions"
            if caps.uses_positions
            else "no positions=",
            *([] if caps.prefix_consistent else ["logits of a prefix depend on the final length"]),
        ]
    )


def across(kinds: Sequence[Report]) -> Report:
    """One report for a stack, from those of its kinds of layers."""
    first = kinds[0]
    caps = [kind.capabilities for kind in kinds if kind.capabilities is not None]
    return Report(
        errors=_once(e for kind in kinds for e in kind.errors),
        warnings=_once(w for kind in kinds for w in kind.warnings),
        position=_joined(kind.position for kind in kinds),
        backend=_joined(kind.backend for kind in kinds),
        reason=_joined(kind.reason for kind in kinds),
        decodes=first.decodes,
        capabilities=Capabilities.combined(caps) if len(caps) == len(kinds) else None,
        past=min((kind.past for kind in kinds if kind.past is not None), key=_refusals_first, default=None),
    )


def _once(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _joined(texts: Iterable[str | None]) -> str | None:
    return " | ".join(_once(text for text in texts if text is not None)) or None


def _refusals_first(past: str) -> bool:
    return not past.startswith("refused")


def merged(problems: Sequence[str], stacks: dict[str, Report]) -> Report:
    """One report: that of the only stack, or all of them with the stack's name before each problem."""
    if len(stacks) == 1:
        only = next(iter(stacks.values()))
        return Report(**{**vars(only), "errors": [*problems, *only.errors]})
    return Report(
        errors=[*problems, *(f"{name}: {e}" for name, stack in stacks.items() for e in stack.errors)],
        warnings=[f"{name}: {w}" for name, stack in stacks.items() for w in stack.warnings],
        stacks=stacks,
    )


def require(report: Report) -> None:
    """Raises IncompatibleConfig with every error."""
    if report.errors:
        raise IncompatibleConfig("\n".join(f"- {e}" for e in report.errors))
