"""`x-positional verify`: the same inputs through a model in x_positional and in transformers, and the largest differences.

B batch, T tokens, S source tokens, V vocabulary.
"""

import gc
import inspect
import math
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from x_positional.cli.hints import command
from x_positional.cli.published import dtype_of, loaded, opened
from x_positional.cli.verify_cases import VerifyCase, cases_of
from x_positional.errors import UserError, import_extra
from x_positional.models.language import TransformerWrapper
from x_positional.models.vision import ViTransformerWrapper
from x_positional.pretrained.native import NATIVE
from x_positional.pretrained.source import Source

AUTO = {
    ("decoder", True): "AutoModelForCausalLM",
    ("encoder", True): "AutoModelForMaskedLM",
    ("decoder", False): "AutoModel",
    ("encoder", False): "AutoModel",
    ("seq2seq", True): "AutoModelForSeq2SeqLM",
    ("vision", True): "AutoModelForImageClassification",
    ("vision", False): "AutoModel",
}
"""(Kind of family, whether it has a head) -> the class of transformers that reads it."""
PRECISE = ("float32", "float64")


@dataclass(frozen=True)
class Outcome:
    """The result of one case."""

    case: VerifyCase
    difference: float | None
    """The largest absolute difference; None where the case was not run (its note contains the reason)."""
    largest: float = 1.0
    """The largest absolute value of transformers."""

    @property
    def relative(self) -> float:
        """The difference divided by the largest value, or by 1 if that is smaller."""
        return math.inf if self.difference is None else self.difference / max(1.0, self.largest)

    def within(self, tolerance: float) -> bool:
        """Whether the difference is within a relative tolerance; NaN is not."""
        return self.difference is None or self.relative <= tolerance


def verify(path: Path, tolerance: float, dtype: str, max_tokens: int) -> bool:
    """Compare and print; True if all differences are within the tolerance. Raises UserError, PretrainedError."""
    if dtype not in PRECISE:
        raise UserError(
            f"unsupported --dtype {dtype}; supported: {', '.join(PRECISE)}. In lower precision, rounding alone differs by percents"
        )
    import_extra("transformers", "verify needs", "hf")
    console, status = Console(), Console(stderr=True)
    source = opened(path, status)
    if source.config.get("model_type") == NATIVE:
        raise UserError(
            f"{path} is in x_positional's own format, which transformers computes with x_positional itself, so there is nothing "
            f"to compare; a published family can be verified: {command()} convert {path} OTHER_FOLDER --no-code"
        )
    model = loaded(source, status, dtype, "cpu")
    kind, family = model.origin.family.kind, model.origin.family.model_type
    headed = _headed(model)
    cases = cases_of(model, kind, source.config, max_tokens)
    ours = _ours(model, cases, status)
    del model
    gc.collect()
    with status.status(f"transformers is reading {source.path.name}"):
        theirs = _their_model(source, AUTO[kind, headed], dtype_of(dtype))
    outcomes = [_compared(case, ours.get(case.name), theirs, status) for case in cases]
    what = "logits" if headed else "hidden states"
    report(
        console, f"{source.path.name}: {family}, {what} in {dtype}, compared with {_name(theirs)}", outcomes, tolerance
    )
    return all(outcome.within(tolerance) for outcome in outcomes)


def _headed(model: nn.Module) -> bool:
    """Whether it returns logits rather than hidden states."""
    if isinstance(model, ViTransformerWrapper):
        return model.config.num_classes is not None
    return not isinstance(model, TransformerWrapper) or model.has_head


@torch.no_grad()
def _ours(model: nn.Module, cases: Iterable[VerifyCase], console: Console) -> dict[str, Tensor]:
    found = {}
    for case in cases:
        if case.runs:
            with console.status(f"{case.name}: {case.given}"):
                found[case.name] = case.ours(model)
    return found


@torch.no_grad()
def _compared(case: VerifyCase, ours: Tensor | None, theirs: nn.Module, console: Console) -> Outcome:
    if ours is None:
        return Outcome(case, None)
    takes = set(inspect.signature(theirs.forward).parameters)
    if case.needs - takes:
        return Outcome(case.without(f"{_name(theirs)} takes no {', '.join(case.needs - takes)}"), None)
    with console.status(f"{case.name}: {case.given}, in transformers"):
        output = theirs(**{name: value for name, value in case.inputs.items() if name in takes})
    expected = output.logits if "logits" in output else output.last_hidden_state
    kept = slice(None) if case.mask is None else case.mask
    difference = (ours[kept].double() - expected[kept].double()).abs().max()
    return Outcome(case, float(difference), float(expected[kept].abs().max()))


def _their_model(source: Source, auto: str, dtype: torch.dtype | None) -> nn.Module:
    transformers = import_extra("transformers", "verify needs", "hf")
    where: dict[str, Any] = {"pretrained_model_name_or_path": source.path}
    if source.path.is_file():
        where = {"pretrained_model_name_or_path": source.path.parent, "gguf_file": source.path.name}
    with _quiet(transformers):
        try:
            return getattr(transformers, auto).from_pretrained(**where, dtype=dtype).eval()
        except (OSError, ValueError, ImportError, RuntimeError, KeyError, AttributeError) as error:
            raise UserError(f"transformers {transformers.__version__} cannot read {source.path}: {error}") from error


@contextmanager
def _quiet(transformers: Any) -> Any:
    """Disable the progress bars and warnings of transformers."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def report(console: Console, title: str, outcomes: list[Outcome], tolerance: float) -> None:
    """Print the table and the conclusion."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, side in (
        ("check", "left"),
        ("tokens", "left"),
        ("difference", "right"),
        ("largest value", "right"),
        ("relative", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for outcome in outcomes:
        case = outcome.case
        if outcome.difference is None:
            table.add_row(case.name, "", "", "", "", "not run")
            continue
        verdict = "ok" if outcome.within(tolerance) else "DIFFERS"
        table.add_row(
            case.name,
            case.given,
            f"{outcome.difference:.1e}",
            f"{outcome.largest:.1f}",
            f"{outcome.relative:.1e}",
            verdict,
        )
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for outcome in outcomes:
        if outcome.case.note:
            console.print(
                f"{outcome.case.name} was not run: {outcome.case.note}", markup=False, highlight=False, soft_wrap=True
            )
    apart = [outcome for outcome in outcomes if not outcome.within(tolerance)]
    if not apart:
        text = f"equal: no difference exceeds {tolerance:g} of the largest value"
    else:
        text = f"different: these exceed {tolerance:g} of the largest value: {', '.join(o.case.name for o in apart)}"
        if {outcome.case.name for outcome in apart} <= {"left padded", "shifted positions"}:
            text += "\nonly padding or positions differ: some published code counts padding as tokens, x_positional never does"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _name(model: nn.Module) -> str:
    return f"transformers' {type(model).__name__}"
