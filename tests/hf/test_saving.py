"""Folders with code: what is in them, who reads them, and what transformers' own ways of loading and changing make of them."""

import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint

import x_positional.hf
from tests.support.hf_models import CAUSAL, load, loaded
from tests.support.published.compare import quietly
from tests.support.rounding import assert_same
from tests.support.small_models import decoder, ids
from x_positional import (
    ArgumentError,
    MissingExtra,
    PretrainedError,
    TransformerWrapper,
    ViTransformerWrapper,
    from_pretrained,
)
from x_positional import Encoder as EncoderLayers
from x_positional.hf import XPositionalConfig, XPositionalForCausalLM

TOKENS = ids(2, 9)


def test_what_a_folder_holds(tmp_path: Path):
    decoder("cope").save_pretrained(tmp_path, format="hf")
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "modeling_x_positional.py",
    }
    hf = json.loads((tmp_path / "config.json").read_text())
    assert (hf["model_type"], hf["class"], hf["dtype"]) == ("x_positional", "TransformerWrapper", "float32")
    assert hf["architectures"] == ["XPositionalForCausalLM"]
    assert hf["auto_map"]["AutoModelForCausalLM"] == "modeling_x_positional.XPositionalForCausalLM"
    assert len((tmp_path / "modeling_x_positional.py").read_text().splitlines()) < 20, (
        "nothing of the package is copied"
    )
    decoder("cope").save_pretrained(tmp_path)
    assert not (tmp_path / "modeling_x_positional.py").exists()


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_saved_again_by_transformers(name: str, tmp_path: Path):
    model = decoder(**CAUSAL[name])
    theirs = loaded(model)
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    modules = [file.name for file in tmp_path.glob("*.py")]
    assert modules == ["modeling_x_positional.py"], "no source of the package is copied"
    want, again, back = model(TOKENS), load(tmp_path), from_pretrained(tmp_path)
    for read in (again.model, back):
        assert all(torch.equal(read.get_parameter(key), value) for key, value in model.named_parameters())
    assert_same(again(TOKENS).logits, want)  # transformers makes a cache, where keys have other strides
    assert_same(back(TOKENS), want)
    assert back.config == model.config


@torch.no_grad()
def test_without_remote_code_and_from_our_own_format(tmp_path: Path):
    model = decoder()
    for folder, form in (("hf", {"format": "hf", "code": True}), ("own", {})):
        model.save_pretrained(tmp_path / folder, **form)
        for auto in (transformers.AutoModelForCausalLM, XPositionalForCausalLM):
            assert torch.equal(quietly(auto.from_pretrained, tmp_path / folder)(TOKENS).logits, model(TOKENS))
        body = quietly(transformers.AutoModel.from_pretrained, tmp_path / folder)
        assert torch.equal(body(TOKENS).last_hidden_state, model(TOKENS, return_embeddings=True))


@torch.no_grad()
def test_dtype_device_map_and_new_models(tmp_path: Path):
    model = decoder("t5")
    model.save_pretrained(tmp_path, format="hf", code=True)
    half = load(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half(TOKENS).logits, decoder("t5").bfloat16()(TOKENS))
    for where in ("cpu", "auto", {"": "cpu"}):
        assert torch.equal(load(tmp_path, device_map=where)(TOKENS).logits, model(TOKENS))
    config = XPositionalConfig.of(model, eos_token_id=3)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.eos_token_id) == (13, 24, 2, 3)
    torch.manual_seed(3)
    new = transformers.AutoModelForCausalLM.from_config(config)
    torch.manual_seed(3)
    want = TransformerWrapper.from_config(model.config)
    assert all(torch.equal(*pair) for pair in zip(new.model.parameters(), want.parameters(), strict=True))
    with torch.device("meta"):
        assert all(p.is_meta for p in transformers.AutoModelForCausalLM.from_config(config).parameters())


def test_mixed_dtypes_are_read_exactly(tmp_path: Path):
    model = decoder().bfloat16()
    model.token_emb.float()
    model.save_pretrained(tmp_path, format="hf", code=True)
    theirs = load(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(theirs.model.get_parameter(name), parameter.float())


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_more_ids(tied: bool, tmp_path: Path):
    model = decoder("alibi")
    if tied:
        model = TransformerWrapper.from_config(model.config.model_copy(update={"tie_embedding": True})).eval()
    theirs, want = loaded(model), model(TOKENS)
    assert (theirs.get_output_embeddings() is None) == tied
    assert theirs.resize_token_embeddings(20) is theirs.get_input_embeddings()
    theirs.resize_token_embeddings(pad_to_multiple_of=8)
    assert (theirs.config.vocab_size, len(theirs.get_input_embeddings().weight)) == (24, 24)
    assert torch.equal(theirs(TOKENS).logits[..., :13], want)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(TOKENS).logits, theirs(TOKENS).logits)
    with pytest.raises(ArgumentError, match=r"use resize_token_embeddings\(9\)|Use resize_token_embeddings\(9\)"):
        theirs.set_input_embeddings(torch.nn.Embedding(9, 24))


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    model(TOKENS, labels=TOKENS).loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_gradient_checkpointing():
    theirs = loaded(decoder("cope")).train()
    want = gradients(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers renames it
        theirs.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        assert theirs.is_gradient_checkpointing
        calls = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "x_positional.modules.stack.checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k)
            )
            found = gradients(theirs)
        assert len(calls) == 2
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b)
        with pytest.raises(ArgumentError, match="use_reentrant=True is not supported"):
            theirs.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        theirs.gradient_checkpointing_disable()
        assert not theirs.is_gradient_checkpointing


def test_what_is_refused(tmp_path: Path):
    model = decoder("cope")
    with pytest.raises(PretrainedError, match="the closest family is"):
        model.save_pretrained(tmp_path / "a", format="hf", code=False)
    with pytest.raises(PretrainedError, match="code=True for none"):
        model.save_pretrained(tmp_path / "a", format="hf", code=True, model_type="llama")
    with pytest.raises(PretrainedError, match="code=True needs format='hf'"):
        model.save_pretrained(tmp_path / "a", code=True)
    image = ViTransformerWrapper(
        image_size=12, patch_size=4, attn_layers=EncoderLayers(dim=32, depth=1, heads=2), num_classes=5
    )
    with pytest.raises(PretrainedError, match="only text models and encoder-decoders"):
        image.save_pretrained(tmp_path / "a", format="hf", code=True)
    with pytest.raises(PretrainedError, match=r"patch_norms.*\n(.*\n)*.*only text models"):
        image.save_pretrained(tmp_path / "a", format="hf")
    with pytest.raises(PretrainedError, match="attend to context="):
        decoder(cross_attend=True).save_pretrained(tmp_path / "a", format="hf", code=True)
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_that_lacks_a_tensor(tmp_path: Path):
    decoder().save_pretrained(tmp_path, format="hf", code=True)
    stored = load_file(tmp_path / "model.safetensors")
    lost = stored.pop("model.attn_layers.blocks.1.attn.to_qkv.weight")
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PretrainedError, match=r"to_qkv\.weight is missing"):
        load(tmp_path)
    save_file({**stored, "other": lost}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PretrainedError, match=r"to_qkv\.weight is missing"):
        from_pretrained(tmp_path)


WITHOUT = """
import sys
class Hidden:
    def find_spec(name, path=None, target=None):
        if name == {hidden!r}:
            raise ModuleNotFoundError("hidden", name=name)
sys.meta_path.insert(0, Hidden)
{code}
"""


def run_without(hidden: str, code: str) -> list[str]:
    """What Python prints, line by line, where a package cannot be imported."""
    program = WITHOUT.format(hidden=hidden, code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()


SAVE_WITHOUT = """
from x_positional import MissingExtra, from_pretrained
from_pretrained({folder!r}).save_pretrained({folder!r}, "hf")
try:
    import x_positional.hf
except MissingExtra as error:
    print(error)
"""


def test_missing_packages_are_named(tmp_path: Path):
    decoder("cope").save_pretrained(tmp_path, format="hf")
    module = tmp_path / "modeling_x_positional.py"
    last = run_without("x_positional", f"import runpy; runpy.run_path({str(module)!r})")[-1]
    assert last == "ImportError: this model needs the package x_positional: pip install -U 'x-positional[hf]'"
    before = (tmp_path / "config.json").read_bytes()
    found = run_without("transformers", SAVE_WITHOUT.format(folder=str(tmp_path)))
    assert found == ["x_positional.hf needs transformers: pip install 'x-positional[hf]'"]
    found = run_without("none", "import transformers; transformers.__version__ = '5.7.1'\nimport x_positional.hf")[-1]
    assert found.endswith("needs transformers 5.8 or newer, and 5.7.1 is installed: pip install -U transformers")
    assert (tmp_path / "config.json").read_bytes() == before, "writing needs no transformers"


def test_an_old_transformers_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__="4.57.1"))
    with pytest.raises(MissingExtra) as refused:
        importlib.reload(x_positional.hf)
    message = "x_positional.hf needs transformers 5.8 or newer, and 4.57.1 is installed: pip install -U transformers"
    assert str(refused.value) == message
