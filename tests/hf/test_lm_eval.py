"""lm-eval on saved models: its command, its function, and a local task; log-likelihoods are x_positional's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.doors import letters, model_of
from tests.support.draws import draws
from tests.support.generation_models import until_end
from tests.support.lm_eval_task import write_letters_task
from x_positional import AutoregressiveWrapper, TransformerWrapper

pytestmark = pytest.mark.slow
lm_eval = pytest.importorskip(
    "lm_eval", reason="lm_eval is not installed (it takes a minute), so its tasks are not run"
)

QUESTIONS = [
    {"question": "the cat sat on", "choices": ["a mat", "the table"], "answer": 0},
    {"question": "positions are", "choices": ["data", "none of this"], "answer": 0},
    {"question": "who", "choices": ["a cat", "a mat"], "answer": 1},
]


def prepared(folder: Path, row: str) -> TransformerWrapper:
    """A model with its tokenizer in `model`, a task in `tasks`."""
    net = model_of(row)
    net.save_pretrained(folder / "model", format="hf", code=True)
    letters().save_pretrained(folder / "model")
    write_letters_task(folder / "tasks", QUESTIONS)
    return net


@torch.no_grad()
def expected(net: TransformerWrapper) -> list[list[float]]:
    """The log-probability of each choice, in nats, from one pass for each."""
    tokenizer, found = letters(), []
    for question in QUESTIONS:
        context = len(tokenizer(question["question"])["input_ids"])
        rows = [torch.tensor(tokenizer(f"{question['question']} {c}")["input_ids"]) for c in question["choices"]]
        log_probs = [net(row[None, :-1])[0].log_softmax(-1).gather(-1, row[1:, None]) for row in rows]
        found.append([values[context - 1 :].sum().item() for values in log_probs])
    return found


def judged(found: list[list[float]]) -> float:
    """Accuracy."""
    right = [values.index(max(values)) == q["answer"] for values, q in zip(found, QUESTIONS, strict=True)]
    return sum(right) / len(right)


def same(samples: list[dict], want: list[list[float]]) -> None:
    """The choices of each sample, to 1e-5."""
    rows = [
        [float(response[0]) for response in s["filtered_resps"]] for s in sorted(samples, key=lambda s: s["doc_id"])
    ]
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(want), atol=1e-5, rtol=0)


@pytest.mark.parametrize("row", draws(["cope"], ["rope", "alibi", "t5", "cope", "forgetting"]))
def test_a_local_task_of_simple_evaluate(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    want = expected(prepared(tmp_path, row))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "model"), "trust_remote_code": True, "dtype": "auto"},
        tasks=["letters"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=4,
    )
    same(found["samples"]["letters"], want)
    assert found["results"]["letters"]["acc,none"] == pytest.approx(judged(want))


def test_the_command(tmp_path: Path) -> None:
    """As docs/how-to/lm-eval.md shows it, in float32."""
    want = expected(prepared(tmp_path, "pattern: rope in a window, none"))
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "4"),
        *("--model_args", f"pretrained={tmp_path / 'model'},trust_remote_code=True,dtype=float32"),
        *("--tasks", "letters", "--include_path", str(tmp_path / "tasks")),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").rglob("samples_letters_*.jsonl")
    same([json.loads(line) for line in file.read_text().splitlines()], want)
    assert "letters" in done.stdout


def test_requests_to_generate_and_whole_texts(tmp_path: Path) -> None:
    """`generate_until` runs over x_positional's cache in batches; `loglikelihood_rolling` reads a whole text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    net, tokenizer, texts = prepared(tmp_path, "forgetting"), letters(), ["the cat", "on a mat with"]
    lm = HFLM(str(tmp_path / "model"), trust_remote_code=True, dtype="auto", device="cpu", batch_size=2)
    assert lm.max_length == net.max_seq_len
    options = {"until": ["<eos>"], "max_gen_toks": 6, "do_sample": False}
    got = lm.generate_until([Instance("generate_until", {}, (text, dict(options)), i) for i, text in enumerate(texts)])
    prompts = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    ours = AutoregressiveWrapper(net).generate(prompts, 6, temperature=0.0, eos_token=tokenizer.eos_token_id)
    assert got == [
        tokenizer.decode(until_end(row, (tokenizer.eos_token_id,)), skip_special_tokens=True) for row in ours
    ]
    (value,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (texts[1],), 0)])
    row = torch.tensor([tokenizer.eos_token_id, *prompts[1]])
    with torch.no_grad():
        want = net(row[None, :-1])[0].log_softmax(-1).gather(-1, row[1:, None]).sum().item()
    assert value == pytest.approx(want, abs=1e-9)
