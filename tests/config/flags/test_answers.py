"""Keywords, attributes and classes of x-transformers and transformers at the public methods: translated, or refused as the
migration page has it."""

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import x_positional
from tests.support.generation_models import NUM_TOKENS, ids, language_model
from x_positional import (
    ArgumentError,
    AutoregressiveWrapper,
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    FlagError,
    InputError,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    from_pretrained,
)
from x_positional.config.flags.answers import PARAMETERS, flags_of_call, verdict
from x_positional.config.flags.missing import ATTRIBUTES, CLASSES, LOADING
from x_positional.config.flags.table import PLACES
from x_positional.config.flags.transformers import WORDS

PAGE = (Path(__file__).parents[3] / "docs/migration.md").read_text()
CALLS = [place for place in PARAMETERS if "." in place]
ANYTHING = object()
"""A value of any keyword, which no table takes for its off value."""


def method(place: str):
    name, _, called = place.partition(".")
    return getattr(getattr(x_positional, "Decoder" if name == "AttentionLayers" else name), called)


def problems(call, *args, **keywords) -> list[str]:
    with pytest.raises(FlagError) as error:
        call(*args, **keywords)
    return error.value.problems


def sides(**flags) -> XTransformer:
    torch.manual_seed(0)
    numbers = {"num_tokens": NUM_TOKENS, "max_seq_len": 16, "depth": 1, "heads": 2}
    prefixed = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in numbers.items()}
    return XTransformer(dim=16, **prefixed, **flags).eval()


def test_every_call_of_the_tables_has_a_method_that_answers() -> None:
    nowhere = {"PrefixDecoder.forward", "Attention.forward", "AutoregressiveWrapper.beam_search"}
    assert {place for place in PLACES if "." in place} - nowhere <= set(PARAMETERS)
    assert set(WORDS) <= set(PARAMETERS)


@pytest.mark.parametrize("place", CALLS)
def test_every_refused_keyword_gives_the_reason_of_the_page(place: str) -> None:
    call, known = method(place), PARAMETERS[place]
    for name, flag in flags_of_call(place).items():
        status, text = verdict(flag, known)
        assert f"`{name}` |" in PAGE, (place, name)
        if name in known or status == "supported":
            continue
        found = problems(call, None, **{name: ANYTHING})
        assert found[0].startswith(f"{name}={ANYTHING!r} is refused. {text}")
        assert text.replace("|", "\\|") in PAGE, (place, name)
        assert text.count(". ") >= 1 or text.startswith("Use `"), f"{place}.{name}: a reason and a way out"
        called = re.findall(r"Use `(\w+)=", text)
        there = known | {"position", "return_embeddings"}
        assert not called or called[0] in there or found[0].endswith(f"keyword of {flag.where}."), (place, name, text)


@pytest.mark.parametrize("place", CALLS)
def test_every_keyword_of_x_transformers_is_answered(place: str) -> None:
    for name in PLACES.get(place, {}):
        answer = flags_of_call(place).get(name)
        assert name in PARAMETERS[place] or name == "kwargs" or answer is not None, (place, name)


@pytest.mark.parametrize("place", PARAMETERS)
def test_the_signature_is_that_of_the_method(place: str) -> None:
    call = method(place if "." in place else f"{place}.__init__")
    assert inspect.signature(call) == inspect.signature(call.__wrapped__)
    assert set(inspect.signature(call).parameters) == PARAMETERS[place]
    assert call.__doc__ == call.__wrapped__.__doc__


def test_keywords_passed_on_by_x_transformers_are_answered_too() -> None:
    wrapper, tokens = AutoregressiveWrapper(language_model()), ids(2, 6)
    found = problems(
        wrapper, tokens, lens=tokens, pos=tokens, context_pos=tokens, return_mems=True, layers_execute_order=(0,)
    )
    assert [problem.split("=")[0] for problem in found] == [
        "lens",
        "pos",
        "context_pos",
        "return_mems",
        "layers_execute_order",
    ]
    found = problems(wrapper.generate, tokens, 3, amateur_model=wrapper, attn_mask=tokens, seq_start_pos=[1, 2])
    assert [problem.split("=")[0] for problem in found][1:] == ["attn_mask", "seq_start_pos"]
    assert "mask_prob=0.15 is refused" in problems(AutoregressiveWrapper, language_model(), mask_prob=0.15)[0]


def test_off_values_are_accepted() -> None:
    model, tokens = language_model(), ids(2, 6)
    same = model(tokens, mems=None, return_intermediates=False, pos=None, use_cache=False, output_hidden_states=None)
    assert torch.equal(same, model(tokens))
    wrapper = AutoregressiveWrapper(model)
    plain = wrapper.generate(tokens, 3, temperature=0)
    assert torch.equal(wrapper.generate(tokens, 3, temperature=0, num_beam_groups=1, length_penalty=1.0), plain)


def test_words_of_transformers_for_a_beam_search() -> None:
    wrapper, tokens = AutoregressiveWrapper(language_model()), ids(2, 6)
    found = wrapper.generate(tokens, max_new_tokens=3, num_beams=2, do_sample=False, eos_token_id=1)
    assert torch.equal(found, wrapper.generate(tokens, 3, 1, num_beams=2))
    assert "Beam search draws nothing" in problems(wrapper.generate, tokens, 3, num_beams=2, do_sample=True)[0]
    assert "Use `logits_processors=`" in problems(wrapper.generate, tokens, 3, logits_processor=[print])[0]
    assert "Use `stopping_criteria=`" in problems(wrapper.generate, tokens, 3, stop_strings=["a"])[0]


def test_typos_get_the_nearest_parameter() -> None:
    model, tokens = language_model(), ids(2, 6)
    assert problems(model, tokens, posisions=1) == ["posisions is not a parameter; did you mean 'positions'?"]
    assert problems(AutoregressiveWrapper(model).generate, tokens, 3, temprature=1.0, zzz=1)[0].endswith(
        "'temperature'?"
    )
    with pytest.raises(TypeError, match="multiple values for argument 'tokens'"):
        model(tokens, input_ids=tokens)
    with pytest.raises(InputError, match="exactly one of tokens and inputs_embeds"):
        model()


def test_words_of_transformers_for_a_forward_pass() -> None:
    model, tokens = language_model(), ids(2, 6)
    places, want = torch.arange(6).expand(2, 6) * 2, model(tokens)
    assert torch.equal(model(input_ids=tokens), want)
    assert torch.equal(model(x=tokens), want)
    assert torch.equal(model(tokens, position_ids=places), model(tokens, positions=places))
    cache = model.new_cache(2)
    model(tokens[:, :4], cache=cache)
    torch.testing.assert_close(model(tokens[:, 4:], past_key_values=cache), want[:, 4:])
    assert cache.starts() == 6
    assert "new_cache" in problems(model, tokens, past_key_values=[1])[0]
    assert "movedim(0, -1)" in problems(model, tokens, position_ids=places.expand(3, 2, 6))[0]
    wrapper = AutoregressiveWrapper(model)
    assert torch.equal(wrapper(input_ids=tokens, labels=tokens), wrapper(tokens))


def test_words_of_transformers_for_other_models() -> None:
    torch.manual_seed(0)
    floats = torch.randn(2, 5, 16)
    stack = Encoder(16, 1, heads=2, rotary_pos_emb=True)
    assert torch.equal(stack(hidden_states=floats), stack(floats))
    continuous = ContinuousTransformerWrapper(attn_layers=Decoder(16, 1, heads=2, rotary_pos_emb=True), dim_out=3)
    assert torch.equal(continuous(inputs_embeds=floats), continuous(floats))
    assert "lens" in problems(continuous, floats, lens=floats)[0]
    image = torch.randn(1, 3, 8, 8)
    vision = ViTransformerWrapper(image_size=8, patch_size=4, attn_layers=Encoder(16, 1, heads=2))
    assert torch.equal(vision(img=image), vision(image))
    model, source, target = sides(), ids(2, 5), ids(2, 4)
    assert torch.equal(model(input_ids=source, tgt=target), model(source, target))
    assert torch.equal(model.logits(input_ids=source, decoder_input_ids=target), model.logits(source, target))
    assert "shifts the target" in problems(model, source, decoder_input_ids=target)[0]
    drawn = model.generate(seq_in=source, seq_out_start=target, max_new_tokens=3, do_sample=False)
    assert torch.equal(drawn, model.generate(source, target, 3, temperature=0))


SAMPLING = [
    ({"max_new_tokens": 5, "do_sample": False}, {"seq_len": 5, "temperature": 0}),
    ({"max_new_tokens": 5, "do_sample": True, "seed": 1}, {"seq_len": 5, "seed": 1}),
    (
        {"seq_len": 5, "seed": 1, "top_k": 3},
        {"seq_len": 5, "seed": 1, "filter_logits_fn": "top_k", "filter_kwargs": {"k": 3}},
    ),
    (
        {"seq_len": 5, "seed": 1, "top_p": 0.7},
        {"seq_len": 5, "seed": 1, "filter_logits_fn": "top_p", "filter_kwargs": {"thres": 0.7}},
    ),
    (
        {"seq_len": 5, "seed": 1, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
        {
            "seq_len": 5,
            "seed": 1,
            "filter_logits_fn": ["top_k", "top_p", "min_p"],
            "filter_kwargs": [{"k": 9}, {"thres": 0.8}, {"min_p": 0.05}],
        },
    ),
    ({"seq_len": 5, "seed": 1, "top_k": 0, "top_p": 1.0}, {"seq_len": 5, "seed": 1, "filter_logits_fn": None}),
    ({"seq_len": 9, "seed": 1, "eos_token_id": 0}, {"seq_len": 9, "seed": 1, "eos_token": 0}),
    ({"seq_len": 5, "seed": 1, "use_cache": False}, {"seq_len": 5, "seed": 1, "cache_kv": False}),
]


@pytest.mark.parametrize(("theirs", "ours"), SAMPLING, ids=lambda case: ",".join(case))
def test_words_of_transformers_for_generate(theirs: dict, ours: dict) -> None:
    wrapper, prompts = AutoregressiveWrapper(language_model()), ids(2, 4)
    assert torch.equal(wrapper.generate(prompts, **theirs), wrapper.generate(prompts, **ours))
    assert torch.equal(torch.stack(list(wrapper.stream(prompts, **theirs)), 1), wrapper.generate(prompts, **ours))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"input_ids": [[1]], "max_new_tokens": 3}, "this call the new tokens alone. Use `prompts=`."),
        ({"prompts": [[1]], "max_new_tokens": 3, "seq_len": 4}, "max_new_tokens and seq_len set the same parameter"),
        (
            {"prompts": [[1]], "seq_len": 3, "do_sample": False, "temperature": 0.5},
            "do_sample and temperature set the same",
        ),
        (
            {"prompts": [[1]], "seq_len": 3, "do_sample": True, "temperature": 0},
            "temperature=0 takes the most likely token",
        ),
        ({"prompts": [[1]], "seq_len": 3, "top_p": 0.9, "temperature": 0.5}, "divides by the temperature before top_p"),
        (
            {"prompts": [[1]], "seq_len": 3, "top_k": 3, "filter_logits_fn": "top_p"},
            "top_k and filter_logits_fn set the same",
        ),
        ({"prompts": [[1]], "seq_len": 3, "max_length": 9}, "It counts the prompt. Use `seq_len=`"),
        ({"prompts": [[1]], "seq_len": 3, "bos_token_id": 0}, "Prompts are read as they are."),
    ],
)
def test_words_of_generate_that_are_refused(keywords: dict, message: str) -> None:
    assert message in "\n".join(problems(AutoregressiveWrapper(language_model()).generate, **keywords))


def test_the_compiled_graph_is_that_of_the_method_itself() -> None:
    model, tokens = language_model(), ids(2, 6)
    counts = []
    for call in (
        lambda x: model(x, checked=True),
        lambda x: TransformerWrapper.forward.__wrapped__(model, x, checked=True),
    ):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(call, backend=counter, fullgraph=True)
        for _ in range(3):
            compiled(tokens)
        counts.append((counter.frame_count, counter.op_count))
    assert counts[0] == counts[1]
    assert counts[0][0] == 1
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(input_ids=tokens), model(tokens))


@pytest.mark.parametrize("name", CLASSES)
def test_importing_a_class_that_is_missing_gives_the_reason(name: str) -> None:
    with pytest.raises(ImportError, match=re.escape(CLASSES[name])):
        exec(f"from x_positional import {name}")
    assert not hasattr(x_positional, name)
    with pytest.raises(AttributeError, match=re.escape(CLASSES[name])):
        getattr(x_positional, name)
    assert f"| `{name}` | {CLASSES[name]} |" in PAGE


def test_unknown_names_of_the_package_are_errors_as_usual() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Decodr'"):
        exec("from x_positional import Decodr")
    with pytest.raises(AttributeError, match="no attribute 'Decodr'"):
        x_positional.Decodr  # noqa: B018


def test_every_class_of_x_transformers_exists_or_has_a_reason() -> None:
    import x_transformers

    theirs = {name for name, value in vars(x_transformers).items() if inspect.isclass(value)}
    assert {name for name in theirs if name not in CLASSES} <= set(x_positional.__all__)
    assert not set(CLASSES) & set(x_positional.__all__)


def test_attributes_of_other_libraries_name_the_way_out() -> None:
    models = {"TransformerWrapper": language_model(), "AutoregressiveWrapper": AutoregressiveWrapper(language_model())}
    models["XTransformer"] = sides()
    for cls, attributes in ATTRIBUTES.items():
        for name, way in attributes.items():
            if name in dir(models[cls]):
                continue
            with pytest.raises(AttributeError, match=re.escape(f"{cls!r} object has no attribute {name!r}. {way}")):
                getattr(models[cls], name)
            assert not hasattr(models[cls], name)
            assert f"| `{cls}.{name}` | {way} |" in PAGE
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        models["XTransformer"].nothing  # noqa: B018


def test_models_are_copied_and_pickled_as_before() -> None:
    model, tokens = language_model(), ids(2, 6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(tokens), model(tokens))


def test_lengths_and_counts_of_targets_have_the_right_word() -> None:
    """`lens` is padding, and near to `seq_lens`, which packs documents; `num_items_in_batch` is what the loss is divided by."""
    model = AutoregressiveWrapper(language_model())
    tokens = ids(2, 6)
    assert "mask=" in problems(model.net, tokens, lens=torch.tensor([6, 3]))[0]
    assert "prompt_lens=" in problems(model.generate, tokens, 2, lens=torch.tensor([6, 3]))[0]
    assert torch.equal(model(tokens, num_items_in_batch=4), model(tokens, num_targets=4))


def test_a_missing_or_repeated_argument_names_the_method() -> None:
    model = AutoregressiveWrapper(language_model())
    with pytest.raises(TypeError, match=r"^AutoregressiveWrapper.generate: missing a required argument: 'seq_len'"):
        model.generate(ids(1, 3))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^AutoregressiveWrapper.generate: multiple values for argument 'seq_len'"):
        model.generate(ids(1, 3), 2, max_new_tokens=2)  # type: ignore[call-overload]


def test_keywords_of_transformers_for_loading_are_answered_before_anything_is_read() -> None:
    found = problems(from_pretrained, "no-such-folder", torch_dtype=torch.bfloat16, device_map="auto")
    assert [problem.split(" ")[0] for problem in found] == ["torch_dtype", "device_map"]
    assert found[0].endswith("Use `dtype=`, a torch.dtype; None keeps that of the file.")
    assert not LOADING.keys() & inspect.signature(from_pretrained).parameters.keys()


def test_an_unavailable_device_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ArgumentError, match=r"device='cuda:99' cannot be used: .*Use device='cpu', or None"):
        from_pretrained("no-such-folder", device="cuda:99")
    with pytest.raises(ArgumentError, match="device='gpu' cannot be used"):
        from_pretrained("no-such-folder", device="gpu")
