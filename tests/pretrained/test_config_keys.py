"""Every key of every family's config is followed, refused by name, or without effect in transformers."""

import warnings
from typing import Any

import pytest
import torch

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
from x_positional import PretrainedError, from_pretrained
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
OTHERS: tuple[Any, ...] = (3, 0.25, True, "other", ["full_attention"], [3], {"a": 3})


@each_family
def test_every_key_is_classified(case: Case, monkeypatch: pytest.MonkeyPatch):
    keys = declared(case) | read_by_transformers(case, monkeypatch)
    unknown = keys - case.family.known_keys - INTERNAL - PARTS - VISION
    assert not unknown, f"{case.family.model_type}: neither followed, nor refused, nor known to be without effect"


def other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + (1 if isinstance(value, int) else 0.25)
        case None:
            return None
        case list():
            return value
        case _:
            return value


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
