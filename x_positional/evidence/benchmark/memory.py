"""Peak memory of one unit of work, beyond the model: of the allocator on CUDA, of a fresh process elsewhere (Linux)."""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from x_positional.errors import UserError
from x_positional.evidence.benchmark.models import Models, Recipe, Shape
from x_positional.evidence.benchmark.rows import Row
from x_positional.evidence.benchmark.work import SIDES, Prepared, Work, prepare

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_memory(row: Row, name: str, device: torch.device) -> int:
    """Bytes. Raises UserError, MissingExtra."""
    side = SIDES[name]
    scheme = side.scheme or row.scheme
    recipe = Recipe(scheme=scheme, shape=row.shape, length=row.work.most_tokens, dtype=row.dtype, device=device)
    if device.type == "cuda":
        return _allocated(prepare(side, row.work, Models(recipe)))
    if not CLEAR.exists():
        raise UserError("peak memory is read from /proc, which this system does not have")
    asked = {
        "side": name,
        "scheme": scheme,
        "dtype": row.dtype,
        "shape": vars(row.shape),
        "work": vars(row.work),
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "x_positional.evidence.benchmark.memory", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["the process ended without a message"])[-1])
    return int(done.stdout.strip().splitlines()[-1])


def _allocated(side: Prepared) -> int:
    side.sample()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    side.sample()
    return torch.cuda.max_memory_allocated() - before


def peak(side: Prepared) -> int:
    """Of the first unit of work of this process."""
    CLEAR.write_text("5")  # the high-water mark starts again from what is resident now
    before = _high_water()
    side.sample()
    return _high_water() - before


def _high_water() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())
    return 0 if found is None else int(found[1]) * 1024


def main(text: str) -> None:
    """The fresh process: prints the bytes."""
    asked = json.loads(text)
    torch.set_num_threads(asked["threads"])
    work = Work(**asked["work"])
    recipe = Recipe(
        scheme=asked["scheme"],
        shape=Shape(**asked["shape"]),
        length=work.most_tokens,
        dtype=asked["dtype"],
        device=torch.device("cpu"),
    )
    print(peak(prepare(SIDES[asked["side"]], work, Models(recipe))))


if __name__ == "__main__":
    main(sys.argv[1])
