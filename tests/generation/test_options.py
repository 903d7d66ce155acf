"""The parameters of generate and stream: declared once, in their known order, and checked all at once."""

import inspect
from dataclasses import KW_ONLY, fields

import pytest
import torch

from tests.support.generation_models import NUM_TOKENS, ids, language_model
from x_positional import AutoregressiveWrapper, XTransformer
from x_positional.errors import ArgumentError, FlagError, InputError
from x_positional.generation.options import (
    DecodeOptions,
    GenerateAndReturnAll,
    GenerateAndReturnCache,
    GenerateAndReturnLogProbs,
    GenerateOptions,
)

REQUIRED = inspect.Parameter.empty

POSITIONAL = [
    ("prompts", REQUIRED),
    ("seq_len", REQUIRED),
    ("eos_token", None),
    ("temperature", 1.0),
    ("prompt_lens", None),
    ("filter_logits_fn", "top_k"),
    ("restrict_to_max_seq_len", True),
    ("filter_kwargs", None),
    ("cache_kv", True),
]
"""(name, default) in order."""
KEYWORDS = {
    "repetition_penalty": 1.0,
    "generator": None,
    "seed": None,
    "cache": None,
    "context": None,
    "context_mask": None,
    "positions": None,
    "prepend_embeds": None,
    "compile": "auto",
    "prefill_chunk_size": None,
    "speculate": None,
    "contrast": None,
    "prefix_len": None,
    "num_return_sequences": 1,
    "logits_processors": None,
    "stopping_criteria": None,
}
GENERATE_ONLY = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "return_log_probs": False,
    "return_cache": False,
}
SOURCE_POSITIONAL = [("src", REQUIRED), ("start_tokens", REQUIRED), ("seq_len", REQUIRED), ("mask", None)]
FROM_CONTEXT = ("context", "context_mask")
SOURCE_EMBEDS = {"inputs_embeds": None, "src_prepend_embeds": None}
SOURCE_KEYWORDS = dict(POSITIONAL[2:]) | {name: value for name, value in KEYWORDS.items() if name not in FROM_CONTEXT}


def parameters(function) -> tuple[list[tuple[str, object]], dict[str, object]]:
    """(name, default) of the positional parameters but self, in order; the keyword-only ones by name."""
    found = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    positional = [(p.name, p.default) for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}
    assert len(positional) + len(keywords) == len(found), "no *args and no **kwargs"
    return positional, keywords


@pytest.fixture(scope="module")
def wrapper() -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model())


def test_signatures_are_the_known_ones(wrapper) -> None:
    assert parameters(AutoregressiveWrapper.stream) == (POSITIONAL, KEYWORDS)
    assert parameters(AutoregressiveWrapper.generate) == (POSITIONAL, KEYWORDS | GENERATE_ONLY)
    of_source = SOURCE_EMBEDS | SOURCE_KEYWORDS
    assert parameters(XTransformer.stream) == (SOURCE_POSITIONAL, of_source)
    assert parameters(XTransformer.generate) == (SOURCE_POSITIONAL, of_source | GENERATE_ONLY)
    assert parameters(wrapper.generate) == parameters(AutoregressiveWrapper.generate)
    assert next(iter(inspect.signature(AutoregressiveWrapper.generate).parameters)) == "self"


@pytest.mark.parametrize(
    "options",
    [DecodeOptions, GenerateOptions, GenerateAndReturnCache, GenerateAndReturnLogProbs, GenerateAndReturnAll],
)
def test_the_options_are_exactly_the_parameters(options: type) -> None:
    method = AutoregressiveWrapper.stream if options is DecodeOptions else AutoregressiveWrapper.generate
    positional, keywords = parameters(method)
    names = {field.name for field in fields(options) if field.init}
    assert names == {name for name, _ in positional} | set(keywords)
    if options in (DecodeOptions, GenerateOptions):  # the others exist for type checkers, and require what is returned
        assert parameters(options) == (positional, keywords)


def test_a_source_model_takes_options_of_the_same_meaning_and_default() -> None:
    names, defaults = parameters(DecodeOptions)
    assert {**dict(names), **defaults}.items() >= SOURCE_KEYWORDS.items()


def test_every_parameter_is_described_and_shown_by_help() -> None:
    for method in (AutoregressiveWrapper.generate, AutoregressiveWrapper.stream):
        text = inspect.getdoc(method)
        described = [line.split(":")[0].strip() for line in text[text.index("Args:") :].splitlines() if ": " in line]
        only = GENERATE_ONLY if method is AutoregressiveWrapper.generate else {}
        assert {*dict(POSITIONAL), *KEYWORDS, *only} <= set(described)


def test_types_of_the_parameters_are_kept(wrapper) -> None:
    declared = {p.name: p.annotation for p in inspect.signature(DecodeOptions).parameters.values()}
    shown = {p.name: p.annotation for p in inspect.signature(wrapper.stream).parameters.values()}
    assert shown == declared
    assert KW_ONLY not in shown.values()


@pytest.mark.parametrize("verb", ["generate", "stream"])
def test_unknown_missing_and_repeated_arguments_are_type_errors(wrapper, verb: str) -> None:
    method = getattr(wrapper, verb)
    with pytest.raises(TypeError, match="temprature"):
        method(ids(1, 3), 4, temprature=1.0)
    with pytest.raises(TypeError, match="seq_len"):
        method(ids(1, 3))
    with pytest.raises(TypeError, match="seq_len"):
        method(ids(1, 3), 4, seq_len=4)


def test_stream_gives_the_reason_for_what_only_generate_has(wrapper) -> None:
    for options in ({"num_beams": 2}, {"length_penalty": 2.0}, {"early_stopping": "never"}):
        with pytest.raises(FlagError, match=r"best sequence is known after the last token.*Use `generate`"):
            wrapper.stream(ids(1, 3), 4, **options)
    for name in ("return_log_probs", "return_cache"):
        with pytest.raises(FlagError, match=f"{name} is not a parameter"):
            wrapper.stream(ids(1, 3), 4, **{name: True})


def test_arguments_by_position_and_by_name_are_the_same_call(wrapper) -> None:
    by_name = {"eos_token": 3, "temperature": 1.5, "prompt_lens": torch.tensor([3, 2]), "filter_logits_fn": "top_p"}
    by_name |= {"restrict_to_max_seq_len": False, "filter_kwargs": {"thres": 0.95}, "cache_kv": False}
    assert [name for name, _ in POSITIONAL[2:]] == list(by_name)
    named = wrapper.generate(prompts=ids(2, 3), seq_len=9, seed=1, **by_name)
    assert torch.equal(wrapper.generate(ids(2, 3), 9, *by_name.values(), seed=1), named)


def test_every_option_of_a_source_model_arrives(monkeypatch) -> None:
    sizes = {"num_tokens": NUM_TOKENS, "max_seq_len": 9, "depth": 1, "heads": 1, "attn_dim_head": 8}
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sizes.items()}
    model = XTransformer(dim=8, enc_rotary_pos_emb=True, dec_rotary_pos_emb=True, **sides)
    arrived = []

    class Loop:
        def __init__(self, net, options, pad_value):
            arrived.append(options)

        def results(self):
            return ids(1, 1)

    monkeypatch.setattr("x_positional.models.seq2seq.decode_loop", Loop)
    given = {
        "eos_token": 4,
        "temperature": 0.5,
        "prompt_lens": torch.tensor([1]),
        "filter_logits_fn": "min_p",
        "filter_kwargs": {"min_p": 0.2},
        "restrict_to_max_seq_len": False,
        "cache_kv": False,
        "repetition_penalty": 1.1,
        "generator": torch.Generator(),
        "seed": None,
        "compile": False,
        "prepend_embeds": torch.zeros(1, 1, 8),
        "prefill_chunk_size": None,
        "cache": None,
        "positions": torch.tensor([[0, 2]]),
        "speculate": None,
        "contrast": None,
        "prefix_len": None,
        "num_return_sequences": 2,
        "logits_processors": lambda tokens, logits: logits,
        "stopping_criteria": lambda tokens: False,
        "num_beams": 1,
        "length_penalty": 1.0,
        "early_stopping": False,
        "return_log_probs": True,
        "return_cache": False,
    }
    assert set(given) == {*SOURCE_KEYWORDS, *GENERATE_ONLY}
    mask = torch.ones(1, 5, dtype=torch.bool)
    model.generate(ids(1, 5), ids(1, 2), 6, mask, **given)
    model.generate(ids(1, 5), ids(1, 2), 6, seed=7, prefill_chunk_size=2)
    assert {name: getattr(arrived[0], name) for name in given} == given
    assert (arrived[0].seq_len, arrived[1].seed, arrived[1].prefill_chunk_size) == (6, 7, 2)
    assert torch.equal(arrived[0].prompts, ids(1, 2))
    assert arrived[0].context_mask is mask
    assert arrived[0].context.shape == (1, 5, 8)


def test_options_cannot_be_changed_after_they_were_checked() -> None:
    options = DecodeOptions(ids(1, 3), 4)
    with pytest.raises(AttributeError):
        options.temperature = -1.0


def test_all_problems_are_reported_at_once() -> None:
    wrong = {"temperature": -1, "repetition_penalty": 0, "seed": 1, "generator": torch.Generator(), "cache_kv": False}
    with pytest.raises(InputError) as refusal:
        GenerateOptions(ids(1, 3), -4, return_cache=True, **wrong)
    assert str(refusal.value).splitlines() == [
        "seq_len=-4 is the number of new tokens; it cannot be negative.",
        "cache= and return_cache=True need cache_kv=True.",
        "seed= and generator= cannot be combined: each makes the draw reproducible. Pass one.",
        "temperature=-1 must be a finite number of at least 0.",
        "repetition_penalty=0 must be a finite number above 0.",
    ]
    with pytest.raises(ArgumentError, match="unknown filter 'topk'"):
        DecodeOptions(ids(1, 3), 4, filter_logits_fn="topk")


def test_options_are_checked_before_the_source_is_encoded() -> None:
    sizes = {"num_tokens": NUM_TOKENS, "max_seq_len": 9, "depth": 1, "heads": 1, "attn_dim_head": 8}
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sizes.items()}
    model = XTransformer(dim=8, enc_rotary_pos_emb=True, dec_rotary_pos_emb=True, **sides)
    model.encoder.register_forward_pre_hook(lambda *_: pytest.fail("the encoder ran"))
    with pytest.raises(InputError, match="temperature=-1"):
        model.generate(ids(1, 5), ids(1, 2), 6, temperature=-1)
