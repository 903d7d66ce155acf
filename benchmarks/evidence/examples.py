"""What examples print that a page quotes: runs them in full and keeps the numbers in evidence/examples.json.

python -m benchmarks.evidence.examples
"""

import importlib.util
import sys
from typing import Any

from benchmarks.evidence.store import FOLDER, ROOT
from x_positional.evidence.evaluation.results import Record

PATH = FOLDER / "examples.json"
SIZES: tuple[str, ...] = ("20 × 20", "24 × 24", "16 × 28")
"""Pixels of the images of `examples/vit_digits.py`, the trained size first."""


class Examples(Record):
    """One run of each example."""

    images: dict[str, dict[str, float]]
    """Scheme -> size in pixels -> share of digits named right."""
    reversed_words: float
    """Share of words that a rotary encoder and an ALiBi decoder reverse without a mistake."""


def main() -> int:
    """Run the examples, which takes a few minutes, and keep what they return."""
    images = _run("vit_digits")
    found = {scheme: dict(zip(SIZES, shares, strict=True)) for scheme, shares in images.items()}
    Examples(images=found, reversed_words=_run("rope_encoder_alibi_decoder")).save(PATH)
    return 0


def _run(name: str) -> Any:
    """What `main` of an example returns."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([])


def read() -> Examples | None:
    """The numbers; None where they were not measured."""
    return Examples.load(PATH) if PATH.exists() else None


if __name__ == "__main__":
    sys.exit(main())
