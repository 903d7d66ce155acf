"""pipeline() of transformers on saved models: text generation, masked tokens, features."""

from pathlib import Path

import pytest
import torch

from tests.support.doors import ROWS, TESTED, letters, model_of
from tests.support.draws import draws
from tests.support.generation_models import NUM_TOKENS, equal, perturbed, until_end
from x_positional import AutoregressiveWrapper, Encoder, TransformerWrapper

transformers = pytest.importorskip("transformers", reason="transformers is not installed, so pipelines are not run")
PROMPTS = ["the cat", "on a mat with"]


def encoder(position: str) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = Encoder(dim=26, depth=2, heads=3, attn_kv_heads=1, attn_dim_head=10, position=position)
    return perturbed(TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=48, attn_layers=layers))


def pipeline(task: str, net: TransformerWrapper, folder: Path, **special: str):
    """A pipeline of a folder, as a user makes it."""
    net.save_pretrained(folder, format="hf", code=True)
    letters(**special).save_pretrained(folder)
    return transformers.pipeline(task, model=str(folder), trust_remote_code=True)


@pytest.mark.parametrize("row", draws(TESTED, tuple(ROWS)))
def test_text_generation(row: str, tmp_path: Path) -> None:
    """Prompts of different lengths in one batch, padded by the pipeline."""
    net = model_of(row)
    run = pipeline("text-generation", net, tmp_path)
    tokenizer, options = run.tokenizer, {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    end = tokenizer.eos_token_id
    found = run(PROMPTS, batch_size=2, eos_token_id=end, **options)
    prompts = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    ours = AutoregressiveWrapper(net).generate(prompts, 6, temperature=0.0, eos_token=end)
    want = [tokenizer.decode(until_end(new, (end,)), skip_special_tokens=True) for new in ours]
    assert [texts[0]["generated_text"] for texts in found] == want


@pytest.mark.parametrize("position", ["rope", "t5"])
def test_fill_mask(position: str, tmp_path: Path) -> None:
    net = encoder(position)
    run = pipeline("fill-mask", net, tmp_path, mask_token="<eos>")
    found = run("the <eos>at", top_k=3)
    tokens = run.tokenizer("the <eos>at", return_tensors="pt")["input_ids"]
    masked = tokens[0] == run.tokenizer.mask_token_id
    assert masked.sum() == 1
    with torch.no_grad():
        values, ids = net(tokens)[0, masked].softmax(-1)[0].topk(3)
    assert [guess["token"] for guess in found] == ids.tolist()
    assert [guess["score"] for guess in found] == pytest.approx(values.tolist(), abs=1e-9)


def test_feature_extraction(tmp_path: Path) -> None:
    net = encoder("alibi")
    run = pipeline("feature-extraction", net, tmp_path)
    tokens = run.tokenizer("a mat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        want = net(tokens, return_embeddings=True)
    equal(torch.tensor(run("a mat"), dtype=torch.float64), want)
