"""transformers' Trainer on models of x_positional: losses, resumed runs, packed rows, recomputed blocks, tied parameters.

tests/support/doors.py compares the weights after some steps, for every scheme.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import x_positional
from tests.support.doors import SINGLE, in_transformers, model_of, tied, trainer_of
from tests.support.doors_training import ANSWERS, RATE, TEXTS, trained
from tests.support.generation_models import equal
from x_positional import AutoregressiveWrapper, TransformerWrapper

transformers = pytest.importorskip("transformers", reason="transformers is not installed, so its Trainer is not run")


def logged(run: Any, key: str = "loss") -> list[float]:
    """Per step."""
    return [entry[key] for entry in run.state.log_history if key in entry]


@torch.no_grad()
def loss(net: TransformerWrapper) -> float:
    return AutoregressiveWrapper(net)(TEXTS, labels=ANSWERS).item()


def test_losses_are_those_of_x_positional(tmp_path: Path) -> None:
    """Micro-batches have different numbers of targets; the mean is over all targets of a step."""
    net = model_of("cope")
    run = trainer_of(in_transformers(net, tmp_path / "start"), tmp_path / "run")
    run.train()
    after = [loss(trained(net, steps)) for steps in range(4)]
    assert logged(run) == pytest.approx(after[:3], abs=SINGLE)
    assert run.evaluate(run.train_dataset)["eval_loss"] == pytest.approx(after[3], abs=SINGLE)


def test_a_mean_of_micro_batches_would_differ() -> None:
    """So the comparison above shows that Trainer's count of targets is used."""
    model = AutoregressiveWrapper(model_of("cope"))
    means = [model(TEXTS[i : i + 2], labels=ANSWERS[i : i + 2]).item() for i in (0, 2)]
    assert abs(sum(means) / 2 - loss(model.net)) > 100 * SINGLE


@pytest.mark.parametrize("row", ["t5", "forgetting"])
def test_a_resumed_run_continues_bit_for_bit(row: str, tmp_path: Path) -> None:
    options = {"optim": "adamw_torch", "lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(in_transformers(model_of(row), tmp_path / "a"), tmp_path / "whole", 4, **options)
    whole.train()
    again = trainer_of(in_transformers(model_of(row), tmp_path / "b"), tmp_path / "whole", 4, **options)
    with torch.no_grad():
        for parameter in again.model.parameters():
            parameter.zero_()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert logged(again) == logged(whole)
    want = whole.model.state_dict()
    assert all(torch.equal(tensor, want[name]) for name, tensor in again.model.state_dict().items())


def test_a_saved_model_is_read_by_x_positional(tmp_path: Path) -> None:
    """Also where layers share parameters, and where logits are those of the embedding."""
    net = tied("dynamic")
    run = trainer_of(in_transformers(net, tmp_path / "start"), tmp_path / "run")
    run.train()
    run.save_model(str(tmp_path / "end"))
    ours = x_positional.from_pretrained(tmp_path / "end")
    assert json.loads((tmp_path / "end" / "config.json").read_text())["model"]["tie_embedding"]
    equal(ours.double().eval()(TEXTS), trained(net)(TEXTS), SINGLE)


@pytest.mark.parametrize("row", ["alibi", "cope", "pattern: rope in a window, none"])
def test_packed_rows_do_not_leak(row: str, tmp_path: Path) -> None:
    """DataCollatorWithFlattening packs the texts of a batch into one row; the steps are those of separate rows."""
    net = model_of(row)
    texts, labels = [text[: 9 - i] for i, text in enumerate(TEXTS)], [t[: 9 - i] for i, t in enumerate(ANSWERS)]
    run = trainer_of(in_transformers(net, tmp_path / "start"), tmp_path / "run", 2, gradient_accumulation_steps=1)
    run.args.per_device_train_batch_size = run._train_batch_size = 4
    run.train_dataset = [
        {"input_ids": text.tolist(), "labels": label.tolist()} for text, label in zip(texts, labels, strict=True)
    ]
    run.data_collator = transformers.DataCollatorWithFlattening()
    run.train()
    padded = [
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=v)
        for rows, v in ((texts, 0), (labels, -100))
    ]
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    expected = []
    for _ in range(2):
        optimizer.zero_grad()
        value = AutoregressiveWrapper(net)(padded[0], labels=padded[1])
        value.backward()
        optimizer.step()
        expected.append(value.item())
    assert logged(run) == pytest.approx(expected, abs=SINGLE)


def test_recomputed_blocks_give_the_same_steps(tmp_path: Path) -> None:
    net = model_of("rope")
    runs = [
        trainer_of(in_transformers(net, tmp_path / "start"), tmp_path / "run", gradient_checkpointing=on)
        for on in (False, True)
    ]
    for run in runs:
        run.train()
    assert logged(runs[0]) == logged(runs[1])
