"""The results that are committed: one small JSON file a machine and date."""

import json
import platform
import re
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import DEPTH, DIM, HEADS, VOCAB

Results = dict[str, dict[str, dict[str, float]]]
"""Scheme -> job -> library -> seconds (bytes for the job "memory")."""


def machine(device: str) -> str:
    """The name of what runs the jobs: the GPU, or the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def rounded(results: Results) -> Results:
    """Four significant digits: more would be noise."""
    return {
        scheme: {job: {name: float(f"{value:.4g}") for name, value in found.items()} for job, found in jobs.items()}
        for scheme, jobs in results.items()
    }


def keep(results: Results, *, folder: Path, device: str, rounds: int) -> Path:
    """Write what was measured, and on what. Measured twice on one day, a scheme keeps the later numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    name, now = machine(device), datetime.now(timezone.utc)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = folder / f"{now:%Y-%m-%d}-{slug}.json"
    earlier = json.loads(path.read_text("utf-8"))["seconds"] if path.is_file() else {}
    record: dict[str, Any] = {
        "date": f"{now:%Y-%m-%d}",
        "machine": name,
        "device": device,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "versions": {name: version(name) for name in ("torch", "x-transformers", "x-positional")},
        "shape": {"dim": DIM, "depth": DEPTH, "heads": HEADS, "vocab": VOCAB},
        "seconds": earlier | rounded(results),
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
