"""The table of keywords: complete against x-transformers, true about our own config and signatures, and published."""

import inspect
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from x_transformers import autoregressive_wrapper, continuous
from x_transformers import x_transformers as xt

import x_positional
from x_positional.config.flags.entry import REQUIRED, refused, table
from x_positional.config.flags.table import FLAGS, PLACES
from x_positional.config.layers import AttentionConfig, FeedForwardConfig, LayersConfig, NormConfig
from x_positional.config.models import ModelConfig
from x_positional.schemes.registry import REGISTRY

ROOT = Path(__file__).parents[3]
LAYERS = PLACES["AttentionLayers"]

SOURCES = {
    "AttentionLayers": [
        (xt.AttentionLayers.__init__, ""),
        (xt.Attention.__init__, "attn_"),
        (xt.Attention.__init__, "cross_attn_"),
        (xt.FeedForward.__init__, "ff_"),
    ],
    "TransformerWrapper": [(xt.TransformerWrapper.__init__, "")],
    "ContinuousTransformerWrapper": [(continuous.ContinuousTransformerWrapper.__init__, "")],
    "XTransformer": [(xt.XTransformer.__init__, "")],
    "AutoregressiveWrapper": [(autoregressive_wrapper.AutoregressiveWrapper.__init__, "")],
    "ViTransformerWrapper": [(xt.ViTransformerWrapper.__init__, "")],
    "AttentionLayers.forward": [(xt.AttentionLayers.forward, "")],
    "PrefixDecoder.forward": [(xt.PrefixDecoder.forward, "")],
    "Attention.forward": [(xt.Attention.forward, "")],
    "TransformerWrapper.forward": [(xt.TransformerWrapper.forward, "")],
    "ContinuousTransformerWrapper.forward": [(continuous.ContinuousTransformerWrapper.forward, "")],
    "ViTransformerWrapper.forward": [(xt.ViTransformerWrapper.forward, "")],
    "XTransformer.forward": [(xt.XTransformer.forward, "")],
    "XTransformer.generate": [(xt.XTransformer.generate, "")],
    "AutoregressiveWrapper.generate": [(autoregressive_wrapper.AutoregressiveWrapper.generate, "")],
    "AutoregressiveWrapper.beam_search": [(autoregressive_wrapper.AutoregressiveWrapper.beam_search, "")],
    "AutoregressiveWrapper.forward": [(autoregressive_wrapper.AutoregressiveWrapper.forward, "")],
}

TWICE = {"dim", "heads", "causal", "output_proj_depth"}
"""Keywords of inner classes that the outer one passes itself; their default there is of no use."""


def innermost(function: Callable[..., object]) -> Callable[..., object]:
    """What decorators wrap, also those that keep no `__wrapped__`."""
    function = inspect.unwrap(function)
    inner = [cell.cell_contents for cell in function.__closure__ or () if inspect.isfunction(cell.cell_contents)]
    return innermost(inner[0]) if inner else function


def theirs(place: str) -> dict[str, object]:
    """keyword -> default, as the installed x-transformers has them. Functions by name, nothing for `*args`."""
    found: dict[str, object] = {}
    for function, prefix in SOURCES[place]:
        for parameter in inspect.signature(innermost(function)).parameters.values():
            if parameter.name == "self" or parameter.kind is parameter.VAR_POSITIONAL:
                continue
            default = REQUIRED if parameter.default is parameter.empty else parameter.default
            if parameter.kind is parameter.VAR_KEYWORD:
                if place in ("AttentionLayers", "XTransformer", "AttentionLayers.forward", "PrefixDecoder.forward"):
                    continue  # listed by name: prefixed keywords, or the arguments of the class above
                default = REQUIRED
            found[prefix + parameter.name] = default.__name__ if inspect.isfunction(default) else default
    return found


def test_every_class_with_a_table_has_a_source():
    assert set(SOURCES) == set(PLACES)


@pytest.mark.parametrize("place", SOURCES)
def test_every_keyword_is_listed_and_nothing_else(place):
    listed = {name for name, flag in PLACES[place].items() if not flag.own}
    assert listed == set(theirs(place))


@pytest.mark.parametrize("place", SOURCES)
def test_defaults_are_those_of_x_transformers(place):
    for name, default in theirs(place).items():
        inner = re.sub("^(cross_attn_|attn_|ff_)", "", name)
        if inner in TWICE and inner != name:
            continue
        listed = PLACES[place][name].default
        assert listed == default, name
        assert isinstance(listed, bool) == isinstance(default, bool), name


def field_of(path: str, place: str) -> object:
    """The pydantic field that a table's path names."""
    at_model = place == "TransformerWrapper"
    if match := re.fullmatch(r"position\[(\w+)\]\.(\w+)", path):
        return REGISTRY[match[1]].model_fields[match[2]]
    groups = {"norm": NormConfig, "attn": AttentionConfig, "ff": FeedForwardConfig, "layers": LayersConfig}
    head, _, leaf = path.partition(".")
    if leaf:
        return groups[head].model_fields[leaf]
    return (ModelConfig if at_model else LayersConfig).model_fields[head]


CONFIGURED = [f for f in FLAGS if f.where in ("AttentionLayers", "TransformerWrapper") and f.field is not None]


@pytest.mark.parametrize("flag", CONFIGURED, ids=lambda flag: flag.name)
def test_a_supported_flag_names_a_field_that_exists(flag):
    assert field_of(flag.field, flag.where) is not None


@pytest.mark.parametrize("flag", [f for f in CONFIGURED if f.copied and not f.own], ids=lambda flag: flag.name)
def test_a_copied_flag_has_the_default_of_its_field(flag):
    field = field_of(flag.field, flag.where)
    if flag.default in (REQUIRED, None) and field.is_required():
        return
    assert field.default == flag.default


def test_supported_flags_say_what_they_set_and_refused_ones_why():
    for flag in FLAGS:
        assert flag.note.endswith("."), flag
        if flag.verdict == "refused":
            assert flag.field is None, flag
            assert len(re.findall(r"[.:;](?= |$)", flag.note)) >= 2, f"{flag.where}.{flag.name}: a reason and a way out"
        else:
            assert flag.field is not None or flag.name in ("verbose", "kwargs"), flag


def test_way_outs_name_keywords_that_are_supported():
    listed = {flag.name for flag in FLAGS}
    supported = {flag.name for flag in FLAGS if flag.verdict == "supported"}
    for flag in FLAGS:
        if flag.verdict == "refused" and "which is refused" not in flag.note:
            named = set(re.findall(r"`(\w+)(?:=\w+)?`", flag.note))
            assert named & listed <= supported, flag


@pytest.mark.parametrize(
    "place",
    [
        "AttentionLayers.forward",
        "TransformerWrapper.forward",
        "ContinuousTransformerWrapper.forward",
        "XTransformer.forward",
        "XTransformer.generate",
        "AutoregressiveWrapper.forward",
        "AutoregressiveWrapper.generate",
    ],
)
def test_supported_arguments_of_calls_are_in_our_signatures(place):
    name, _, method = place.partition(".")
    ours = getattr(x_positional, "Decoder" if name == "AttentionLayers" else name)
    parameters = inspect.signature(getattr(ours, method)).parameters
    for flag in PLACES[place].values():
        if flag.verdict == "supported" and flag.field is not None:
            assert flag.field in parameters, f"{place}({flag.name}=...) became {flag.field}"


def test_a_keyword_cannot_be_listed_twice(monkeypatch):
    from x_positional.config.flags import table as flag_table

    twice = table("Somewhere", [refused("a", 0, "No. Use b."), refused("a", 1, "No. Use b.")])
    monkeypatch.setattr(flag_table, "FLAGS", twice)
    with pytest.raises(ValueError, match="lists 'a' twice"):
        flag_table._by_place()


def test_the_page_is_up_to_date():
    generator = runpy.run_path(str(ROOT / "docs/generate/migration.py"))
    assert generator["PAGE"].read_text() == generator["render"](), "run: python docs/generate/migration.py"


def test_the_page_lists_every_keyword_once_in_its_section():
    page = (ROOT / "docs/migration.md").read_text()
    for place, flags in PLACES.items():
        if place == "AttentionLayers":
            continue
        rows = re.findall(r"^\| `(\w+)` \|", page.split(f"\n### {place}\n")[1].split("\n### ")[0], re.MULTILINE)
        assert sorted(rows) == sorted(flags)
    layers = page.split("\n### Encoder, Decoder, CrossAttender\n")[1].split("\n### TransformerWrapper\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", layers, re.MULTILINE) + re.findall(
        r"`(cross_attn_\w+)`(?:,|\.$)", layers, re.M
    )
    assert sorted(named) == sorted(name for name, flag in LAYERS.items() if not flag.own)


def test_window_of_x_transformers_does_not_count_the_token_itself():
    """What `attn_max_attend_past` is translated by, measured."""
    torch.manual_seed(0)
    layer = xt.Attention(dim=16, heads=2, dim_head=8, causal=True, max_attend_past=3)
    x = torch.randn(1, 9, 16, requires_grad=True)
    layer(x)[0, 8].sum().backward()
    assert (x.grad[0].abs().sum(-1) > 0).tolist() == [False] * 5 + [True] * 4
