"""`x-positional verify`: the same tokens through a model here and in transformers, and how far apart the numbers are.

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
from x_positional.errors import UserError
from x_positional.models.language import TransformerWrapper
from x_positional.models.vision import ViTransformerWrapper
from x_positional.pretrained.extras import needed
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
"""Kind of family, and whether there is a head -> the class of transformers that reads it."""


SHARP = ("float32", "float64")


@dataclass(frozen=True)
class Outcome:
    """difference: the largest one, of `largest` numbers; None where the case was not run (its note says why)."""

    case: VerifyCase
    difference: float | None
    largest: float = 1.0

    @property
    def relative(self) -> float:
        """The difference beside the largest value; as it is where that is below 1."""
        return math.inf if self.difference is None else self.difference / max(1.0, self.largest)

    def within(self, tolerance: float) -> bool:
        """NaN is not."""
        return self.difference is None or self.relative <= tolerance


def verify(path: Path, tolerance: float, dtype: str, max_tokens: int) -> bool:
    """Compare and print; True where all is within the tolerance. Raises UserError, PretrainedError."""
    if dtype not in SHARP:
        raise UserError(
            f"--dtype {dtype} is none of {', '.join(SHARP)}: in fewer bits, rounding alone differs by percents"
        )
    needed("transformers", "comparing needs", extra="hf")
    console, status = Console(), Console(stderr=True)
    source = opened(path, status)
    if source.config.get("model_type") == NATIVE:
        raise UserError(
            f"{path} is in our own format, which transformers cannot read; write it for transformers first: "
            f"{command()} convert {path} OTHER_FOLDER --format hf"
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
    report(console, f"{source.path.name}: {family}, {what} in {dtype}, beside {_name(theirs)}", outcomes, tolerance)
    return all(outcome.within(tolerance) for outcome in outcomes)


def _headed(model: nn.Module) -> bool:
    """Whether it gives logits, and not hidden states."""
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
    transformers = needed("transformers", "comparing needs", extra="hf")
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
    """Without bars and advice of transformers: this command has its own."""
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
    """The table, and what it means."""
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
        text = f"the same: no difference is above {tolerance:g} of the largest value"
    else:
        text = f"not the same: above {tolerance:g} of the largest value: {', '.join(o.case.name for o in apart)}"
        if {outcome.case.name for outcome in apart} <= {"left padded", "shifted positions"}:
            text += "\nonly padding or positions: some published code counts padding as text, which is never done here"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _name(model: nn.Module) -> str:
    return f"transformers' {type(model).__name__}"
