"""`from_pretrained(device_mesh=)` and `materialize` in two processes: the numbers of one, and no whole copy in any process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.sharded_loading import PROCESSES, TOKENS, model
from x_positional import from_pretrained
from x_positional.errors import ArgumentError

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without distributed"),
]
ROOT = Path(__file__).parents[2]
WORD = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in x_positional's format, and one of a published family."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    model().save_pretrained(folder / "native")
    published = ROOT / "tests" / "fixtures" / "hf_llama"
    from_pretrained(published).save_pretrained(folder / "hf", format="hf")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each process records."""
    command = [sys.executable, "-m", "tests.support.sharded_loading", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native", "hf"])
def test_the_loaded_shards_compute_what_the_whole_model_does(folder: Path, found: list[dict[str, Any]], name: str):
    net = from_pretrained(folder / name)
    logits = net(TOKENS)
    logits.logsumexp(-1).sum().backward()
    for one in found:
        torch.testing.assert_close(torch.tensor(one[name]["logits"]), logits, rtol=0, atol=0)
        # each process computes the same batch, and fully_shard averages
        torch.testing.assert_close(torch.tensor(one[name]["gradient"]), net.token_emb.weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native", "drawn"])
def test_no_process_allocates_more_than_its_shards_and_a_part(found: list[dict[str, Any]], name: str):
    net = model()
    total = WORD * sum(p.numel() for p in net.parameters())
    block = WORD * sum(p.numel() for p in net.attn_layers.blocks[0].parameters())
    outside = total - 6 * block
    padding = WORD * sum(p[0].numel() for p in net.parameters())
    for one in found:
        assert one[name]["live"] <= total / PROCESSES + padding
        assert one[name]["peak"] <= total / PROCESSES + padding + 2 * block + outside
        assert one[name]["peak"] < 0.9 * total


@pytest.mark.slow
def test_the_drawn_shards_are_the_ordinary_init(found: list[dict[str, Any]]):
    assert all(one["drawn"]["equal"] for one in found)


def test_a_mesh_sets_the_device(folder: Path):
    with pytest.raises(ArgumentError, match="device_mesh cannot be combined with device or quantize"):
        from_pretrained(folder / "native", device="cpu", device_mesh=object())  # type: ignore[arg-type]
