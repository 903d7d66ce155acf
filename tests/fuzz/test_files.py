"""Damaged files of every kind that a model consists of: each loads or is refused with a PretrainedError, soon.

`X_POSITIONAL_ALL_DRAWS=1` runs more than 5,000 cases.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.fuzz.mutations import damaged_bytes, damaged_json, template
from tests.support.draws import draws
from tests.support.published.compare import quietly
from tests.support.published.decoders import CASES
from tests.support.published.gguf_models import CHAT, llama, write_gguf
from x_positional import Decoder, PretrainedError, TransformerWrapper, from_pretrained, load_tokenizer
from x_positional.pretrained import commit
from x_positional.pretrained.folder import COMMITTED, RECORD
from x_positional.pretrained.tensors import write
from x_positional.pretrained.tokenizers.chat import ChatTemplate
from x_positional.pretrained.tokenizers.text import byte_tokenizer

EACH = draws(24, 700)
"""Cases a kind of file."""
SECONDS, MEMORY, SLOW = 5, 1 << 30, 60
"""Limits: CPU time of a case, growth of the process in bytes, and seconds after which a case is interrupted."""
FAMILIES = draws(("llama", "mixtral"), ("llama", "mixtral", "gemma3", "gpt2", "deepseek_v3", "qwen2", "phi3 longrope"))
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of undamaged models."""
    root = tmp_path_factory.mktemp("whole")
    for name in FAMILIES:
        case = next(case for case in CASES if case.name == name)
        cls = getattr(transformers, case.model)
        quietly(cls(cls.config_class(**case.config)).save_pretrained, root / name)
    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, position=["rope", {"kind": "dynamic", "depth": 2}])
    net = TransformerWrapper(num_tokens=16, max_seq_len=8, attn_layers=layers)
    net.save_pretrained(root / "native")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write.write_folder, "__defaults__", (6000,))
        net.save_pretrained(root / "sharded")
        patch.setattr(commit, "_complete", lambda folder: None)
        net.save_pretrained(root / "pending")
    write_gguf(root / "model.gguf", llama(num_hidden_layers=1))
    folder = root / "native"
    byte_tokenizer().save(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    return root


def rewritten(path: Path, content: bytes) -> None:
    """A new file in place of the old one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def json_case(file: str, load: Callable[[Path], Any], names: tuple[str, ...]) -> Callable[[Path, random.Random], Any]:
    def run(root: Path, draw: random.Random) -> Any:
        path = root / draw.choice(names)
        before = (path / file).read_bytes()
        rewritten(path / file, damaged_json(json.loads(before), draw))
        try:
            return load(path)
        finally:
            rewritten(path / file, before)

    return run


def bytes_case(file: str, load: Callable[[Path], Any], head: int) -> Callable[[Path, random.Random], Any]:
    def run(root: Path, draw: random.Random) -> Any:
        path, before = root / file, (root / file).read_bytes()
        rewritten(path, damaged_bytes(before, draw, head))
        try:
            return load(path if path.suffix == ".gguf" else path.parent)
        finally:
            rewritten(path, before)

    return run


def header_case(root: Path, draw: random.Random) -> Any:
    """A safetensors file whose header is changed as JSON, so that its length still fits."""
    path = root / draw.choice(("llama", "native")) / "model.safetensors"
    before = path.read_bytes()
    size = struct.unpack("<Q", before[:8])[0]
    header = damaged_json(json.loads(before[8 : 8 + size]), draw)
    rewritten(path, struct.pack("<Q", len(header)) + header + before[8 + size :])
    try:
        return from_pretrained(path.parent)
    finally:
        rewritten(path, before)


def pending_case(root: Path, draw: random.Random) -> Any:
    """An interrupted save whose record is changed."""
    path = Path(shutil.copytree(root / "pending", root / "copy"))
    try:
        record = path / COMMITTED / RECORD
        rewritten(record, damaged_json(json.loads(record.read_bytes()), draw))
        return from_pretrained(path)
    finally:
        shutil.rmtree(path)


def use_tokenizer(path: Path) -> None:
    words = load_tokenizer(path)
    words.decode(words.encode("some text \N{SNOWMAN}"))
    if words.template is not None:
        words.chat(MESSAGES)


def use_gguf(path: Path) -> None:
    with contextlib.suppress(PretrainedError):
        use_tokenizer(path)
    from_pretrained(path)


def template_case(root: Path, draw: random.Random) -> str:
    text = template(draw) if draw.random() < 0.8 else damaged_bytes(CHAT.encode(), draw, 999).decode("utf-8", "replace")
    return ChatTemplate(text, {"bos_token": "<s>"}, "here").render(MESSAGES)


KINDS: dict[str, Callable[[Path, random.Random], Any]] = {
    "safetensors": bytes_case("llama/model.safetensors", from_pretrained, 3000),
    "safetensors header": header_case,
    "index": json_case("model.safetensors.index.json", from_pretrained, ("sharded",)),
    "config.json": json_case("config.json", from_pretrained, FAMILIES),
    "native config": json_case("config.json", from_pretrained, ("native", "sharded")),
    "gguf": bytes_case("model.gguf", use_gguf, 9000),
    "tokenizer.json": json_case("tokenizer.json", use_tokenizer, ("native",)),
    "tokenizer settings": json_case("tokenizer_config.json", use_tokenizer, ("native",)),
    "template": template_case,
    "record": pending_case,
}


def interrupted(*_: Any) -> None:
    raise TimeoutError(f"not finished after {SLOW} s")


@pytest.fixture
def alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, interrupted)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGALRM")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("alarm")
def test_damaged_files(kind: str, whole: Path):
    outcomes, wrong = Counter[str](), list[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(EACH):
        started = time.process_time()
        signal.alarm(SLOW)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                KINDS[kind](whole, random.Random(seed))
            outcomes["loaded"] += 1
        except PretrainedError:
            outcomes["refused"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong.append(f"{kind} {seed}: {type(error).__name__}: {str(error)[:300]}")
        signal.alarm(0)
        taken = time.process_time() - started
        if taken > SECONDS:
            wrong.append(f"{kind} {seed}: {taken:.1f} s")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(f"{kind}: {dict(outcomes)}, peak memory +{grown >> 20} MiB")
    assert not wrong, "\n".join(wrong[:20])
    assert grown < MEMORY
    assert outcomes["refused"]
