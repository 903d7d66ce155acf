"""A process that makes cells: reads one JSON line a request, and answers each with one.

It ends when its input does, in the middle of a step if it must: so it never outlives the process that started it.
"""

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from x_positional.evidence.comparison.cell import Interrupted, SharedData, Task, make_cell, step_seconds
from x_positional.evidence.comparison.entries import import_module
from x_positional.training.config import TrainConfig
from x_positional.training.cpu import denormals_flushed

INTERRUPTED = 130


def main(threads: int) -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    with denormals_flushed():  # in what is timed and evaluated as well
        data = SharedData()
        while True:
            answer = _answer(requests.get(), data)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _read(requests: "queue.Queue[dict[str, Any]]") -> None:
    try:
        for line in sys.stdin.buffer:
            requests.put(json.loads(line))
    finally:  # also after half a line, where the other process was killed while it wrote
        os._exit(0)


def _answer(request: dict[str, Any], data: SharedData) -> dict[str, Any]:
    for module in request["modules"]:
        import_module(module)
    if "configs" in request:
        configs = [TrainConfig.model_validate(config) for config in request["configs"]]
        return {"step_seconds": step_seconds(configs, request["seconds"], data)}
    task = Task.model_validate(request["task"])
    try:
        cell = make_cell(task, data)
    except Interrupted:
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    cell.save(Path(task.file))
    return {"done": task.file}


if __name__ == "__main__":
    main(int(sys.argv[1]))
