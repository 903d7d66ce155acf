"""Every key of every family's config is followed, refused by name, or without effect in transformers."""

import warnings
from typing import Any

import pytest
import torch

from tests.support.draws import draws
from tests.support.published.config_keys import (
    INTERNAL,
    ONE_EACH,
    PARTS,
    VISION,
    Case,
    base,
    changed,
    declared,
    load_theirs,
    ours,
    read_by_transformers,
    theirs,
)
from tests.support.rounding import assert_same
from x_positional import PretrainedError, from_pretrained
from x_positional.errors import IncompatibleConfig
from x_positional.pretrained.config_json.codecs import Only
from x_positional.pretrained.config_json.encoder_decoder import SideCodec
from x_positional.pretrained.config_json.ignored_keys import IGNORED_KEYS

each_family = pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.family.model_type)
RUNTIME = {
    *("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "auto_map"),
    *("_attn_implementation", "return_dict", "return_dict_in_generate", "torchscript", "gradient_checkpointing"),
    *("id2label", "label2id", "problem_type", "cache_implementation"),
}
"""Keys about files, classes, kernels and outputs. Other values select other code, or need another file."""


@each_family
def test_every_key_is_classified(case: Case, monkeypatch: pytest.MonkeyPatch):
    keys = declared(case) | read_by_transformers(case, monkeypatch)
    unknown = keys - case.family.known_keys - INTERNAL - PARTS - VISION
    assert not unknown, f"{case.family.model_type}: neither followed, nor refused, nor known to be without effect"


def other(value: Any) -> Any:
    """Another value of the same type, where there is an obvious one."""
    if isinstance(value, bool):
        return not value
    return value + (1 if isinstance(value, int) else 0.25) if isinstance(value, int | float) else value


@each_family
def test_ignored_keys_have_no_effect(case: Case):
    """All at once: a key that is ignored has another value, and transformers computes the same."""
    _, config, expected = base(case)
    known = (IGNORED_KEYS | case.family.ignored_keys) - case.family.keys - RUNTIME
    changes = {key: other(config[key]) for key in known if key in config and config[key] is not None}
    with changed(case, changes) as folder:
        torch.testing.assert_close(theirs(load_theirs(case, folder), case), expected, atol=0, rtol=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours(from_pretrained(folder), case)


def refused(case: Case) -> list[Only]:
    codecs = [codec.codec if isinstance(codec, SideCodec) else codec for codec in case.family.codecs]
    return [codec for codec in codecs if isinstance(codec, Only)]


@each_family
def test_refused_keys_are_named(case: Case):
    for only in refused(case):
        value = next(v for v in (True, False, 3, "other") if v not in only.values)
        with changed(case, {only.key: value}) as folder, pytest.raises(PretrainedError, match=only.key):
            from_pretrained(folder)


SHARES = 24
NOT_SCANNED = RUNTIME | {"vocab_size", "num_hidden_layers", "rope_parameters", "tie_word_embeddings"}
"""Keys that need other tensors, or that other tests change."""
UNDECLARED: dict[str, Any] = {
    "is_causal": False,
    "head_dim": 6,
    "sliding_window": 4,
    "attention_bias": True,
    "is_decoder": True,
    "rope_theta": 77.0,
    "rotary_emb_base": 77.0,
    "rotary_pct": 0.5,
    "rope_pct": 0.5,
    "partial_rotary_factor": 0.5,
    "attention_chunk_size": 4,
    "attention_head_size": 4,
    "clip_qkv": 0.2,
    "logit_scale": 0.4,
    "qk_layernorm": True,
    "use_qk_norm": True,
    "norm_topk_prob": True,
    "add_cross_attention": True,
    "pruned_heads": {"0": [0]},
}
"""Keys of some families, for the others: transformers may read them although the config class does not declare them."""


def variants(case: Case) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """(Changes of the config, removed keys)."""
    config = base(case)[1]
    declared_ones = [{key: other(value)} for key, value in config.items() if key not in NOT_SCANNED]
    undeclared = [{key: value} for key, value in UNDECLARED.items() if config.get(key) != value]
    found: list[tuple[dict[str, Any], tuple[str, ...]]] = [(c, ()) for c in declared_ones + undeclared]
    older = ("rope_parameters",)
    rotary = [{}, *({key: value} for key, value in UNDECLARED.items() if "rot" in key or "rope" in key)]
    return found + ([(change, older) for change in rotary] if "rope_parameters" in config else [])


@pytest.mark.parametrize("part", range(draws(1, SHARES)))
@each_family
def test_another_value_is_followed_or_refused(case: Case, part: int):
    """A share of the keys of each family, which differs by family; all with all draws."""
    start = (ONE_EACH.index(case) + part) % SHARES
    for changes, removed in variants(case)[start::SHARES]:
        with changed(case, changes, removed) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = theirs(load_theirs(case, folder), case)
            except Exception:
                continue
            try:
                model = from_pretrained(folder)
            except (PretrainedError, IncompatibleConfig):
                continue
            assert_same(ours(model, case), expected)
