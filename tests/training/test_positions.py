"""Drawn positions: the distributions of the papers, the same numbers after a resume, and refusals before the first step."""

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.perturbing import perturb
from tests.support.training_runs import raw_config
from x_positional import AutoregressiveWrapper, build_model
from x_positional.errors import ConfigError, UserError
from x_positional.schemes.registry import REGISTRY
from x_positional.training import TrainConfig, train
from x_positional.training.checkpoints.checkpoint import open_checkpoint
from x_positional.training.data.corpus import load_corpus
from x_positional.training.data.positions import PositionedWindows, random_positions, skipped_positions
from x_positional.training.data.windows import Windows
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.train import check_trainable, training_windows

Positions = Callable[[np.random.Generator], np.ndarray]
DRAWS = 12_000


def config(folder: Path, position: Any = "rope", seq_len: int = 12, max_seq_len: int = 33, **data: Any) -> TrainConfig:
    raw = raw_config(folder)
    raw["model"]["layers"]["position"], raw["model"]["max_seq_len"] = position, max_seq_len
    raw["data"] |= {"seq_len": seq_len, **data}
    return TrainConfig.model_validate(raw)


def pose_chances(length: int, limit: int) -> dict[tuple[int, ...], float]:
    """Equations 3 and 4 of arXiv:2309.10400 written out for three chunks."""
    cuts = list(combinations(range(1, length), 2))
    found: Counter[tuple[int, ...]] = Counter()
    for one, two in cuts:
        for first in range(limit - length + 1):
            for second in range(first, limit - length + 1):
                row = [*range(one), *(i + first for i in range(one, two)), *(i + second for i in range(two, length))]
                found[tuple(row)] += 1 / len(cuts) / (limit - length + 1) / (limit - length - first + 1)
    return found


def misfit(draw: Positions, chances: dict[tuple[int, ...], float]) -> float:
    """The largest difference of a frequency from its chance, in standard deviations; infinite for a row that cannot be."""
    random = np.random.default_rng(0)
    counts = Counter(tuple(draw(random).tolist()) for _ in range(DRAWS))
    if counts.keys() - chances.keys():
        return float("inf")
    return max(abs(counts[row] - DRAWS * p) / sqrt(DRAWS * p * (1 - p)) for row, p in chances.items())


RANDOM = dict.fromkeys(combinations(range(7), 4), 1 / 35)
POSE = pose_chances(5, 8)
FIVE = 5.0
"""Standard deviations: of 50 frequencies, one is farther off in 30,000 suites, and the draws here are seeded."""


def test_the_distributions_are_those_of_the_papers():
    assert sum(RANDOM.values()) == pytest.approx(1)
    assert sum(POSE.values()) == pytest.approx(1)
    assert misfit(lambda random: random_positions(4, 7, random), RANDOM) < FIVE
    assert misfit(lambda random: skipped_positions(5, 8, 3, random), POSE) < FIVE


def steps_of_one(random: np.random.Generator) -> np.ndarray:
    return np.arange(4) + random.integers(0, 4)


def sorted_gaps(random: np.random.Generator) -> np.ndarray:
    """Gaps in place of positions: in order and below the limit, but not equally likely."""
    return np.cumsum([0, *(1 + np.sort(random.integers(0, 2, 3)))])


def independent_skips(random: np.random.Generator) -> np.ndarray:
    """u_1 and u_2 drawn apart, then sorted: the paper draws u_2 from u_1 on."""
    starts, skips = 1 + np.sort(random.choice(4, 2, replace=False)), np.sort(random.integers(0, 4, 2))
    return np.arange(5) + np.repeat([0, *skips], np.diff([0, *starts, 5]))


def skips_from_the_first(random: np.random.Generator) -> np.ndarray:
    """u_0 drawn too."""
    return skipped_positions(5, 7, 3, random) + random.integers(0, 2)


def equal_chunks(random: np.random.Generator) -> np.ndarray:
    skip = int(random.integers(0, 4))
    return np.arange(5) + np.repeat([0, skip, int(random.integers(skip, 4))], [1, 2, 2])


@pytest.mark.parametrize(
    ("broken", "chances"),
    [
        (steps_of_one, RANDOM),
        (sorted_gaps, RANDOM),
        (independent_skips, POSE),
        (skips_from_the_first, POSE),
        (equal_chunks, POSE),
    ],
)
def test_other_distributions_are_told_apart(broken: Positions, chances: dict[tuple[int, ...], float]):
    assert misfit(broken, chances) > FIVE


@pytest.mark.parametrize("draw", ["random", "pose"])
def test_positions_depend_on_seed_and_index_only(draw: Any):
    def rows(first: int, count: int, seed: int = 3) -> dict[str, torch.Tensor]:
        return PositionedWindows(Windows(np.arange(900), 9, seed), draw, 40, seed, 3).batch(first, count)

    whole = rows(0, 130)
    assert torch.equal(whole["tokens"], Windows(np.arange(900), 9, 3).batch(0, 130)), "the texts are other ones"
    assert whole["positions"].shape == (130, 10)
    assert torch.equal(rows(100, 30)["positions"], whole["positions"][100:])
    assert not torch.equal(rows(0, 130, seed=4)["positions"], whole["positions"])
    assert len({tuple(row) for row in whole["positions"].tolist()}) > 100, "windows share their positions"
    assert (whole["positions"].diff() > 0).all()
    assert int(whole["positions"][:, :-1].max()) < 40


@pytest.mark.parametrize("draw", ["random", "pose"])
def test_a_step_reads_the_drawn_positions(tmp_path: Path, draw: Any):
    """The loss of a step is that of the model with these positions, and of no others."""
    raw = config(tmp_path, ["rope", "alibi"], positions=draw).model_dump(mode="json")
    raw["model"]["emb_dropout"] = raw["model"]["layers"]["attn"]["dropout"] = raw["model"]["layers"]["ff"][
        "dropout"
    ] = 0.0
    raw["run"] |= {"precision": "fp64", "accumulate": 1}
    run = TrainConfig.model_validate(raw)
    corpus = load_corpus(run.data, 256, run.seq_len)
    net = build_model(run.model).double()
    perturb(net)
    wrapper, windows = AutoregressiveWrapper(net), training_windows(run, corpus)
    batch = windows.batch(0, 3)
    assert isinstance(batch, dict)
    expected, counted_on = wrapper(**batch).item(), wrapper(batch["tokens"]).item()
    found = Engine(net, wrapper, windows, run).step(0)[0].item()
    assert found == pytest.approx(expected, rel=1e-12)
    assert abs(found - counted_on) > 1e-4 * found


def test_a_resumed_run_draws_the_same_positions(tmp_path: Path):
    base = config(tmp_path, positions="pose", pose_chunks=3).model_dump(mode="json")
    found = []
    for name, parts in (("whole", [None]), ("parts", [3, None])):
        for part, stop in enumerate(parts):
            raw = {**base, "run": {**base["run"], "dir": str(tmp_path / name), "stop_after": stop}}
            train(TrainConfig.model_validate(raw), resume=part > 0)
        found.append(open_checkpoint(tmp_path / name).model_tensors())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"positions": "random"}, "data.positions is random; the checkpoint has pose"),
        ({"positions": None}, "data.positions is None; the checkpoint has pose"),
        ({"positions": "pose", "pose_chunks": 4}, "data.pose_chunks is 4; the checkpoint has 2"),
    ],
)
def test_a_run_continues_only_with_its_own_positions(tmp_path: Path, data: dict[str, Any], says: str):
    base = config(tmp_path, positions="pose").model_dump(mode="json")
    base["run"]["stop_after"] = 2
    del base["data"]["pose_chunks"]
    train(TrainConfig.model_validate(base))
    base["run"]["stop_after"] = None
    with pytest.raises(UserError, match=says):
        train(TrainConfig.model_validate({**base, "data": {**base["data"], **data}}), resume=True)


@pytest.mark.parametrize("kind", sorted(REGISTRY.keys() - {"custom"}))
def test_every_scheme_trains_at_drawn_positions_or_is_refused(tmp_path: Path, kind: str):
    run = config(tmp_path, kind, positions="random")
    raw = run.model_dump(mode="json")
    raw["run"] |= {"steps": 1, "eval_every": 1, "save_every": 1}
    raw["optimizer"]["warmup_steps"] = 0
    run = TrainConfig.model_validate(raw)
    try:
        check_trainable(run)
    except UserError as error:
        assert "takes no positions from outside" in str(error)  # noqa: PT017
        net = AutoregressiveWrapper(build_model(run.model))
        with pytest.raises(ValueError, match="positions would be ignored"):
            net(torch.zeros(1, 5, dtype=torch.long), positions=torch.arange(5)[None] * 2)
    else:
        assert np.isfinite(train(run).validation.loss)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"positions": "random", "seq_len": 33}, r"windows of 33 tokens fill all of them; lower data.seq_len or raise"),
        ({"positions": "pose", "pose_chunks": 13}, "data.pose_chunks=13 cannot divide windows of 12 tokens"),
        ({"positions": "random", "pose_chunks": 3}, "data.pose_chunks=3 has no effect without data.positions=pose"),
        ({"pose_chunks": 3}, "data.pose_chunks=3 has no effect without data.positions=pose"),
        ({"positions": "skip"}, "random.*pose"),
        ({"positions": "pose", "pose_chunks": 1}, "pose_chunks"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, data: dict[str, Any], says: str):
    with pytest.raises((ConfigError, UserError, ValueError), match=says):
        config(tmp_path, **data)


def test_kept_first_tokens_have_positions_of_their_own(tmp_path: Path):
    raw = config(tmp_path, positions="pose").model_dump(mode="json")
    raw["model"]["layers"] |= {"window": 6, "keep_first": 2}
    with pytest.raises(UserError, match=r"data.positions=pose: position=rope takes no positions from outside"):
        train(TrainConfig.model_validate(raw))


def test_a_mix_of_layers_needs_one_that_reads_positions(tmp_path: Path):
    raw = config(tmp_path, positions="pose").model_dump(mode="json")
    raw["model"]["layers"]["pattern"] = [{}, {"position": "none"}]
    assert not check_trainable(TrainConfig.model_validate(raw)).errors
    raw["model"]["layers"] |= {"position": "cope"}
    with pytest.raises(UserError, match=r"data.positions=pose: position=cope . none takes no positions"):
        check_trainable(TrainConfig.model_validate(raw))
