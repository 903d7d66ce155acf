"""Fine-tuning from a published model to transformers and back: all parameters or adapters, resumed, converted, refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support.chat_models import TEMPLATE, conversations, jsonl, published, turn
from x_positional import from_pretrained, load_tokenizer
from x_positional.cli.convert import convert, convert_adapters
from x_positional.cli.finetune import resolved, summary
from x_positional.errors import MissingExtra, PretrainedError, UserError
from x_positional.pretrained import adapters
from x_positional.training import TrainConfig, finetune_config, train
from x_positional.training.checkpoints.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "base")


@pytest.fixture(scope="module")
def chats(base: Path) -> Path:
    return jsonl(base.parent / "chats.jsonl", conversations())


def config(base: Path, chats: Path, folder: Path, *, lora: bool = True, **more: Any) -> TrainConfig:
    overrides = {
        "data.path": str(chats),
        "data.val_fraction": 0.2,
        "run.dir": str(folder),
        "run.steps": STEPS,
        "run.batch_size": 2,
        "run.accumulate": 2,
        "run.device": "cpu",
        "run.save_every": 2,
        "optimizer.lr": 1e-2,
        **({"lora.r": 4, "lora.lora_alpha": 8, "lora.lora_dropout": 0.1} if lora else {}),
    }
    return finetune_config(str(base), {**overrides, **more}, lora=lora)


@pytest.fixture(scope="module", params=[True, False], ids=["lora", "full"])
def run(request: pytest.FixtureRequest, base: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = train(config(base, chats, folder, lora=request.param))
    assert result.finished
    return folder


def is_lora(run: Path) -> bool:
    return open_checkpoint(run).config_text().find("lora_alpha") >= 0


def tokens(model: Any) -> torch.Tensor:
    return torch.randint(0, model.config.num_tokens, (2, 20), generator=torch.Generator().manual_seed(3))


def test_the_held_out_loss_falls_and_is_reported(base: Path, chats: Path, tmp_path: Path):
    result = train(config(base, chats, tmp_path / "run", **{"run.steps": 8}))
    words = next(line for line in summary(result, adapters=True) if line.startswith("held-out loss"))
    before, after = float(words.split()[2]), float(words.split()[4])
    assert after < 0.8 * before
    assert result.validation is not None
    assert after == pytest.approx(result.validation.loss, abs=1e-4)


def test_a_checkpoint_of_adapters_holds_nothing_else(run: Path, base: Path):
    stored = load_file(open_checkpoint(run).path / "model.safetensors")
    plain = dict(from_pretrained(base).named_parameters())
    if is_lora(run):
        assert all(".lora_" in name for name in stored)
        assert len(stored) == 2 * 2 * 4  # two matrices for each of four layers of two blocks
    else:
        assert stored.keys() == plain.keys()
        assert all(not torch.equal(stored[name], plain[name]) for name in plain)


def test_a_resumed_run_is_bit_equal(run: Path, base: Path, chats: Path, tmp_path: Path):
    again = config(base, chats, tmp_path / "again", lora=is_lora(run))
    assert not train(again.model_copy(update={"run": again.run.model_copy(update={"stop_after": 2})})).finished
    folder = tmp_path / "again"
    more = resolved(folder, {"run.stop_after": None}, lora=False, resume=True, skip_damaged=False)
    assert train(more, resume=True).finished
    one, two = (load_file(open_checkpoint(path).path / "model.safetensors") for path in (run, folder))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_adapters_merge_into_the_logits_that_were_trained(base: Path, chats: Path, tmp_path: Path):
    result = train(config(base, chats, tmp_path / "run"))
    net = result.net.eval()
    merged = from_pretrained(tmp_path / "run")
    assert [name for name, _ in merged.named_parameters()] == [
        name for name, _ in from_pretrained(base).named_parameters()
    ]
    assert all(parameter.requires_grad for parameter in merged.parameters())
    read = tokens(merged)
    torch.testing.assert_close(merged(read), net(read), rtol=0, atol=1e-5)
    assert (merged(read) - from_pretrained(base)(read)).abs().max() > 0.1  # so something was merged
    half = from_pretrained(tmp_path / "run", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_a_run_goes_back_to_transformers(run: Path, base: Path, tmp_path: Path):
    """Logits, tokenizer, chat template and the keys of the base's config."""
    convert(run, tmp_path / "out", "hf", model_type=None, dtype=None)
    ours, theirs = from_pretrained(run), AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    read = tokens(ours)
    torch.testing.assert_close(theirs(read).logits, ours(read), rtol=0, atol=2e-5)
    tokenizer, messages = AutoTokenizer.from_pretrained(tmp_path / "out"), turn("1+1?", "2")[:1]
    expected = load_tokenizer(base).encode_chat(messages)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == expected
    written, before = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", base))
    assert {k: v for k, v in written.items() if k != "transformers_version"} == {
        k: v for k, v in before.items() if k != "transformers_version"
    }


def test_adapters_are_read_by_peft(base: Path, chats: Path, tmp_path: Path):
    """Into this package's base under its names, and into transformers' model under those."""
    train(config(base, chats, tmp_path / "run", **{"lora.lora_dropout": 0.0}))
    merged = from_pretrained(tmp_path / "run")
    read = tokens(merged)
    convert_adapters(tmp_path / "run", tmp_path / "native", "native")
    ours = peft.PeftModel.from_pretrained(from_pretrained(base), str(tmp_path / "native"))
    torch.testing.assert_close(ours(read), merged(read), rtol=0, atol=1e-5)
    convert_adapters(tmp_path / "run", tmp_path / "hf", "hf")
    theirs = AutoModelForCausalLM.from_pretrained(base)
    before = theirs(read).logits.clone()
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "hf"))
    torch.testing.assert_close(theirs(read).logits, merged(read), rtol=0, atol=2e-5)
    assert (before - merged(read)).abs().max() > 0.1
    written = json.loads((tmp_path / "hf" / "adapter_config.json").read_text())
    assert set(written["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    }
    assert written["base_model_name_or_path"] == str(base)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox"])
def test_adapters_of_other_layouts(model_type: str, tmp_path: Path):
    """GPT-NeoX stores q, k and v of each head as one matrix, whose rows are reordered; GPT-2 transposes, which is refused."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    given = {names.get(name, name) if model_type == "gpt2" else name: size for name, size in sizes.items()}
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **given)).eval()
    theirs.save_pretrained(tmp_path / "base")
    ours, read = from_pretrained(tmp_path / "base"), torch.arange(12)[None]
    adapters.add_adapters(ours, r=3, lora_alpha=5)
    for parameter in adapters.adapter_parameters(ours).values():
        parameter.normal_(0, 0.2)
    if model_type == "gpt2":
        reason = (
            r"blocks\.0\.attn\.to_qkv is stored as transformer\.h\.0\.attn\.c_attn\.weight in another form \(transposed"
        )
        with pytest.raises(PretrainedError, match=reason):
            adapters.save_adapters(ours, tmp_path / "out", "base", published=True)
        return
    adapters.save_adapters(ours, tmp_path / "out", "base", published=True)
    before = theirs(read).logits.clone()
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "out"))
    torch.testing.assert_close(theirs(read).logits, ours(read), rtol=0, atol=2e-5)
    assert (before - ours(read)).abs().max() > 0.1


def test_target_modules(base: Path, chats: Path, tmp_path: Path):
    result = train(config(base, chats, tmp_path / "run", **{"lora.target_modules": ["to_qkv"], "run.steps": 1}))
    assert {name.split(".")[4] for name in adapters.adapter_parameters(result.net)} == {"to_qkv"}
    with pytest.raises(UserError, match=r"no linear layer has the name 'to_qvk'; did you mean 'to_qkv'\?"):
        train(config(base, chats, tmp_path / "other", **{"lora.target_modules": ["to_qvk"]}))
    assert not (tmp_path / "other").exists()


# What is refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lora.r": 8}, "the lora section differs"),
        ({"data.val_fraction": 0.5}, "data is .*; the checkpoint has"),
        ({"model.emb_dropout": 0.1}, "is not the model that the model section describes"),
        ({"run.seed": 5}, "seed is 5; the checkpoint has 0"),
    ],
)
def test_another_run_is_not_resumed(base: Path, chats: Path, tmp_path: Path, change: dict[str, Any], reason: str):
    train(config(base, chats, tmp_path / "run", **{"run.stop_after": 1}))
    with pytest.raises(UserError, match=reason):
        train(config(base, chats, tmp_path / "run", **change), resume=True)


def test_another_model_is_not_resumed(base: Path, chats: Path, tmp_path: Path):
    train(config(base, chats, tmp_path / "run", **{"run.stop_after": 1}))
    other = tmp_path / "other"
    shutil.copytree(base, other)
    train(config(other, chats, tmp_path / "run"), resume=True)  # a copy elsewhere is the same model
    train(config(base, chats, tmp_path / "second", **{"run.stop_after": 1}))
    model = from_pretrained(other)
    with torch.no_grad():
        model.token_emb.weight[0, 0] += 1
    model.save_pretrained(other, format="hf")
    with pytest.raises(UserError, match=r"init\.source is another model than the one that the run started from"):
        train(config(other, chats, tmp_path / "second"), resume=True)


def test_a_base_that_is_gone(base: Path, chats: Path, tmp_path: Path):
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    train(config(moved, chats, tmp_path / "run", **{"run.steps": 1}))
    shutil.rmtree(moved)
    with pytest.raises(PretrainedError, match=r"holds adapters of .*base, which cannot be read"):
        from_pretrained(tmp_path / "run")


def test_sections_that_need_each_other(base: Path, chats: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"chat needs conversations: set data\.path"):
        finetune_config(str(base), {}, lora=False)
    fields = config(base, chats, tmp_path).model_dump()
    with pytest.raises(ValueError, match=r"chat needs a model to start from: set init\.source"):
        TrainConfig.model_validate({**fields, "init": None})


def test_options_of_text_are_not_ignored(base: Path, chats: Path, tmp_path: Path):
    options = {"data.field": "body", "data.tokenizer": str(base), "data.max_tokens": 9}
    with pytest.raises(UserError, match=r"data\.field does not apply to conversations; .*data\.tokenizer does not"):
        config(base, chats, tmp_path / "run", **options)


def test_text_is_read_with_the_tokenizer_of_the_model(base: Path, tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("the end of a text " * 99)
    fields = config(base, file, tmp_path / "run", lora=False).model_dump(exclude_unset=True)
    fields |= {"chat": None, "data": {"path": str(file), "val_fraction": 0.3}}
    with pytest.raises(
        UserError, match=r"data\.tokenizer is not set, and init\.source=.*base has a tokenizer of its own"
    ):
        train(TrainConfig.model_validate(fields))
    fields["data"]["tokenizer"] = str(base)
    assert train(TrainConfig.model_validate(fields)).finished


def test_a_single_target_module_needs_no_list(base: Path, chats: Path, tmp_path: Path):
    one = config(base, chats, tmp_path / "run", **{"lora.target_modules": "to_qkv"})
    assert one.lora is not None
    assert one.lora.target_modules == ("to_qkv",)


def test_a_missing_or_old_peft(base: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"LoRA needs peft: pip install 'x-positional\[finetune\]'"):
        train(config(base, chats, tmp_path / "run"))
    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace(__version__="0.9.0"))
    with pytest.raises(MissingExtra, match=r"LoRA needs peft 0\.15 or newer; installed is 0\.9\.0"):
        train(config(base, chats, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_chat_template(chats: Path, tmp_path: Path):
    base = published(tmp_path / "base", template=None)
    with pytest.raises(UserError, match="base has no chat template, which messages need"):
        train(config(base, chats, tmp_path / "run"))
    pairs = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(8)]
    result = train(config(base, jsonl(tmp_path / "pairs.jsonl", pairs), tmp_path / "run", **{"run.steps": 1}))
    assert result.finished


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without distributed")
def test_two_processes_resumed_by_one_train_as_one_does(base: Path, chats: Path, tmp_path: Path):
    options = [
        "--data",
        chats,
        "--lora",
        "--lora.r",
        "4",
        "--run-dir",
        tmp_path / "run",
        "--run.steps",
        STEPS,
        "--lr",
        "1e-2",
    ]
    options += ["--data.val_fraction", "0.2", "--device", "cpu", "--accumulate", "1", "--batch_size", "2"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "x_positional.cli.main"]
    command = [sys.executable, "-m", *launcher, "finetune", base, *options, "--run.stop_after", "2"]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    more = {"run.stop_after": None, "run.batch_size": 4}
    train(resolved(tmp_path / "run", more, lora=False, resume=True, skip_damaged=False), resume=True)
    whole = {"lora.lora_dropout": 0.0, "lora.lora_alpha": 32, "run.batch_size": 4, "run.accumulate": 1}
    train(config(base, chats, tmp_path / "alone", **whole))
    one, two = (load_file(open_checkpoint(tmp_path / name).path / "model.safetensors") for name in ("run", "alone"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=2e-5)


def test_the_template_of_the_tests_is_that_of_the_model(base: Path):
    tokenizer = load_tokenizer(base)
    assert tokenizer.template is not None
    assert tokenizer.template.text == TEMPLATE
    assert tokenizer.ends == (257,)
