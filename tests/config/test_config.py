"""A config is the same in Python, in YAML, in JSON and as keyword flags; what is wrong with one is said at once."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.draws import draws
from tests.support.validate_strategies import LAYERS, MODELS
from x_positional import (
    Alibi,
    Chain,
    CrossAttender,
    Decoder,
    Encoder,
    ModelConfig,
    Rope,
    TransformerWrapper,
    build_model,
    check,
)
from x_positional.config.flags import continuous_from_flags, layers_from_flags, model_from_flags
from x_positional.config.layers import LayersConfig
from x_positional.config.models import ContinuousConfig, plain
from x_positional.errors import ConfigError, FlagError
from x_positional.schemes import AlibiBias, CopeScores, RopeEmbedding
from x_positional.schemes.registry import REGISTRY, Custom

SIZES = {"dim": 16, "depth": 2, "heads": 2, "head_dim": 8}
KINDS = {"encoder": Encoder, "decoder": Decoder, "cross_attender": CrossAttender}
OFTEN = settings(max_examples=draws(40, 150), derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@OFTEN
@given(MODELS)
def test_yaml_and_back(fields: dict) -> None:
    config = ModelConfig.model_validate(fields)
    text = config.to_yaml()
    again = ModelConfig.model_validate(yaml.safe_load(text)["model"])
    assert again == config
    assert again.to_yaml() == text
    assert plain(again) == yaml.safe_load(text)["model"]


@OFTEN
@given(MODELS)
def test_json_and_back(fields: dict) -> None:
    config = ModelConfig.model_validate(fields)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert ModelConfig.model_validate(config.model_dump()) == config


@OFTEN
@given(LAYERS)
def test_flags_and_back(fields: dict) -> None:
    config = LayersConfig.model_validate(fields)
    flags = config.to_flags()
    assert "kind" not in flags
    assert LayersConfig.model_validate(layers_from_flags(config.kind, flags)) == config


@OFTEN
@given(MODELS)
def test_flags_of_a_wrapper_and_back(fields: dict) -> None:
    config = ModelConfig.model_validate(fields)
    own = {name: getattr(config, name) for name in config.model_fields_set - {"layers"}}
    layers = {name: getattr(config.layers, name) for name in LayersConfig.model_fields}
    refused = [error for error in check(config).errors if "tie_embedding" in error and "emb_dim" not in error]
    if refused:  # the flags say it themselves
        with pytest.raises(FlagError, match="tie_embedding"):
            model_from_flags(config.num_tokens, config.max_seq_len, {**own, "attn_layers": layers})
    else:
        read = model_from_flags(config.num_tokens, config.max_seq_len, {**own, "attn_layers": layers})
        assert ModelConfig.model_validate(read) == config


@OFTEN
@given(MODELS)
def test_a_built_model_knows_its_config(fields: dict) -> None:
    config = ModelConfig.model_validate(fields)
    if not check(config).ok:
        return
    assert build_model(config).config == config
    bare = config.layers
    if check(bare).ok:
        assert KINDS[bare.kind](**bare.to_flags()).config == bare
        assert KINDS[bare.kind].from_config(bare).config == bare


@given(st.integers(1, 9) | st.none(), st.integers(1, 9) | st.none(), st.booleans())
def test_flags_of_continuous_inputs_and_back(dim_in: int | None, length: int | None, normed: bool) -> None:
    config = ContinuousConfig(layers=LayersConfig(**SIZES), dim_in=dim_in, max_seq_len=length, post_emb_norm=normed)
    layers = {name: getattr(config.layers, name) for name in LayersConfig.model_fields}
    own = {name: getattr(config, name) for name in config.model_fields_set - {"layers"}}
    assert ContinuousConfig.model_validate(continuous_from_flags({**own, "attn_layers": layers})) == config


def test_files(tmp_path: Path) -> None:
    config = ModelConfig(
        num_tokens=7, max_seq_len=9, layers=LayersConfig(**SIZES, position=["absolute", Alibi(slopes=(0.5,))])
    )
    file = tmp_path / "model.yaml"
    assert config.to_yaml(file) == file.read_text()
    assert ModelConfig.from_yaml(file) == config
    assert ModelConfig.from_yaml(str(file)) == config
    file.write_text(yaml.safe_dump({**plain(config)}))
    assert ModelConfig.from_yaml(file) == config, "the model's keys may stand at the top"
    file.write_text(yaml.safe_dump({"model": plain(config), "run": {"steps": 3}}))
    assert ModelConfig.from_yaml(file) == config, "a file may hold more than the model"


def test_only_what_differs_is_written() -> None:
    config = ModelConfig(num_tokens=7, max_seq_len=9, layers=LayersConfig(dim=4, depth=1, position="rope"))
    assert plain(config) == {
        "num_tokens": 7,
        "max_seq_len": 9,
        "layers": {"dim": 4, "depth": 1, "position": [{"kind": "rope"}]},
    }
    assert LayersConfig(dim=4, depth=1).to_flags() == {"dim": 4, "depth": 1}


@pytest.mark.parametrize("text", ["- 1\n", "7\n", "", "{\n"])
def test_files_that_hold_no_config(tmp_path: Path, text: str) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"model\.yaml"):
        ModelConfig.from_yaml(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere"):
        ModelConfig.from_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "binary").write_bytes(b"\x80\xff")
    with pytest.raises(ConfigError, match=r"cannot read .*binary"):
        ModelConfig.from_yaml(tmp_path / "binary")
    with pytest.raises(ConfigError, match="cannot read"):
        ModelConfig.from_yaml(tmp_path)


@pytest.mark.parametrize("name", sorted(REGISTRY.keys() - {"custom"}))
def test_a_scheme_by_name_by_dict_and_by_config_is_one_config(name: str) -> None:
    spelt = [name, {"kind": name}, REGISTRY[name](), [name], [{"kind": name}], (REGISTRY[name](),)]
    configs = [LayersConfig(**SIZES, position=position) for position in spelt]
    assert all(config == configs[0] for config in configs)
    assert hash(configs[0]) == hash(configs[1])
    assert configs[0].position == (REGISTRY[name](),)


def test_numbers_that_yaml_reads_as_words() -> None:
    """YAML 1.1 reads 1e-5 as a word; the fields read it as a number."""
    config = ModelConfig.model_validate(
        yaml.safe_load(
            "{num_tokens: 7, max_seq_len: 9, layers: {dim: 8, depth: 1, norm: {eps: 1e-5}, position: {kind: rope, theta: 5e5}}}"
        )
    )
    assert config.layers.norm.eps == 1e-5
    assert config.layers.position == (Rope(theta=5e5),)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(
    "field", ["norm: {{eps: {}}}", "position: {{kind: t5, scale: {}}}", "position: {{kind: forgetting, bias_init: {}}}"]
)
def test_infinities_are_refused(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=r"finite number|greater than 0"):
        LayersConfig.model_validate(yaml.safe_load("{dim: 8, depth: 1, " + field.format(value) + "}"))


def test_configs_are_frozen() -> None:
    config = LayersConfig(**SIZES)
    with pytest.raises(ConfigError, match="frozen"):
        config.heads = 4  # type: ignore[misc]
    with pytest.raises(ConfigError, match="frozen"):
        config.norm.kind = "rms"  # type: ignore[misc]


# Instances


def test_an_instance_cannot_be_written_and_says_what_can() -> None:
    config = ModelConfig(num_tokens=7, max_seq_len=9, layers=LayersConfig(**SIZES, position=CopeScores(8)))
    with pytest.raises(ConfigError, match=r"CopeScores was given as an instance.*Register a SchemeConfig"):
        config.to_yaml()


def test_a_chain_of_instances_is_a_list_of_them() -> None:
    rope, alibi = RopeEmbedding(8), AlibiBias(2, [0.5, 0.25])
    config = LayersConfig(**SIZES, position=Chain(rope, alibi))
    assert (
        config
        == LayersConfig(**SIZES, position=[rope, alibi])
        == LayersConfig(**SIZES, position=[[rope], Chain(alibi)])
    )
    assert config.position == (Custom(scheme=rope), Custom(scheme=alibi))


def test_an_instance_is_shared_unless_it_belongs_to_layers() -> None:
    rope, cope = AlibiBias(2, [0.5, 0.25], learned=True), CopeScores(8)
    layers = Decoder(**SIZES, position=[rope, cope])
    assert layers.schemes[0] is rope
    copes = [scheme for scheme in layers.schemes if isinstance(scheme, CopeScores)]
    assert len({id(scheme) for scheme in copes}) == 2
    assert cope not in copes
    assert len({id(p) for p in layers.schemes.parameters()}) == 1 + 2


# Errors


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"heads": 0}, ["heads", "greater than 0"]),
        ({"backend": "fast"}, ["backend", "'sdpa'"]),
        ({"thing": 1, "attn": {"sink": True}}, ["thing", "attn.sink", "is unknown"]),
        ({"position": "ropee"}, ["position='ropee'", "no position scheme named 'ropee'; did you mean 'rope'?"]),
        (
            {"position": [{"kind": "rope", "thta": 1}, {"kind": "alibbi"}]},
            ["position[0].thta", "position[1]", "did you mean 'alibi'?"],
        ),
        ({"position": 3}, ["position must be a name", "got 3", "absolute, alibi, axial, cable, cope"]),
        ({"position": [None]}, ["position must be a name", "got None"]),
        ({"attn": {"dropout": 1.0}}, ["attn.dropout", "less than 1"]),
    ],
    ids=str,
)
def test_every_wrong_field_is_named(fields: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        LayersConfig.model_validate({**SIZES, **fields})
    for word in words:
        assert word in str(error.value)


def test_all_wrong_flags_at_once() -> None:
    with pytest.raises(FlagError) as error:
        Decoder(**SIZES, rotary_pos_em=True, macaron=True, attn_flsh=True, alibi_num_heads=2)
    assert [problem.split(".")[0] for problem in error.value.problems] == [
        "rotary_pos_em is not a flag; did you mean rotary_pos_emb?",
        "macaron=True is refused",
        "attn_flsh is not a flag; did you mean attn_flash?",
        "alibi_num_heads=2 has no effect without alibi_pos_bias=True",
    ]
    with pytest.raises(FlagError, match=r"emb_dims is not a flag; did you mean emb_dim\?"):
        TransformerWrapper(num_tokens=7, max_seq_len=9, attn_layers=Decoder(**SIZES), emb_dims=3)
