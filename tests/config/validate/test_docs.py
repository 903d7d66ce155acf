"""docs/validator.md holds every rule with an example; each error among them really fails or is wrong when forced."""

import ast
import string
from pathlib import Path

import pytest
import torch

from tests.support.doc_pages import generator
from tests.support.validate_forced import forced
from tests.support.validate_oracles import faults
from x_positional.config.layers import LayerConfig, LayersConfig
from x_positional.config.models import ContinuousConfig, ModelConfig
from x_positional.config.validate import RULES, Rule, Use, check
from x_positional.config.validate.rules_ignored import OF_IMAGE_MODELS, OF_LANGUAGE_MODELS, OF_LAYERS, Ignored
from x_positional.config.validate.target import read_target
from x_positional.schemes import XPos

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "x_positional"
PAGE = (ROOT / "docs" / "validator.md").read_text()
GENERATOR = generator("validator")
EXAMPLES = [example for examples in GENERATOR.GROUPS.values() for example in examples]
IGNORED = [*OF_LAYERS, *OF_LANGUAGE_MODELS, *OF_IMAGE_MODELS]
USE = ("cache", "cache_window", "decode_to", "device", "train")


def test_the_page_is_up_to_date() -> None:
    assert GENERATOR.render() == PAGE, "run: python docs/generate/validator.py"


def messages() -> list[str]:
    """The longest fixed part of every message that a rule or a scheme's config can give."""
    files = [*(PACKAGE / "config" / "validate").glob("rules_*.py"), *(PACKAGE / "schemes").rglob("*.py")]
    found = []
    for file in sorted(files):
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            if "schemes" in file.relative_to(PACKAGE).parts and function.name not in (
                "problems",
                "warnings",
                "chain_problems",
            ):
                continue
            texts = [node.value for node in ast.walk(function) if isinstance(node, ast.Yield)]
            texts += [
                arg
                for node in ast.walk(function)
                if isinstance(node, ast.Call)
                for arg in node.args
                if isinstance(node.func, ast.Attribute) and node.func.attr == "append"
            ]
            texts += [item for node in ast.walk(function) if isinstance(node, ast.List) for item in node.elts]
            for text in texts:
                parts = [part.value for part in ast.walk(text) if isinstance(part, ast.Constant)] if text else []
                longest = max((part for part in parts if isinstance(part, str)), key=len, default="")
                if len(longest) > 20:
                    found.append(longest)
    return found


def test_there_are_as_many_messages_as_rules_need() -> None:
    assert len(messages()) > 50


@pytest.mark.parametrize("text", messages())
def test_every_message_is_shown(text: str) -> None:
    assert text.strip() in PAGE, "give it an example in docs/generate/validator.py"


@pytest.mark.parametrize("row", IGNORED, ids=lambda row: f"{row.field} {row.why}")
def test_every_ignored_setting_is_shown(row: Ignored) -> None:
    """By its reason and its advice: settings that are ignored for the same reason share an example."""
    literals = [text for text, *_ in string.Formatter().parse(f"{row.why}. {row.advice}")]
    assert max(literals, key=len) in PAGE, "give it an example in docs/generate/validator.py"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.messages.__name__)
def test_every_rule_is_shown(rule: Rule) -> None:
    assert rule.messages.__doc__ in PAGE


def test_every_function_that_yields_messages_is_registered() -> None:
    """A rule without its decorator would be dropped silently."""
    files = (PACKAGE / "config" / "validate").glob("rules_*.py")
    functions = [f for file in files for f in ast.parse(file.read_text()).body if isinstance(f, ast.FunctionDef)]
    yielding = {f.name for f in functions if f.returns is not None and ast.unparse(f.returns) == "Iterator[str]"}
    assert yielding - {"_ignored"} == {rule.messages.__name__ for rule in RULES}


def judged(example) -> tuple[ModelConfig, Use] | None:
    """The model that an example is about, a bare stack in a wrapper; None where names or flags cannot even be read."""
    flags = {name: value for name, value in example.call().items() if name not in (*USE, "dtype")}
    target = None
    if example.target is not None:
        target, flags = {"num_tokens": 256, "max_seq_len": 256, "layers": {"dim": 64, "depth": 2}, **example.target}, {}
    stacks = list(read_target(target, flags).stacks.values())
    if not stacks or ("position" in example.flags and isinstance(example.flags["position"], str) and not stacks):
        return None
    config = stacks[0].config
    if isinstance(config, LayersConfig | ContinuousConfig):
        return None
    return config, Use(**{name: value for name, value in example.flags.items() if name in USE})


def name_of(example) -> str:
    return ", ".join(f"{name}={GENERATOR.shown(value)}" for name, value in (example.flags or example.target).items())


IN_WORDS = [*GENERATOR.NAMES, *GENERATOR.BOUNDS]
ON_CUDA = [example for example in EXAMPLES if example.flags.get("device") == "cuda"]
ELSEWHERE = {
    "position='absolute', max_seq_len=None": "layers alone; test_a_table_without_a_length_waits",
    "position='log_n', max_seq_len=None": "layers alone, as above",
    name_of(GENERATOR.SCALINGS[2]): "layers alone, as above",
    "position='rope', pattern=[{'position': 'alibi'}]": "idle, and test_what_no_layer_uses_changes_nothing",
    "backend='varlen', kind='cross_attender'": "idle: nothing would run on it",
    "cache='static', cache_window=64": "two answers to one question, and neither is wrong by itself",
    "position='xpos', max_seq_len=8192, dtype='float16'": "test_xpos_in_float16_leaves_its_range",
    "ff={'moe': {'experts': 8, 'top_k': 8, 'correction': True}}": "experts in another order are summed with another rounding",
}
OF_IMAGES = GENERATOR.IMAGES  # test_vision.py builds them
FORCED = [e for e in EXAMPLES if e.level == "error" and e not in [*IN_WORDS, *ON_CUDA, *OF_IMAGES]]


@pytest.mark.parametrize("example", [e for e in FORCED if name_of(e) not in ELSEWHERE], ids=name_of)
def test_what_is_refused_fails_or_is_wrong(example) -> None:
    given = judged(example)
    assert given is not None
    assert faults(*given)


def test_nothing_is_left_out_by_mistake() -> None:
    assert set(ELSEWHERE) <= {name_of(e) for e in FORCED}


def test_xpos_in_float16_leaves_its_range() -> None:
    """Half of a text of twice the length refused: where the factors of hidden scores pass 65,504."""
    length = 8192
    config = ModelConfig(
        num_tokens=11, max_seq_len=length, layers=LayersConfig(dim=16, depth=2, heads=2, position=XPos())
    )
    assert not check(config, dtype="float16").ok
    assert check(config, dtype="bfloat16").ok
    positions, mask = torch.tensor([0, 1, length - 1]), torch.tensor([[True, True, True], [False, True, True]])
    for dtype, finite in ((torch.float16, False), (torch.bfloat16, True)):
        model = forced(config).to(dtype)
        with torch.no_grad():
            out = model(torch.ones(2, 3, dtype=torch.long), positions=positions, mask=mask)
        assert bool(out[mask].isfinite().all()) is finite


def test_what_no_layer_uses_changes_nothing() -> None:
    entries = (LayerConfig.model_validate({"position": "alibi"}),)
    kinds = [LayersConfig(dim=16, depth=2, pattern=entries, position=p).layer_kinds() for p in ("rope", None)]
    assert kinds[0] == kinds[1]


def test_a_table_without_a_length_waits() -> None:
    from x_positional import Decoder
    from x_positional.errors import PositionError

    layers = Decoder(dim=16, depth=2, heads=2, position="absolute")
    assert any("no length is set" in error for error in check(layers).errors)
    with pytest.raises(PositionError, match="no length is set"):
        layers(torch.zeros(1, 3, 16))
