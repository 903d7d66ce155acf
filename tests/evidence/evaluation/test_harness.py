"""x_positional as a model of lm-eval: a plain loop, lm-eval's own model for transformers, and its command line."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.command_line import Call, command_line
from tests.support.doors import letters, model_of
from tests.support.generation_models import until_end
from tests.support.lm_eval_task import write_letters_task
from x_positional import AutoregressiveWrapper, TransformerWrapper
from x_positional.errors import UserError

pytestmark = pytest.mark.slow
lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed, so its model is not tested")

PAIRS = [
    ("the cat", " sat on a mat"),
    ("the cat", " sat"),
    ("the cat", " sad"),  # the same pass as the one before
    ("positions are data", " yes"),
    ("a", "b"),
    ("the dog sat on the mat and looked at the cat", " for hours and hours"),
    ("", "no context"),
]


def saved(folder: Path, row: str) -> TransformerWrapper:
    net = model_of(row)
    net.save_pretrained(folder / "model", format="hf", code=True)
    letters().save_pretrained(folder / "model")
    return net


def ours(folder: Path, **options: Any) -> Any:
    lm: Any = importlib.import_module("x_positional.evidence.evaluation.harness").XPositionalLM
    return lm(str(folder / "model"), device="cpu", **options)


def instances(kind: str, requests: list[Any]) -> list[Any]:
    instance: Any = importlib.import_module("lm_eval.api.instance").Instance
    return [instance(kind, {}, request, i) for i, request in enumerate(requests)]


@torch.no_grad()
def plain(net: TransformerWrapper, context: str, continuation: str, most: int = 48) -> tuple[float, bool]:
    """One pass for one pair, of which the model sees the last max_length tokens."""
    tokenizer = letters()
    start = tokenizer(context)["input_ids"] or [tokenizer.eos_token_id]
    row = torch.tensor([*start, *tokenizer(continuation)["input_ids"]])
    answer = row[len(start) :]
    log_p = net(row[-most - 1 : -1][None])[0].log_softmax(-1)[-len(answer) :]
    return log_p.gather(1, answer[:, None]).sum().item(), bool((log_p.argmax(-1) == answer).all())


@pytest.mark.parametrize("row", ["rope", "cope"])
def test_log_likelihoods_are_those_of_a_plain_loop_and_of_transformers(row: str, tmp_path: Path):
    hf_lm: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
    net = saved(tmp_path, row)
    requests = instances("loglikelihood", PAIRS)
    expected = [plain(net, *pair) for pair in PAIRS]
    for options in ({}, {"batch_size": 2}, {"batch_size": "auto", "max_batch_size": 3}):
        found = ours(tmp_path, **options).loglikelihood(requests)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-9)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    theirs = hf_lm(str(tmp_path / "model"), trust_remote_code=True, dtype="auto", device="cpu", batch_size=3)
    assert [value for value, _ in ours(tmp_path).loglikelihood(requests)] == pytest.approx(
        [value for value, _ in theirs.loglikelihood(requests, disable_tqdm=True)], abs=1e-5
    )
    texts = [("the cat sat on the mat and looked at the dog for hours",), ("a mat",)]
    rolling = instances("loglikelihood_rolling", texts)
    for length in (7, 48):
        theirs = hf_lm(str(tmp_path / "model"), trust_remote_code=True, dtype="auto", device="cpu", max_length=length)
        lm = ours(tmp_path, max_length=length, batch_size=2)
        assert lm.loglikelihood_rolling(rolling) == pytest.approx(
            theirs.loglikelihood_rolling(rolling, disable_tqdm=True), abs=1e-5
        )


def test_texts_of_a_batch_do_not_depend_on_each_other(tmp_path: Path):
    """Frequencies that follow the length of a text are those of each text alone, which lm-eval's own model cannot do."""
    net = saved(tmp_path, "rope, dynamic NTK, recomputed")
    found = ours(tmp_path, batch_size=8, max_length=100).loglikelihood(instances("loglikelihood", PAIRS))
    assert [v for v, _ in found] == pytest.approx([plain(net, *pair, most=100)[0] for pair in PAIRS], abs=1e-9)


def test_generation_stops_at_ends_and_strings(tmp_path: Path):
    net, tokenizer, texts = saved(tmp_path, "rope"), letters(), ["the cat", "on a mat with", "a"]
    lm = ours(tmp_path, batch_size=2)
    rows = AutoregressiveWrapper(net).generate(
        [torch.tensor(tokenizer(text)["input_ids"]) for text in texts],
        9,
        temperature=0.0,
        eos_token=tokenizer.eos_token_id,
    )
    whole = [tokenizer.decode(until_end(row, (28,)), skip_special_tokens=True) for row in rows]
    options = {"until": ["<eos>"], "max_gen_toks": 9, "do_sample": False}
    assert lm.generate_until(instances("generate_until", [(text, options) for text in texts])) == whole
    stop = whole[0][3]
    stopped = lm.generate_until(instances("generate_until", [(texts[0], {"until": stop, "max_gen_toks": 9})]))
    assert stopped == [whole[0].split(stop)[0]]
    with pytest.raises(UserError, match="unsupported generation option num_beam"):
        lm.generate_until(instances("generate_until", [("a", {"num_beam": 3})]))
    with pytest.raises(UserError, match=r"max_gen_toks=500 leaves no room for the prompt in max_length=48"):
        lm.generate_until(instances("generate_until", [("a", {"max_gen_toks": 500})]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`x-positional lm-eval` is lm_eval with the model x_positional, on a local task."""
    datasets: Any = importlib.import_module("datasets")
    net = saved(tmp_path, "rope")
    rows = [{"question": "the cat sat on", "choices": ["a mat", "the table"], "answer": 0}]
    write_letters_task(tmp_path / "tasks", rows)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    call: Call = command_line(capsys, monkeypatch, tmp_path)
    code, out, err = call(
        *("lm-eval", "--model_args", "path=model", "--tasks", "letters", "--include_path", "tasks"),
        *("--device", "cpu", "--batch_size", "4", "--output_path", "out", "--log_samples"),
    )
    assert code == 0, err
    assert "x_positional" in out
    (file,) = (tmp_path / "out").rglob("samples_letters_*.jsonl")
    (sample,) = [json.loads(line) for line in file.read_text().splitlines()]
    expected = [plain(net, rows[0]["question"], f" {choice}")[0] for choice in rows[0]["choices"]]
    assert [float(response[0]) for response in sample["filtered_resps"]] == pytest.approx(expected, abs=1e-5)
