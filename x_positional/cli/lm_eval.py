"""`x-positional lm-eval`: the command line of lm-evaluation-harness, which then knows the model `x_positional`."""

import sys
from collections.abc import Sequence

from x_positional.errors import import_extra

MODEL = "x_positional"
COMMANDS = ("run", "ls", "validate")


def run_lm_eval(arguments: Sequence[str]) -> None:
    """Call `lm_eval` with these arguments; the model is `x_positional` unless they name one. Raises MissingExtra."""
    import_extra("lm_eval", "x-positional lm-eval needs", "lm-eval")
    from lm_eval.__main__ import cli_evaluate

    import x_positional.evidence.evaluation.harness  # noqa: F401, registers the model

    given = list(arguments)
    name, rest = (given[0], given[1:]) if given and given[0] in COMMANDS else ("run", given)
    named = any(word in ("--model", "-M") or word.startswith("--model=") for word in rest)
    model = [] if named or name != "run" else ["--model", MODEL]
    before = sys.argv
    sys.argv = ["lm_eval", name, *model, *rest]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
