"""Junk in configs, flags, YAML files and overrides: errors of the package alone, within 2 s and 500 MB a case."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.configs import Peak
from tests.support.draws import draws

ROOT = Path(__file__).parents[2]


def test_junk_is_refused_by_errors_of_the_package() -> None:
    """In a process of its own, whose memory is that of these cases."""
    command = [sys.executable, "-m", "tests.fuzz.configs", str(draws(250, 10_000))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["foreign"] == []
    assert found["slow"] == []
    assert found["large"] == []
    assert found["largest"] < 500


def test_the_peak_of_a_case_is_seen_and_ends_with_it() -> None:
    """Otherwise the limit on memory could not fail."""
    peak, megabytes = Peak(), 64
    peak.restart()
    before = peak.kilobytes()
    with mmap.mmap(-1, megabytes << 20) as block:  # not from memory that was freed earlier, which is resident already
        for _ in range(megabytes):
            block.write(b"x" * (1 << 20))
    assert peak.kilobytes() - before > (megabytes - 8) << 10
    peak.restart()
    assert peak.kilobytes() - before < 8 << 10 or not peak.resets
