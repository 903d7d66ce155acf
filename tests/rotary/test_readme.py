"""Every Python snippet of rotary-embedding-torch's README runs after its import is changed, and gives the same tensors.

The snippets are read from the metadata of the installed package.
"""

import re
from importlib.metadata import metadata

import pytest
import rotary_embedding_torch.flash_attn_with_rotary as their_flash
import torch
from torch import Tensor

SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
TEXT = metadata("rotary-embedding-torch").get_payload()
SNIPPETS = SNIPPET.findall(TEXT)
FASTEST = 1024.0  # radians that float32 has to hold in the snippets: 1024 tokens


def run(package: str, names: dict[str, object]) -> list[dict[str, Tensor]]:
    """The tensors after each snippet; they run in order, as a reader would type them."""
    torch.manual_seed(0)
    after = []
    for number, snippet in enumerate(SNIPPETS):
        exec(compile(snippet.replace("rotary_embedding_torch", package), f"snippet {number}", "exec"), names)
        after.append({name: value for name, value in names.items() if isinstance(value, Tensor)})
    return after


def test_snippets_run_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(their_flash, "TRITON_AVAILABLE", False)
    monkeypatch.setattr(Tensor, "cuda", lambda self: self)  # what they show must not need a GPU
    assert len(SNIPPETS) == 7
    assert sum("import" in snippet for snippet in SNIPPETS) == 5
    names: dict[str, object] = {}
    mine, other = run("x_positional.rotary", names), run("rotary_embedding_torch", {})
    assert names["RotaryEmbedding"].__module__.startswith("x_positional.")
    assert {"q", "k", "freqs", "out", "pos_indices"} <= mine[-1].keys()
    for got, want in zip(mine, other, strict=True):
        assert got.keys() == want.keys()
        for name in got:
            torch.testing.assert_close(got[name], want[name].detach(), rtol=2e-6, atol=4 * 3e-7 * FASTEST)
