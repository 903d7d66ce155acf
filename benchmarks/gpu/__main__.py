"""`python -m benchmarks.gpu`: the stages in the order of their value, each in a process of its own with a time limit.

    python -m benchmarks.gpu --wheels wheels --out results

Needs torch, and wheels of what else is missing in a folder; no network. Without a CUDA device the stages run in a reduced form.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.wheels import DOWNLOAD, missing, unpack

LIMITS: dict[str, float] = {
    "contract": 140,
    "gradients": 80,
    "recompiles": 50,
    "decode": 65,
    "llama": 90,
    "graphs": 50,
}
"""Seconds of each stage: under eight minutes in all."""
RESULTS = Path("benchmarks/results/gpu")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--stages", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--wheels", type=Path, help="a folder of wheels of packages that this Python lacks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON files go, one a stage")
    parser.add_argument("--reduced", action="store_true", help="tiny sizes, also on CUDA; the default on a CPU")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the time limits")
    parser.add_argument("--run-stage", choices=list(LIMITS), help=argparse.SUPPRESS)
    return parser.parse_args(given)


def run_here(stage: str, options: argparse.Namespace) -> None:
    """One stage, in this process. Imports what needs the packages."""
    import torch

    from benchmarks.gpu.checks import contract, gradient_stage, recompile_stage
    from benchmarks.gpu.record import Round, run_stage
    from benchmarks.gpu.speed import decode_stage, graph_stage, llama_stage
    from x_positional.generation.step.captured import RECORDERS

    stages = {
        "contract": contract,
        "gradients": gradient_stage,
        "recompiles": recompile_stage,
        "decode": decode_stage,
        "llama": llama_stage,
        "graphs": graph_stage,
    }
    if stage != "graphs":  # a fault of CUDA graphs must not fail the others
        RECORDERS.clear()
    cuda = torch.cuda.is_available()
    where = Round(torch.device("cuda" if cuda else "cpu"), options.reduced or not cuda)
    run_stage(stage, stages[stage], where, options.out, LIMITS[stage] * options.scale)


def run_limited(stage: str, options: argparse.Namespace, path: list[str]) -> str:
    """One stage in a process group of its own, which ends with its time limit: how it ended."""
    limit = LIMITS[stage] * options.scale
    command = [sys.executable, "-m", "benchmarks.gpu", "--run-stage", stage, "--out", str(options.out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    command += ["--scale", str(options.scale), *(["--reduced"] if options.reduced else [])]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait(limit)
        return "complete" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        return f"time limit of {limit:.0f} s"
    finally:
        if process.poll() is None:  # the time limit, or Ctrl-C: the compiler's workers end too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def table(out: Path, stages: list[str]) -> str:
    """What was found, short: counts a stage, then failures, then measurements."""
    from benchmarks.gpu.record import Record, shown

    lines, failed, measured = [f"{'stage':<12}{'passed':>7}{'failed':>7}{'n/a':>6}{'seconds':>9}  ended"], [], []
    for stage in stages:
        record = Record.read(out, stage, LIMITS[stage])
        count = {verdict: sum(row.verdict == verdict for row in record.rows) for verdict in ("pass", "fail", "n/a")}
        lines.append(
            f"{stage:<12}{count['pass']:>7}{count['fail']:>7}{count['n/a']:>6}{record.seconds:>9}  {record.ended}"
        )
        failed += [f"  FAIL {row.name}: {shown(row)}"[:300] for row in record.rows if row.verdict == "fail"]
        measured += [f"  {stage}: {row.name}: {shown(row)}" for row in record.rows if row.verdict == "measured"]
    return "\n".join(["", *lines, *failed, *measured])


def main(given: list[str] | None = None) -> int:
    """Run the stages, print the table. 1 where a row failed or a stage did not end by itself."""
    options = arguments(given)
    if options.run_stage:
        run_here(options.run_stage, options)
        return 0
    with tempfile.TemporaryDirectory(prefix="wheels-") as folder:
        path = [str(Path.cwd()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        if options.wheels is not None:
            print("unpacked", ", ".join(unpack(options.wheels, Path(folder))))
            path = [folder, *path]
            sys.path.insert(0, folder)
        if lacking := missing():
            raise SystemExit(
                f"missing: {', '.join(lacking)}. Give --wheels a folder of wheels: {DOWNLOAD.format(version='3.12')}"
            )
        return run_all(options, path)


def run_all(options: argparse.Namespace, path: list[str]) -> int:
    """Every stage in turn; its record says how it ended."""
    from benchmarks.gpu.record import Record

    well = True
    for stage in options.stages:
        print(f"{stage} (at most {LIMITS[stage] * options.scale:.0f} s)", flush=True)
        (options.out / f"{stage}.json").unlink(missing_ok=True)
        ended = run_limited(stage, options, path)
        record = Record.read(options.out, stage, LIMITS[stage])
        record.ended = ended
        record.write(options.out)
        well = well and ended == "complete" and not any(row.verdict == "fail" for row in record.rows)
    print(table(options.out, options.stages), flush=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
