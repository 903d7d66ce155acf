"""Checkpoints are complete or absent, contain no pickle, and report what is wrong with them."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from x_positional import ModelConfig, build_model
from x_positional.errors import UserError
from x_positional.training.checkpoints import checkpoint
from x_positional.training.checkpoints.checkpoint import open_checkpoint, prune, save_checkpoint
from x_positional.training.checkpoints.state import load_model, model_tensors


def model(*, tie: bool = False, depth: int = 2) -> nn.Module:
    layers = {"dim": 16, "depth": depth, "heads": 2, "head_dim": 8, "position": "alibi"}
    net = build_model(
        ModelConfig.model_validate({"num_tokens": 40, "max_seq_len": 12, "layers": layers, "tie_embedding": tie})
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


def save(root: Path, step: int, net: nn.Module) -> Path:
    return save_checkpoint(
        root,
        step,
        model=model_tensors(net),
        optimizer={"a/step": torch.ones(())},
        trainer={"note": 5},
        config_text="model: {}\n",
    )


@pytest.mark.parametrize("tie", [False, True])
def test_weights_come_back_bit_for_bit(tmp_path: Path, tie: bool):
    net, other = model(tie=tie), model(tie=tie)
    saved = open_checkpoint(save(tmp_path, 7, net))
    assert (saved.step, saved.trainer["note"], saved.config_text()) == (7, 5, "model: {}\n")
    load_model(other, saved.model_tensors(), saved.path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert torch.equal(saved.optimizer_tensors()["a/step"], torch.ones(()))


def test_a_folder_holds_safetensors_yaml_and_json_only(tmp_path: Path):
    path = save(tmp_path, 1, model())
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "config.yaml",
        "trainer.json",
    }
    assert load_file(path / "model.safetensors").keys() == dict(model().named_parameters()).keys()


def test_all_files_may_be_read_by_the_same_people(tmp_path: Path):
    """safetensors gives its files to their owner alone."""
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 1, model())
    finally:
        os.umask(before)
    modes = {file.name: stat.filemode(file.stat().st_mode) for file in path.iterdir()}
    assert set(modes.values()) == {"-rw-r-----"}, modes


def test_a_model_with_buffers_is_refused():
    net = model()
    net.register_buffer("table", torch.zeros(2))
    with pytest.raises(ValueError, match=r"the model has buffers: \['table'\]"):
        model_tensors(net)


@pytest.mark.parametrize("crash", ["save_tensors", "flush_file", "flush_folder"])
def test_a_crash_while_writing_leaves_the_earlier_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
):
    net = model()
    save(tmp_path, 1, net)
    before = model_tensors(net)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, crash, fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, model())
    monkeypatch.undo()
    saved = open_checkpoint(tmp_path / "step-00000001").model_tensors()
    assert all(torch.equal(saved[name], before[name]) for name in before)
    assert [folder.name for folder in checkpoint.checkpoint_folders(tmp_path)] == ["step-00000001"]
    prune(tmp_path, keep=5, best=None)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000001"]


def test_a_checkpoint_is_never_overwritten(tmp_path: Path):
    net = model()
    path = save(tmp_path, 1, net)
    with pytest.raises(UserError, match="step-00000001 already exists"):
        save(tmp_path, 1, model())
    saved = open_checkpoint(path).model_tensors()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model_tensors(net).items())


def test_the_newest_and_the_best_are_kept(tmp_path: Path):
    for step in range(1, 7):
        save(tmp_path, step, model())
    prune(tmp_path, keep=2, best=3)
    assert [folder.name[-1] for folder in checkpoint.checkpoint_folders(tmp_path)] == ["3", "5", "6"]


def test_a_run_folder_means_its_newest_checkpoint(tmp_path: Path):
    for step in (9, 10, 100):
        save(tmp_path / "checkpoints", step, model())
    assert open_checkpoint(tmp_path).step == 100
    assert open_checkpoint(tmp_path / "checkpoints" / "step-00000009").step == 9


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.yaml"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, name: str, damage: str):
    save(tmp_path, 1, model())
    path = save(tmp_path, 2, model())
    content = bytearray((path / name).read_bytes())
    content[-1] ^= 1
    (path / name).write_bytes(content if damage == "flip" else content[:-1])
    if damage == "remove":
        (path / name).unlink()
    saved = open_checkpoint(path)
    read = {
        "model.safetensors": saved.model_tensors,
        "optimizer.safetensors": saved.optimizer_tensors,
        "config.yaml": saved.config_text,
    }
    wrong = f"{name} is missing" if damage == "remove" else f"the digest of {name} does not match"
    with pytest.raises(
        UserError, match=rf"step-00000002 is damaged: {wrong}.*newest good checkpoint is .*step-00000001"
    ):
        read[name]()


def test_a_foreign_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="absent does not exist"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"no x_positional checkpoint in .* found pytorch_model\.bin"):
        open_checkpoint(tmp_path)
    (tmp_path / "trainer.json").write_text('{"epoch": 3}')
    with pytest.raises(UserError, match="is not an x_positional checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / "trainer.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*trainer\.json"):
        open_checkpoint(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path):
    path = save(tmp_path, 1, model())
    record = json.loads((path / "trainer.json").read_text())
    (path / "trainer.json").write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(
        UserError, match=r"has checkpoint format version 99; this x_positional reads up to version 3\. Upgrade"
    ):
        open_checkpoint(path)


def test_weights_of_another_model_are_refused_with_all_reasons(tmp_path: Path):
    net = model()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    tensors = model_tensors(net)
    tensors["extra.weight"] = torch.zeros(1)
    tensors["token_emb.weight"] = torch.zeros(41, 16)
    del tensors["to_logits.weight"]
    with pytest.raises(UserError) as caught:
        load_model(net, tensors, tmp_path)
    for part in (
        "unexpected tensor extra.weight",
        "missing tensor to_logits.weight",
        "token_emb.weight has shape [41, 16]; the model needs [40, 16]",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)), "half a model was loaded"


def test_a_checkpoint_that_is_being_pruned_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for step in range(1, 5):
        save(tmp_path, step, model())
    whole = {file.name for file in (tmp_path / "step-00000001").iterdir()}

    def killed(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, keep=2, best=None)
    left = checkpoint.checkpoint_folders(tmp_path)
    assert left
    assert all({file.name for file in folder.iterdir()} == whole for folder in left)
    prune(tmp_path, keep=2, best=None)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
