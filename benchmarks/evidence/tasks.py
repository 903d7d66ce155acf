"""The schemes of `PROBED` on tasks, side by side in processes; a scheme, seed and task is a file, written when it is finished."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.evidence.grid import CONFIG, entries
from benchmarks.evidence.store import ROOT, Probe, probe_path
from x_positional.config.layers import LayersConfig
from x_positional.evidence.comparison.entries import with_layers
from x_positional.evidence.evaluation.probes import task_scores
from x_positional.progress import print_lines
from x_positional.training.load import load_fields

Key = tuple[str, int, str]
"""Label, seed and task."""


def measure_probes(keys: Iterable[Key], folder: Path, jobs: int, console: Console) -> None:
    """Measure what is missing.

    Args:
        keys: What to measure, in this order.
        folder: Where the results go.
        jobs: Processes, each with one thread.
        console: Shows each result and an estimate of the rest.
    """
    missing = [key for key in keys if not probe_path(folder, *key).exists()]
    if not missing:
        return
    print_lines(console, f"{len(missing)} trainings on tasks, {jobs} at a time")
    began = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start, initargs=(os.getpid(),)) as pool:
        waiting = [pool.submit(measure_probe, *key, folder) for key in missing]
        for count, future in enumerate(as_completed(waiting), 1):
            label, seed, task = future.result()
            left = (time.monotonic() - began) / count * (len(missing) - count)
            print_lines(
                console, f"{label}, seed {seed}, {task}: done; {len(missing) - count} left, about {left / 60:.0f} min"
            )


def measure_probe(label: str, seed: int, task: str, folder: Path) -> Key:
    """One scheme and seed on one task."""
    entry = next(entry for entry in entries() if entry.label == label)
    layers = with_layers(load_fields(ROOT / CONFIG, {}), entry)["model"]["layers"]
    began = time.monotonic()
    scores = task_scores(LayersConfig.model_validate(layers), [task], seed)
    probe = Probe(label=label, seed=seed, scores=scores, seconds=time.monotonic() - began)
    probe.save(probe_path(folder, label, seed, task))
    return label, seed, task


def _start(parent: int) -> None:
    """One thread, and no life after the parent's, which may be killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
