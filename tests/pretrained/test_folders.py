"""Folders that are damaged, incomplete, dangerous or of nobody's family: each is refused with the name, the reason, the way out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.published.compare import quietly
from tests.support.published.decoders_llama import LLAMA
from x_positional import PretrainedError, TransformerWrapper, from_pretrained
from x_positional.pretrained.tensors.files import open_tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    quietly(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained, folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path | str, *words: str, **settings: object) -> str:
    with pytest.raises(PretrainedError) as error:
        from_pretrained(folder, **settings)
    for word in words:
        assert word in str(error.value), str(error.value)
    return str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 300, 0.5, 0.99])
def test_truncated(folder: Path, keep: float):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(folder, "model.safetensors", "interrupted", "download it again")


def test_corrupt(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    refused(folder, "model.safetensors", "cannot be read as safetensors")


def sharded(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_shards_are_one_model(folder: Path, whole: Path):
    sharded(folder)
    tokens = torch.arange(12)[None] + 1
    assert torch.equal(from_pretrained(folder)(tokens), from_pretrained(whole)(tokens))


def test_a_missing_shard(folder: Path):
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors is missing", "Download it again")


def test_a_shard_that_lacks_a_tensor(folder: Path):
    weight_map = sharded(folder)
    weight_map["model.extra.weight"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, "model.extra.weight is missing from model-00001-of-00002.safetensors")


def test_an_index_that_points_outside(folder: Path):
    weight_map = dict.fromkeys(sharded(folder), "../elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, "not a file in this folder")


def test_shards_without_an_index(folder: Path):
    sharded(folder)
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "model.safetensors.index.json", "Download it too")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_never_opened(folder: Path, name: str):
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, name, "can run arbitrary code", "save_pretrained")


def test_nothing_there(folder: Path):
    (folder / "model.safetensors").unlink()
    refused(folder, "neither model.safetensors nor model.safetensors.index.json")
    (folder / "config.json").unlink()
    refused(folder, "config.json")
    refused(folder / "none", "no such file or folder")
    refused("/nowhere/at/all", "no such file or folder")


def test_every_shape_that_does_not_fit_is_named(folder: Path):
    edit(folder, intermediate_size=48)
    text = refused(folder, "mlp.down_proj.weight [32, 44]", "config.json needs [32, 48]")
    assert text.count("mlp.") >= 5


def test_missing_and_unused_tensors_are_named_together(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.odd.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "model.norm.weight is missing", "unexpected tensor model.layers.0.odd.weight in")


def test_an_unknown_rope_type(folder: Path):
    edit(folder, rope_parameters={"rope_type": "yarm", "rope_theta": 10000.0, "factor": 2.0})
    refused(folder, "yarm", "'yarn'")


def test_an_unknown_activation_and_a_missing_size_together(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "sillu", "hidden_size": None}))
    refused(folder, "hidden_size is missing", "hidden_act='sillu'")


def test_an_unknown_family(folder: Path):
    edit(folder, model_type="lama")
    refused(folder, "model_type='lama'", "did you mean 'llama'", "docs/pretrained.md")


def test_keys_that_nobody_reads_are_told(folder: Path):
    edit(folder, attention_gate_kind="twice")
    with pytest.warns(UserWarning, match=r"attention_gate_kind.*x-positional verify"):
        from_pretrained(folder)


def test_overrides(folder: Path):
    model = from_pretrained(folder, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    assert model.config.layers.position[0].scaling.factor == 4.0
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    old = {**config, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (folder / "config.json").write_text(json.dumps(old))
    assert from_pretrained(folder).config.layers.position[0].scaling.factor == 2.0
    stretched = from_pretrained(folder, rope_parameters={"rope_type": "linear", "factor": 8.0}).config.layers.position[
        0
    ]
    assert (stretched.theta, stretched.scaling.factor) == (500.0, 8.0), (
        "the older name in the file says nothing any more"
    )
    refused(folder, "rope_parametres", "did you mean 'rope_parameters'", rope_parametres={})


def test_dtype_and_device(folder: Path):
    model = from_pretrained(folder, dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training


def test_the_head_is_decided_by_content(folder: Path):
    edit(folder, tie_word_embeddings=True)
    model = from_pretrained(folder)
    assert model.to_logits is not None, "both are there and differ: two tensors, whatever the config says"
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert from_pretrained(folder).to_logits is None, "both are there and equal: one tensor"
    head = tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors")
    assert from_pretrained(folder).to_logits is None, "one of them is there"
    del tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors")
    model = from_pretrained(folder)
    assert torch.equal(model.token_emb.weight, head), "the other of them is there"


def test_a_head_that_should_be_there(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "lm_head.weight is missing", "architectures=['LlamaForCausalLM'] is read", "pass architectures=[]")
    assert not from_pretrained(folder, architectures=[]).has_head
    edit(folder, architectures=["LlamaModel"])
    assert not from_pretrained(folder).has_head


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("named", [None, [], ["LlamaForCausalLM"], ["LlamaModel"], ["Custom"]])
@torch.no_grad()
def test_a_body_alone(folder: Path, whole: Path, prefixed: bool, named: list[str] | None):
    """An untied head cannot be made of a body; whether it was lost or never there is decided by `architectures` and names."""
    tensors = {name: t for name, t in load_file(folder / "model.safetensors").items() if name != "lm_head.weight"}
    save_file(
        tensors if prefixed else {name.removeprefix("model."): t for name, t in tensors.items()},
        folder / "model.safetensors",
    )
    edit(folder, architectures=named)
    if prefixed and named in (["LlamaForCausalLM"], ["Custom"]):
        refused(folder, "lm_head.weight is missing")
        return
    tokens = torch.arange(9)[None] + 1
    body, full = from_pretrained(folder), from_pretrained(whole)
    assert not body.has_head
    assert torch.equal(full.to_logits(body(tokens)), full(tokens))


@pytest.mark.parametrize("add", [True, False], ids=["without the prefix", "with it"])
def test_names_with_and_without_the_prefix_of_the_body(folder: Path, whole: Path, add: bool):
    tensors = load_file(folder / "model.safetensors")
    if add:
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    tokens = torch.arange(9)[None] + 1
    assert torch.equal(from_pretrained(folder)(tokens), from_pretrained(whole)(tokens))


def test_no_tensor_is_held_twice(folder: Path):
    """Parameters are read one at a time: nothing of the model is allocated before its tensor is read."""
    reads: list[str] = []
    tensors = open_tensors(folder)
    original = tensors.read
    tensors.read = lambda name: (reads.append(name), original(name))[1]  # type: ignore[method-assign]
    from x_positional.pretrained.api import load
    from x_positional.pretrained.families import FAMILIES
    from x_positional.pretrained.folder import read_json

    model = load(FAMILIES["llama"], read_json(folder / "config.json"), tensors, None, None, "auto")
    assert isinstance(model, TransformerWrapper)
    assert sorted(reads) == sorted(tensors.names()), "each tensor is read once"
