"""Renders docs/families.md: how far the numbers of each published family are from those of transformers.

Run from the repository root, takes a few minutes: PYTHONPATH=. python docs/generate/families.py
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.pretrained import test_towers as towers
from tests.pretrained import test_vision_published as images
from tests.support.published import decoders, encoders, seq2seq_cases
from tests.support.published.compare import Published, both, ids, left_padded, takes, their_logits

PAGE = Path(__file__).parents[1] / "families.md"
TORCH = torch.__version__.split("+")[0]
COLUMNS = ("plain", "padded", "cached")
Measured = Iterator[tuple[str, float]]
"""Columns with their differences."""

PROSE = f"""\
# Families, measured

The largest difference between the numbers of x_positional and of transformers {transformers.__version__}, for every family of
[published models](pretrained.md). The page is generated from the models of the tests (`tests/support/published/`): small, random,
with every parameter and buffer perturbed, float32, torch {TORCH}, on a CPU. A row is the largest difference
over all settings of its family, relative to the largest number that is compared; `0` is exact. A single operation in float32
rounds by up to 6e-8.

- **plain**: a sequence past every window and every original length; images of every size.
- **padded**: rows of three lengths, padded on the left (on both sides in encoders and in the sources of encoder-decoders).
- **cached**: the same sequence in chunks of 1 to 9 tokens over a cache, against one pass of transformers.

`-` marks what the family does not have, or what transformers computes wrongly (the case in the tests says where).
Positions of several axes (`qwen2_vl`, `qwen2_5_vl`, `qwen3_vl`, `qwen3_vl_moe`) are in
`tests/pretrained/test_three_axes.py`.
"""


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def decoder(case: Published) -> Measured:
    """A model that predicts the next token."""
    theirs, ours, _ = both(case)
    tokens = ids(2, case.length)
    expected = their_logits(theirs, tokens)
    yield "plain", apart(ours(tokens), expected)
    if case.padded:
        tokens, mask, positions = left_padded(ids(3, case.length), [case.length, case.length - 5, 4])
        wanted = their_logits(theirs, tokens, mask, positions if takes(theirs, "position_ids") else None)
        yield "padded", apart(ours(tokens, mask=mask)[mask], wanted[mask])
    if all(scheme.capabilities().kv_cacheable for scheme in ours.attn_layers.position_schemes):
        tokens, cache = ids(2, case.length), ours.new_cache(2)
        parts = [ours(part, cache=cache) for part in tokens.split([5, 1, 9, 1, 1, case.length - 17], dim=1)]
        yield "cached", apart(torch.cat(parts, dim=1), expected)


def encoder(case: Any) -> Measured:
    """A model of logits or hidden states of every token."""
    theirs, ours, _ = both(case)
    tokens = encoders.words(case, 2, case.length)
    yield "plain", apart(ours(tokens), encoders.expected(theirs, tokens))
    for left in (True, False):
        tokens, mask, positions = encoders.padded(case, left)
        given = {"position_ids": positions} if takes(theirs, "position_ids") and not case.shift else {}
        yield "padded", apart(ours(tokens, mask=mask)[mask], encoders.expected(theirs, tokens, mask, **given)[mask])


def seq2seq(case: Published) -> Measured:
    """An encoder-decoder."""
    theirs, ours, _ = both(case)
    src, tgt = ids(2, case.length), ids(2, 19, seed=1)
    yield "plain", apart(ours.logits(src, tgt), seq2seq_cases.expected(theirs, src, tgt))
    for left in (True, False) if case.padded else (False,):
        src, mask = seq2seq_cases.sources(left)
        tgt = ids(3, 9, seed=1)
        yield "padded", apart(ours.logits(src, tgt, mask=mask), seq2seq_cases.expected(theirs, src, tgt, mask))


def text_tower(case: Any) -> Measured:
    """Hidden states of a text tower."""
    theirs, ours, _ = both(case)
    tokens = ids(2, case.length)
    found = ours(tokens, return_embeddings=True)
    yield "plain", apart(found, theirs(tokens).last_hidden_state)


def vision(case: Any) -> Measured:
    """A model of images."""
    theirs, ours, _ = both(case)
    for size in case.sizes:
        pixels = images.images(case, size)
        yield "plain", apart(images.found(ours, pixels), images.expected(theirs, case, pixels, size))


KINDS: dict[str, tuple[list[Any], Callable[[Any], Measured]]] = {
    "Decoders": (list(decoders.CASES), decoder),
    "Encoders": (list(encoders.CASES), encoder),
    "Encoder-decoders": (list(seq2seq_cases.CASES), seq2seq),
    "Text towers": (list(towers.CASES), text_tower),
    "Images": (list(images.CASES), vision),
}


def shown(value: float | None) -> str:
    """A cell."""
    if value is None:
        return "-"
    return f"{value:.0e}".replace("e-0", "e-") if value else "0"


@torch.no_grad()
def rows(cases: list[Any], measure: Callable[[Any], Measured]) -> list[str]:
    """A table of one kind of models."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for case in cases:
        family = both(case)[0].config.model_type
        for column, value in measure(case):
            found[family][column] = max(value, found[family].get(column, 0.0))
    columns = [column for column in COLUMNS if any(column in values for values in found.values())]
    lines = ["| `model_type` | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for family, values in sorted(found.items()):
        cells = [shown(values.get(column)) for column in columns]
        lines.append(f"| `{family}` | " + " | ".join(cells) + " |")
    return lines


def render() -> str:
    """The whole page."""
    lines = [PROSE]
    for title, (cases, measure) in KINDS.items():
        lines += [f"## {title}", "", *rows(cases, measure), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
