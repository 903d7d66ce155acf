"""Feeds junk to everything that reads a config, in a process of its own; prints what it found as JSON.

python -m tests.fuzz.configs CASES [FIRST]: the cases are numbered, and each is drawn from its number alone.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.junk import CLASSES, fields_of, flags_of, junk, named, yaml_text
from tests.fuzz.junk import SCHEMES as KINDS
from x_positional import Decoder, Report, XPositionalError, check
from x_positional.config.flags import layers_from_flags, model_from_flags, vision_from_flags, xtransformer_from_flags
from x_positional.config.models import ModelConfig
from x_positional.training.load import load_config, load_model
from x_positional.training.overrides import parse_overrides

SECONDS = 2.0
"""Of processor time for one case."""
MEGABYTES = 500
"""Above what the import takes."""


class TooSlowError(BaseException):
    """A case took more than SECONDS."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises TooSlowError inside after SECONDS of processor time."""

    def stop(*_: Any) -> None:
        raise TooSlowError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 0.5)  # again, as a destructor may swallow it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def judged(report: Report) -> None:
    """A report can be printed, and is a verdict rather than a failure of the check."""
    text = f"{report}\n{json.dumps(report.to_dict())}"
    text.encode("utf-8")
    readable(text)
    if "the check itself failed" in text:
        raise RuntimeError(text[:500])


def readable(text: str) -> None:
    """No text of pydantic's, and no end of it."""
    if "pydantic" in text or len(text) > 200_000:
        raise RuntimeError(f"{len(text)} characters: {text[:500]}")


def refused(call: Callable[[], Any]) -> None:
    """The call succeeds, or raises an error of the package."""
    try:
        call()
    except XPositionalError as error:
        readable(str(error))
        str(error).encode("utf-8")


def _class(rng: Random) -> None:
    schema = rng.choice(CLASSES)
    fields = fields_of(rng, schema)
    refused(lambda: schema.model_validate(fields) if rng.random() < 0.5 else schema(**fields))


def _file(rng: Random, folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml_text(rng), encoding="utf-8", errors="surrogatepass")
    arguments = [
        f"--{rng.choice(['depth', 'lr', 'model.layers.position.theta', 'position.0.kind', 'x'])}",
        yaml_text(rng),
    ]
    given = arguments if rng.random() < 0.3 else []
    readers: list[Callable[[], Any]] = [
        lambda: judged(check(path)),
        lambda: ModelConfig.from_yaml(path),
        lambda: load_config(path, parse_overrides(given)),
        lambda: load_model(path, parse_overrides(given)),
    ]
    refused(rng.choice(readers))


def _flags(rng: Random) -> None:
    flags = flags_of(rng)
    for name in ("cache", "device", "dtype", "train", "decode_to", "cache_window"):
        flags.pop(name, None)
    kind = rng.choice(["decoder", "encoder", junk(rng)])
    calls: list[Callable[[], Any]] = [
        lambda: layers_from_flags(kind, flags),
        lambda: model_from_flags(junk(rng), junk(rng), {**flags, "kind": kind}),
        lambda: vision_from_flags({**flags, "kind": kind}),
        lambda: xtransformer_from_flags(junk(rng), {rng.choice(["enc_", "dec_", ""]) + k: v for k, v in flags.items()}),
    ]
    depth, heads = flags.get("depth", 1), flags.get("heads")
    if isinstance(depth, int) and depth in (1, 2) and isinstance(heads, int) and heads in (2, 4):
        calls.append(lambda: Decoder(**{name: value for name, value in flags.items() if name != "num_tokens"}))
    refused(rng.choice(calls))


def _target(rng: Random, folder: Path) -> None:
    odd = ["a\0b", "x" * 5000, "", "\ud800", "/", str(folder / "fifo"), str(folder), "/dev/zero", b"x", 5, Path("\0")]
    choices = [rng.choice(odd), junk(rng), fields_of(rng, rng.choice(CLASSES)), {"model": fields_of(rng, ModelConfig)}]
    judged(check(rng.choice(choices)))


def case(number: int, folder: Path) -> None:
    """One case."""
    rng = Random(number)
    draw = rng.random()
    if draw < 0.35:
        judged(check(**flags_of(rng)))
    elif draw < 0.5:
        judged(check(dim=16, depth=2, heads=4, max_seq_len=rng.choice([8, 2**31]), position=named(rng, KINDS, "kind")))
    elif draw < 0.6:
        _target(rng, folder)
    elif draw < 0.75:
        _class(rng)
    elif draw < 0.85:
        _flags(rng)
    else:
        _file(rng, folder)


class Peak:
    """Peak resident memory since `restart`. Linux resets its own mark (man 5 proc, clear_refs); elsewhere it never falls."""

    def __init__(self) -> None:
        self.resets = Path("/proc/self/clear_refs").exists()

    def restart(self) -> None:
        if self.resets:
            Path("/proc/self/clear_refs").write_text("5")

    def kilobytes(self) -> int:
        if self.resets:
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(cases: int, first: int = 0) -> dict[str, Any]:
    """The figures of many cases."""
    warnings.simplefilter("ignore")
    peak = Peak()
    peak.restart()
    before = peak.kilobytes()
    found: dict[str, Any] = {"cases": cases, "foreign": [], "slow": [], "slowest": 0.0, "large": [], "largest": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.mkfifo(folder / "fifo")
        for number in range(first, first + cases):
            peak.restart()
            start = time.process_time()
            try:
                with limited():
                    case(number, folder)
            except TooSlowError:
                found["slow"].append(number)
            except Exception:
                found["foreign"].append(f"case {number}: {traceback.format_exc(limit=-4)}")
            found["slowest"] = max(found["slowest"], time.process_time() - start)
            megabytes = (peak.kilobytes() - before) // 1024
            found["largest"] = max(found["largest"], megabytes)
            if megabytes > MEGABYTES:
                found["large"].append(number)
    return found


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:]))))
