"""peft on models of x_positional in transformers: generation, Trainer, new tokens, tied embeddings, other processes' adapters.

tests/support/doors.py trains, saves, loads and merges LoRA for every scheme.
"""

from pathlib import Path

import pytest
import torch

from tests.support.doors import LENGTH, in_transformers, lora, model_of, tied, train_adapter, trainer_of
from tests.support.doors_training import ANSWERS, TEXTS
from tests.support.generation_models import NUM_TOKENS, equal, ids
from x_positional import AutoregressiveWrapper

peft = pytest.importorskip("peft", reason="peft is not installed, so adapters are not trained")
GREEDY = {"max_new_tokens": LENGTH - 6, "do_sample": False}


@pytest.mark.parametrize("row", ["rope", "forgetting"])
def test_an_adapted_model_generates_as_the_merged_one(row: str, tmp_path: Path) -> None:
    """The cache is x_positional's, and notices parameters that change."""
    adapted = train_adapter(lora(in_transformers(model_of(row), tmp_path)))
    got = adapted.generate(input_ids=ids(2, 6), **GREEDY)
    with adapted.disable_adapter():
        assert not torch.equal(adapted.generate(input_ids=ids(2, 6), **GREEDY), got)
    assert torch.equal(adapted.merge_and_unload().generate(input_ids=ids(2, 6), **GREEDY), got)


def test_trainer_trains_the_adapter_alone(tmp_path: Path) -> None:
    """With the mean over the targets of all micro-batches; the saved folder is an adapter that peft finds the base of."""
    net = model_of("alibi")
    hf = in_transformers(net, tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    run = trainer_of(lora(hf, init_lora_weights=True), tmp_path / "run")
    run.train()
    first = next(entry["loss"] for entry in run.state.log_history if "loss" in entry)
    assert first == pytest.approx(AutoregressiveWrapper(net)(TEXTS, labels=ANSWERS).item(), abs=2e-6)
    run.save_model(str(tmp_path / "adapter"))
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True).eval()
    trained = run.model.eval()
    equal(again(input_ids=TEXTS).logits, trained(input_ids=TEXTS).logits)
    bare = again.unload().state_dict()
    assert bare.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in bare.items())


def test_new_tokens_are_trained_with_the_adapter(tmp_path: Path) -> None:
    """resize_token_embeddings, then LoRA with the table and the head saved whole."""
    hf = in_transformers(model_of("t5"), tmp_path / "base")
    hf.resize_token_embeddings(NUM_TOKENS + 2)
    hf.save_pretrained(tmp_path / "resized")
    adapted = lora(hf, modules_to_save=["token_emb", "to_logits"])
    texts = torch.cat([TEXTS, torch.full((4, 1), NUM_TOKENS + 1)], 1)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    adapted(input_ids=texts, labels=texts).loss.backward()
    optimizer.step()
    want = adapted.eval()(input_ids=texts).logits
    adapted.save_pretrained(tmp_path / "adapter")
    base = type(hf).from_pretrained(tmp_path / "resized")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    equal(again(input_ids=texts).logits, want)
    merged = again.merge_and_unload()
    equal(merged(input_ids=texts).logits, want)
    merged.save_pretrained(tmp_path / "merged")
    equal(type(hf).from_pretrained(tmp_path / "merged").eval()(input_ids=texts).logits, want)


def test_a_tied_embedding_takes_an_adapter(tmp_path: Path) -> None:
    """LoRA on the table changes embeddings and logits alike, trained, loaded and merged."""
    net = tied("forgetting")
    adapted = train_adapter(lora(in_transformers(net, tmp_path / "base"), target_modules=["token_emb", "to_qkv"]))
    want = adapted(input_ids=TEXTS).logits
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True).eval()
    equal(again(input_ids=TEXTS).logits, want)
    merged = again.merge_and_unload()
    equal(merged(input_ids=TEXTS).logits, want)
    merged.save_pretrained(tmp_path / "merged")
    equal(type(merged).from_pretrained(tmp_path / "merged").eval()(input_ids=TEXTS).logits, want)
