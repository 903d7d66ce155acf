"""Methods that extend a model: numbers of schemes built directly, ranking and costs, reasons, and folders for transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import x_positional
from x_positional import Decoder, TransformerWrapper
from x_positional.errors import ArgumentError
from x_positional.evidence.evaluation.lengths import LengthSettings, loss_by_length
from x_positional.evidence.evaluation.measure import EvalSettings, summary_of_data
from x_positional.evidence.extension.attempts import Measuring, at, best, extension, judged, ranked, try_all
from x_positional.evidence.extension.methods import METHODS, Stretch, alternatives, candidates, for_transformers
from x_positional.evidence.extension.rebuild import with_config, write_extended
from x_positional.evidence.extension.results import Extension

TOKENS = np.random.default_rng(0).integers(0, 61, 900)
TO = Stretch(32, 64, {"short_factor": [1.0] * 8, "long_factor": [1.0 + i / 4 for i in range(8)]})
LENGTHS = LengthSettings((32, 64), targets=8, windows=4)


def toy(position: Any = "rope", max_seq_len: int = 32, **flags: Any) -> TransformerWrapper:
    torch.manual_seed(3)
    gated = {"glu": True, "bias": False, "activation": "silu"}
    shape: dict[str, Any] = {
        "dim": 32,
        "depth": 2,
        "heads": 2,
        "attn_dim_head": 16,
        "norm": {"kind": "rms"},
        "ff": gated,
    }
    layers = Decoder(**shape, position=position, **flags)
    model = TransformerWrapper(num_tokens=61, max_seq_len=max_seq_len, attn_layers=layers).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def measuring(to: Stretch = TO) -> Measuring:
    settings = EvalSettings(LENGTHS, position_windows=0)
    return Measuring("toy", to, settings, TOKENS, summary_of_data("random", TOKENS, None))


DIRECT = {
    "linear x2": {"rope_type": "linear", "factor": 2.0},
    "ntk x2": {"rope_type": "ntk", "factor": 2.0},
    "dynamic x2": {
        "rope_type": "dynamic",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "length_policy": "recompute",
    },
    "ntk_by_parts x2": {"rope_type": "ntk_by_parts", "factor": 2.0, "original_max_position_embeddings": 32},
    "yarn x2": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    "longrope x2": {
        "rope_type": "longrope",
        **(TO.factors or {}),
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "length_policy": "recompute",
    },
}


def test_each_method_is_the_scheme_built_directly():
    model = toy()
    found = {attempt.label: attempt for attempt in try_all(model, candidates(model.config, TO), measuring())}
    expected = {label: ({"kind": "rope", "scaling": scaling}, {}) for label, scaling in DIRECT.items()}
    expected |= {"none": ("rope", {}), "keep_first": ("rope", {"window": 28, "keep_first": 4})}
    assert found.keys() == expected.keys()
    for label, (position, flags) in expected.items():
        direct = toy(position, 64, **flags)
        losses = loss_by_length(direct, TOKENS, LENGTHS)
        evaluation = found[label].evaluation
        assert evaluation is not None
        assert evaluation.lengths == losses, label
    assert len({attempt.outside for attempt in found.values()}) == len(found)


def test_costs_and_rank():
    model = toy()
    attempts = try_all(model, candidates(model.config, TO), measuring())
    unchanged = attempts[0]
    assert (unchanged.label, unchanged.inside) == ("none", 0.0)
    for attempt in attempts:
        inside, base, outside = at(attempt, 32), at(unchanged, 32), at(attempt, 64)
        assert inside is not None
        assert base is not None
        assert outside is not None
        pairs = zip(inside.windows, base.windows, strict=True)
        assert attempt.inside == pytest.approx(sum(a - b for a, b in pairs) / 4, abs=1e-12)
        assert attempt.outside == outside.loss
    by_label = {attempt.label: attempt for attempt in attempts}
    assert by_label["dynamic x2"].inside == by_label["keep_first"].inside == 0.0  # nothing changes up to L
    order = ranked(attempts)
    assert order[0] is unchanged
    losses = [attempt.outside for attempt in order[1:]]
    assert losses == sorted(losses, key=float)  # type: ignore[arg-type]
    winner = best(attempts)
    assert winner is not None
    assert winner.outside == min(a.outside for a in attempts if a.outside is not None)


def test_weights_are_shared():
    model = toy()
    changed = with_config(model, candidates(model.config, TO, ["yarn"])[1].config)  # type: ignore[arg-type]
    assert [id(p) for p in changed.parameters()] == [id(p) for p in model.parameters()]
    wider = model.config.model_copy(update={"num_tokens": 62})
    with pytest.raises(ArgumentError, match=r"token_emb\.weight has shape"):
        with_config(model, wider)


@pytest.mark.parametrize("method", ["linear", "ntk", "dynamic", "ntk_by_parts", "yarn", "longrope"])
def test_transformers_reads_the_folder(tmp_path: Path, method: str):
    transformers = pytest.importorskip("transformers")
    model = toy()
    changed = with_config(model, candidates(model.config, TO, [method])[1].config)  # type: ignore[arg-type]
    assert write_extended(changed, tmp_path) is None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for length in (32, 64):
        ids = torch.from_numpy(TOKENS[None, :length])
        with torch.no_grad():
            logits = changed(ids)
            torch.testing.assert_close(theirs(ids).logits, logits, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(x_positional.from_pretrained(tmp_path)(ids), logits, atol=2e-5, rtol=1e-5)


def test_what_transformers_lacks_is_written_in_the_own_format(tmp_path: Path):
    model = toy()
    changed = with_config(model, candidates(model.config, TO, ["keep_first"])[1].config)  # type: ignore[arg-type]
    reason = write_extended(changed, tmp_path)
    assert reason is not None
    assert "keep_first" in reason
    ids = torch.from_numpy(TOKENS[None, :64])
    assert torch.equal(x_positional.from_pretrained(tmp_path)(ids), changed(ids))


def test_the_same_scaling_in_words_of_transformers():
    model = toy()
    config = candidates(model.config, TO, ["ntk"])[1].config
    assert config is not None
    rope: Any = for_transformers(config).layers.layer_kinds()[0].parts[0]
    assert (rope.scaling, rope.theta) == (None, 10_000.0 * 2 ** (16 / 14))


def test_only_layers_that_see_everything_are_scaled():
    model = toy(pattern=[{"window": 8}, {}])
    for candidate in candidates(model.config, TO)[1:]:
        assert candidate.config is not None
        windowed, full = candidate.config.layers.pattern
        assert windowed == model.config.layers.pattern[0], candidate.label
        assert full != model.config.layers.pattern[1]
    everywhere = toy(window=8)
    found = {c.label: c for c in candidates(everywhere.config, TO)}
    assert found["keep_first"].reason == "every layer has a window or chunk already"


@pytest.mark.parametrize(
    ("position", "reason", "hint"),
    [
        ("alibi", "no rotary frequencies to scale (position alibi)", "runs at any length"),
        ("t5", "no rotary frequencies to scale (position t5)", "runs at any length"),
        ("absolute", "no rotary frequencies to scale (position absolute)", "interpolate"),
        (
            {"kind": "rope", "scaling": {"rope_type": "ntk", "factor": 2}},
            "scaled frequencies already (ntk)",
            "overridden",
        ),
        (["rope", "absolute"], "absolute beside RoPE is built for max_seq_len=32", "interpolate"),
    ],
)
def test_a_method_that_does_not_apply_is_listed_with_the_reason(position: Any, reason: str, hint: str):
    model = toy(position)
    attempts = {a.label: a for a in try_all(model, candidates(model.config, TO), measuring())}
    for method in METHODS[:-1]:
        attempt = attempts[f"{method} x2"]
        assert attempt.evaluation is None
        assert attempt.reason is not None
        assert reason in attempt.reason
    assert hint in alternatives(model.config)[0]
    assert alternatives(toy().config) == []


def test_wrong_requests():
    config = toy().config
    with pytest.raises(ArgumentError, match=r"target of 32 tokens does not exceed the trained length of 32"):
        candidates(config, Stretch(32, 32))
    with pytest.raises(ArgumentError, match=r"unknown method 'yarnn'; did you mean 'yarn'"):
        candidates(config, TO, ["yarnn"])
    assert candidates(config, Stretch(32, 64), ["longrope"])[1].reason is not None
    short = candidates(config, Stretch(32, 64, {"short_factor": [1.0], "long_factor": [2.0]}), ["longrope"])[1]
    assert short.config is None
    assert "long_factor has 1 numbers" in str(short.reason)


def test_a_later_session_measures_only_what_is_missing(tmp_path: Path):
    model, file = toy(), tmp_path / "extension.json"
    tried = candidates(model.config, TO, ["yarn", "ntk"])
    first = try_all(model, tried[:2], measuring())
    extension(measuring(), first, weights="w").save(file)
    known = Extension.load(file).attempts
    for parameter in model.parameters():
        parameter.data.zero_()  # so that a new measurement would differ
    again = try_all(model, tried, measuring(), known)
    assert again[:2] == first
    assert again[2] != judged(first[1], first[0], TO)
    assert again[2].outside == pytest.approx(np.log(61), abs=1e-5)
