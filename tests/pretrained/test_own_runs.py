"""`from_pretrained` and `load_tokenizer` read the folder of `x-positional train`, and refuse what is damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from x_positional import AutoregressiveWrapper, from_pretrained, load_tokenizer
from x_positional.cli.convert import convert
from x_positional.cli.generate import checkpoint_tokenizer, load_net
from x_positional.errors import PretrainedError
from x_positional.pretrained.tokenizers.text import byte_tokenizer
from x_positional.training import TrainConfig, train
from x_positional.training.checkpoints.checkpoint import open_checkpoint

STOPPED = Path(__file__).parents[1] / "fixtures" / "run_stopped" / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A stored run with one checkpoint."""
    return Path(shutil.copytree(STOPPED, tmp_path / "run"))


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").iterdir())


def test_a_run_is_its_newest_checkpoint(run: Path) -> None:
    newest = checkpoints(run)[-1]
    want = load_net(open_checkpoint(newest), "cpu")
    tokens = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    for source in (run, str(run), newest):
        model = from_pretrained(source)
        assert not model.training
        assert model.config == want.config
        assert torch.equal(model(tokens), want(tokens))
    half = from_pretrained(run, dtype=torch.bfloat16, quantize="int8")
    assert half.quantized == "int8"
    assert half(tokens).dtype == torch.bfloat16
    assert AutoregressiveWrapper(model).generate(tokens[0], 3, seed=0).shape == (3,)


def test_an_older_checkpoint_is_read_by_its_folder(run: Path) -> None:
    """The best one, for example, which trainer.json names."""
    newest = checkpoints(run)[-1]
    later = newest.with_name("step-00009999")
    shutil.copytree(newest, later)
    (later / "model.safetensors").unlink()
    with pytest.raises(PretrainedError, match=rf"{later.name} is damaged.*\n.*safetensors is missing.*{newest.name}"):
        from_pretrained(run)
    assert torch.is_tensor(next(from_pretrained(newest).parameters()))


def test_its_tokenizer_is_that_of_the_run(run: Path) -> None:
    tokenizer = load_tokenizer(run)
    ids = tokenizer.encode("1 plus 2 is 3.\n")
    assert ids == list(b"1 plus 2 is 3.\n")
    assert tokenizer.decode(ids) == "1 plus 2 is 3.\n"


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "trainer.json"])
def test_a_damaged_checkpoint_is_refused_by_name(run: Path, name: str) -> None:
    file = checkpoints(run)[-1] / name
    file.write_bytes(file.read_bytes()[:-3] + b"abc")
    with pytest.raises(PretrainedError, match=rf"is damaged:\n- .*{name}.*no other good checkpoint"):
        from_pretrained(run)


def test_other_problems_have_their_reason(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"rope_theta: a model in x_positional's own format.*\n- backend='eager'"):
        from_pretrained(run, backend="eager", rope_theta=3)
    record = checkpoints(run)[-1] / "trainer.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": 99}))
    with pytest.raises(PretrainedError, match="format version 99 is newer; upgrade"):
        from_pretrained(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PretrainedError, match=r"no config.json, no GGUF file and no checkpoints/step-… of a run"):
        from_pretrained(tmp_path / "empty")


@pytest.mark.parametrize("tokenizer", ["bytes", "tokenizer.json"])
def test_a_run_stops_at_the_end_of_its_documents(tmp_path: Path, tokenizer: str) -> None:
    """The id that training appended to each document, wherever it came from."""
    if tokenizer != "bytes":
        byte_tokenizer().save(tmp_path / "words")
        (tmp_path / "words" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "q"}))
    (tmp_path / "text").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "text" / name).write_text("the end of a document " * 9)
    layers = {"dim": 8, "depth": 1, "heads": 1}
    name, end = ("bytes", 7) if tokenizer == "bytes" else (str(tmp_path / "words"), ord("q"))
    data = {"path": str(tmp_path / "text"), "tokenizer": name, "document_end": 7 if tokenizer == "bytes" else None}
    run = {"dir": str(tmp_path / "run"), "steps": 1, "device": "cpu", "batch_size": 2}
    config = {"model": {"num_tokens": 256, "max_seq_len": 16, "layers": layers}, "data": data, "run": run}
    train(TrainConfig.model_validate(config))
    words = checkpoint_tokenizer(open_checkpoint(tmp_path / "run"))
    assert words is not None
    assert words.document_end == end
    assert load_tokenizer(tmp_path / "run").ends[0] == end
    convert(tmp_path / "run", tmp_path / "out", "native", model_type=None, dtype=None)
    assert load_tokenizer(tmp_path / "out").ends[0] == end
