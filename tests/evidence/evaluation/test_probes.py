"""Small models trained on the tasks: what is learned, what cannot run, and that the rest of the process is left alone."""

import pytest
import torch

from x_positional.config.layers import LayersConfig
from x_positional.errors import ArgumentError
from x_positional.evidence.evaluation.probes import ProbeOptions, answers_right, probe_layers, schedule, task_scores
from x_positional.evidence.evaluation.tasks import TaskRows
from x_positional.modules.cross_entropy import NO_TARGET

TINY = ProbeOptions(longest=4, factors=(1.0, 2.0), dim=16, depth=1, heads=2, head_dim=8, steps=3, batch=2, trials=4)


def _layers(position: object) -> LayersConfig:
    return LayersConfig(dim=8, depth=1, position=position)  # type: ignore[arg-type]


def test_a_learnable_task_is_learned():
    options = ProbeOptions(longest=3, factors=(1.0, 2.0), dim=32, depth=1, heads=2, head_dim=16, steps=250, trials=32)
    inside, outside = task_scores(_layers("rope"), ["counting"], options=options)
    assert inside.trained
    assert not outside.trained
    assert inside.accuracy is not None
    assert inside.accuracy > 0.9


def test_scores_depend_on_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (task_scores(_layers("alibi"), ["copy", "repeat"], seed, TINY) for seed in (0, 0, 1))
    assert torch.rand(1).equal(expected)
    assert one == same
    assert one != other
    assert [(score.task, score.length) for score in one] == [("copy", 4), ("copy", 8), ("repeat", 4), ("repeat", 8)]


def test_a_length_that_a_scheme_cannot_run_is_a_score_with_the_reason():
    inside, outside = task_scores(_layers("absolute"), ["copy"], 0, TINY)
    assert inside.accuracy is not None
    assert outside.accuracy is None
    assert "max_seq_len" in (outside.reason or "")


def test_a_model_that_cannot_be_built_is_a_score_with_the_reason():
    scores = task_scores(_layers({"kind": "rope", "dim": 64}), ["copy"], 0, TINY)
    assert [score.accuracy for score in scores] == [None, None]
    assert all("rope" in (score.reason or "") for score in scores)


def test_a_loss_that_is_not_finite_ends_the_training_with_the_reason():
    wild = ProbeOptions(**{**vars(TINY), "lr": 1e38, "steps": 20})
    scores = task_scores(_layers("none"), ["copy"], 0, wild)
    assert all("not finite" in (score.reason or "") for score in scores)


def test_unknown_tasks_are_refused_before_training():
    with pytest.raises(ArgumentError, match="unknown task 'sort'"):
        task_scores(_layers("rope"), ["copy", "sort"], 0, TINY)


def test_a_pattern_keeps_all_of_its_layers():
    layers = LayersConfig(
        dim=8, depth=8, kv_heads=1, heads=8, pattern=[{"position": "rope"}] * 3 + [{"position": "none"}]
    )  # type: ignore[arg-type]
    small = probe_layers(layers, TINY)
    assert (small.depth, small.heads, small.kv_heads, small.dim) == (4, 2, None, 16)


def test_each_token_is_right_where_it_is_the_most_likely_one():
    labels = torch.tensor([[NO_TARGET, NO_TARGET, 1, 2], [NO_TARGET, NO_TARGET, 0, 2]])
    rows = TaskRows(torch.zeros(2, 4, dtype=torch.long), labels)
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2], [0, 1, 2]]), 3).float()
    right = answers_right(logits, rows)
    assert right is not None
    assert right[:, 1:].tolist() == [[True, True], [False, True]]
    assert answers_right(logits.fill_(torch.nan), rows) is None


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)
