"""What older files say in other words, and what files leave to the defaults of their class: both mean what transformers makes
of them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.published.compare import both, ids, quietly, their_logits
from tests.support.published.decoders import CASES
from tests.support.rounding import assert_same
from x_positional import PretrainedError, from_pretrained
from x_positional.pretrained import FAMILIES
from x_positional.pretrained.config_json.canonical import canonical, differences
from x_positional.pretrained.model_kinds import model_config
from x_positional.pretrained.rope.families import SCALED

COMPLETE = [name for name, family in FAMILIES.items() if family.defaults]
LINEAR = {"type": "linear", "factor": 3.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
OLDER: dict[str, tuple[str, Mapping[str, Any]]] = {
    "rope_theta and rope_scaling": ("mistral", {"rope_theta": 77.0, "rope_scaling": LINEAR}),
    "rope_theta alone": ("granite", {"rope_theta": 77.0, "rope_scaling": None}),
    "windows from a layer on": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "windows that are off": ("qwen3", {"use_sliding_window": False, "sliding_window": 6, "max_window_layers": 0}),
    "every second layer": ("gemma2", {"sliding_window": 6, "hidden_act": "relu", "cache_implementation": "hybrid"}),
    "a pattern, local and global": (
        "gemma3",
        {
            "sliding_window_pattern": 2,
            "rope_local_base_freq": 33.0,
            "rope_theta": 77.0,
            "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        },  # with `type` transformers does not stretch
    ),
    "types without thetas": (
        "gemma3",
        {
            "sliding_window_pattern": 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 3.0},
                "sliding_attention": {"rope_type": "default"},
            },
        },
    ),
    "neither pattern nor thetas": ("gemma3", {}),
    "a pattern of turning layers": ("cohere2", {"sliding_window_pattern": 3, "rope_theta": 77.0, "rope_scaling": None}),
    "yarn on full layers alone": ("olmo3", {"rope_theta": 500000.0, "rope_scaling": YARN}),
    "an interval": ("smollm3", {"no_rope_layer_interval": 2, "rope_theta": 77.0}),
    "an interval with windows": (
        "smollm3",
        {"no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 6, "rope_theta": 77.0},
    ),
    "a share at the top": ("phi", {"partial_rotary_factor": 0.25, "rope_theta": 77.0, "rope_scaling": LINEAR}),
    "the share of the class": ("stablelm bare", {"rope_theta": 77.0}),
    "a share of neighbours": ("glm", {"partial_rotary_factor": 0.34, "rope_theta": 77.0}),
    "half of each head": ("nemotron", {"rope_theta": 77.0}),
}
NO_DEFAULT: dict[str, Mapping[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
}
"""Keys that the class leaves empty and the model needs."""
NEW = ("rope_parameters", "layer_types", "no_rope_layers", "_sliding_window_pattern")


def older(source: Path, folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights under a config.json without the newer keys."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in NEW} | dict(changes)
    (folder / "config.json").write_text(json.dumps(config))
    return config


@pytest.mark.parametrize("what", OLDER)
@torch.no_grad()
def test_older_files(what: str, tmp_path: Path):
    name, changes = OLDER[what]
    case = next(case for case in CASES if case.name == name)
    theirs, _, folder = both(case)
    older(folder, tmp_path / "old", changes)
    tokens = ids(2, case.length)
    old = quietly(
        getattr(transformers, case.model).from_pretrained, tmp_path / "old", attn_implementation=case.attention
    )
    expected = their_logits(old, tokens)
    assert_same(from_pretrained(tmp_path / "old")(tokens), expected)
    if changes:
        assert (expected - their_logits(theirs, tokens)).abs().max() > 1e-3, "the older keys say something else"


@pytest.mark.parametrize("word", ["su", "yarn", "longrope"])
@torch.no_grad()
def test_the_first_names_of_longrope(word: str, tmp_path: Path):
    """transformers itself refuses `su` today: it looks for the trained length before it renames."""
    _, ours, folder = both(next(case for case in CASES if case.name == "phi3 longrope"))
    factors = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [2.0, 3.0, 4.0]}
    older(
        folder,
        tmp_path / "old",
        {"rope_scaling": {"type": word, **factors}, "rope_theta": 500.0, "partial_rotary_factor": 0.75},
    )
    for length in (9, 23):
        tokens = ids(2, length)
        assert torch.equal(from_pretrained(tmp_path / "old")(tokens), ours(tokens))


@pytest.mark.parametrize("name", COMPLETE)
def test_what_a_file_leaves_out_is_the_default_of_the_class(name: str):
    family = FAMILIES[name]
    head = getattr(transformers, family.architecture or family.body_architecture)
    mapping = transformers.CONFIG_MAPPING
    cls = mapping[name] if name in mapping else head.config_class  # noqa: SIM401  (its get finds nothing)
    theirs = quietly(cls).to_dict()
    unsaid = {"model_type": name, **NO_DEFAULT.get(name, {})}
    theirs |= NO_DEFAULT.get(name, {})
    if name in SCALED:  # stretched by default, so a file has to say how
        assert family.to_fields(unsaid)[1]
        unsaid["rope_parameters"] = theirs["rope_parameters"]
    (said, said_problems), (silent, silent_problems) = family.to_fields(theirs), family.to_fields(unsaid)
    assert not said_problems + silent_problems
    assert not differences(canonical(model_config(said)), canonical(model_config(silent)))
    assert not family.unknown_keys(theirs)


REFUSED = {
    "types for other layers": ("gemma2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
    "a type of attention": (
        "qwen2",
        {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        "linear_attention",
    ),
    "too short a list": ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries"),
    "a share that is ignored": ("mistral", {"partial_rotary_factor": 0.5}, "transformers ignores the key"),
    "types where there is one": (
        "mistral",
        {"rope_parameters": {"full_attention": {"rope_theta": 7.0}, "sliding_attention": None}},
        "a single layer type",
    ),
    "a type without parameters": (
        "gemma3",
        {"rope_parameters": {"full_attention": {"rope_theta": 7.0}}},
        "no entry for sliding_attention",
    ),
    "both ways": ("gemma", {"use_bidirectional_attention": True}, "always causal"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_followed(what: str, tmp_path: Path):
    name, changes, word = REFUSED[what]
    older(both(next(case for case in CASES if case.name == name))[2], tmp_path / "odd", changes)
    with pytest.raises(PretrainedError, match=word):
        from_pretrained(tmp_path / "odd")
