"""One schema for file, overrides and printing: precedence, nearest names, all problems at once."""

from pathlib import Path

import pytest
import yaml

from tests.support.training_runs import raw_config
from x_positional.errors import UserError
from x_positional.schemes.registry import REGISTRY
from x_positional.training import TrainConfig
from x_positional.training.config import flat
from x_positional.training.load import load_config, load_model, parse_config

NAMES = sorted(set(REGISTRY) - {"custom"})

ALL_NAMES = "x-positional train CONFIG --print-config shows all names"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_config(tmp_path)))
    return path


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(file: Path):
    plain = load_config(file)
    assert (plain.optimizer.lr, plain.optimizer.weight_decay, plain.model.layers.depth) == (5e-3, 0.1, 2)
    other = load_config(file, {"optimizer.lr": 1e-4, "model.layers.depth": 5})
    assert (other.optimizer.lr, other.optimizer.weight_decay, other.model.layers.depth) == (1e-4, 0.1, 5)
    assert other.run == plain.run


@pytest.mark.parametrize("name", NAMES)
def test_the_printed_config_reads_back_equal(file: Path, name: str):
    config = load_config(file, {"model.layers.position": name})
    assert config.model.layers.position is not None
    assert config.model.layers.position[0].kind == name
    assert parse_config(config.to_yaml(), "printed") == config


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("model.depth", "depth"),
        ("model.layers.depth", "depth"),
        ("depth", "depth"),
        ("dim", "dim"),  # model.layers.ff.dim is there too, and further away
    ],
)
def test_sections_can_be_left_out(file: Path, written: str, meant: str):
    layers = load_config(file, {written: 6}).model.layers
    assert getattr(layers, meant) == 6
    assert layers.ff.dim is None


def test_a_short_name_with_two_meanings_is_refused_with_both(file: Path):
    with pytest.raises(UserError, match=r"dropout could be model\.layers\.attn\.dropout or model\.layers\.ff\.dropout"):
        load_config(file, {"dropout": 0.2})


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("model.layers.detph", "model.layers.depth"),
        ("optimiser.lr", "optimizer.lr"),
        ("batch", "run.batch_size"),
        ("run.step", "run.steps"),
        ("model.layers.position.theeta", "model.layers.position.theta"),
        ("model.detph", "model.layers.depth"),
    ],
)
def test_an_unknown_override_answers_with_the_nearest_name(file: Path, written: str, nearest: str):
    with pytest.raises(UserError, match=f"{written} is unknown; did you mean {nearest}\\?"):
        load_config(file, {written: 3})


def test_an_unknown_override_that_is_like_nothing_says_where_the_names_are(file: Path):
    with pytest.raises(UserError, match=f"zzz is unknown; {ALL_NAMES}"):
        load_config(file, {"zzz": 3})


def test_all_problems_of_file_and_overrides_come_at_once(tmp_path: Path, file: Path):
    raw = raw_config(tmp_path)
    raw["model"]["layers"]["hedas"] = 3
    raw["model"]["num_tokens"] = "many"
    raw["runn"] = {}
    raw["model"]["layers"]["position"] = {"kind": "rope", "theta": -1, "interleave": True}
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as caught:
        load_config(file, {"optimizer.lrr": 1})
    for part in (
        "model.layers.hedas is unknown; did you mean model.layers.heads?",
        "model.num_tokens='many'",
        "runn is unknown; did you mean run?",
        "model.layers.position.theta=-1",
        "model.layers.position.interleave is unknown; did you mean model.layers.position.interleaved?",
        "optimizer.lrr is unknown; did you mean optimizer.lr?",
    ):
        assert part in str(caught.value)


def test_sections_that_disagree_are_all_named(tmp_path: Path, file: Path):
    with pytest.raises(UserError) as caught:
        load_config(
            file, {"data.seq_len": 34, "optimizer.warmup_steps": 8, "model.layers.kind": "encoder", "num_tokens": 255}
        )
    for part in (
        "data.seq_len=34 is longer than model.max_seq_len=33",
        "optimizer.warmup_steps=8 leaves none of run.steps=8",
        "model.layers.kind='encoder'",
        "model.num_tokens=255 cannot hold bytes",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("position", ["rope", ["rope"], {"kind": "rope"}, ["alibi", {"kind": "rope"}]])
def test_an_override_reaches_into_a_scheme(tmp_path: Path, file: Path, position):
    raw = raw_config(tmp_path)
    raw["model"]["layers"]["position"] = position
    file.write_text(yaml.safe_dump(raw))
    several = isinstance(position, list) and len(position) > 1
    for index in [".1"] if several else ["", ".0"]:
        schemes = load_config(file, {f"model.layers.position{index}.theta": 77.0}).model.layers.position
        assert schemes is not None
        assert (schemes[-1].kind, schemes[-1].model_dump()["theta"]) == ("rope", 77.0)


def test_an_override_below_a_number_is_refused(file: Path):
    with pytest.raises(UserError, match=r"run\.steps\.x cannot be set: run\.steps is 8"):
        load_config(file, {"run.steps.x": 3})


def test_an_override_must_say_which_of_several_schemes(tmp_path: Path, file: Path):
    raw = raw_config(tmp_path)
    raw["model"]["layers"]["position"] = ["alibi", "rope"]
    file.write_text(yaml.safe_dump(raw))
    for index in ("", ".2"):
        with pytest.raises(UserError, match=r"cannot be set: model\.layers\.position is \['alibi', 'rope'\]"):
            load_config(file, {f"model.layers.position{index}.theta": 77.0})


def test_rates_may_be_written_without_a_point(file: Path):
    file.write_text(file.read_text().replace("lr: 0.005", "lr: 3e-4"))
    assert load_config(file).optimizer.lr == 3e-4


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- a\n- b\n", "holds a list; expected a model: section"),
        ("model: [1", "is not YAML"),
        ("", "the file is empty; expected a model: section"),
    ],
)
def test_a_file_that_is_no_config_is_refused(file: Path, text: str, why: str):
    file.write_text(text)
    with pytest.raises(UserError, match=why):
        load_config(file)


def test_settings_are_flattened_in_order_and_an_empty_mapping_is_a_value():
    nested = {"a": 1, "b": {"c": {"d": [{"e": 2}]}, "f": {}}, "g": {}}
    assert list(flat(nested).items()) == [("a", 1), ("b.c.d", [{"e": 2}]), ("b.f", {}), ("g", {})]


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read .*absent\.yaml: No such file"):
        load_config(tmp_path / "absent.yaml")


def test_a_model_is_read_from_a_run_or_a_model_file(tmp_path: Path, file: Path):
    fields = raw_config(tmp_path)["model"]
    bare = tmp_path / "model.yaml"
    bare.write_text(yaml.safe_dump(fields))
    for path in (file, bare):
        assert load_model(path, {}) == (fields, [])
        assert load_model(path, {"model.depth": 3})[0]["layers"]["depth"] == 3
        assert load_model(path, {"zzz": 3})[1] == [
            "zzz is unknown; x-positional train CONFIG --print-config shows all names."
        ]
    assert load_model(file, {"run.steps": 3})[1] == []
    assert load_model(bare, {"run.steps": 3})[1] == [
        "run.steps is unknown; x-positional train CONFIG --print-config shows all names."
    ]
    fields["layers"]["kind"] = "encoder"  # cannot be trained here, and can be checked
    raw = {"model": fields, "runn": {}, "run": {"steps": 0, "step": 3}}
    file.write_text(yaml.safe_dump(raw))
    problems = "\n".join(load_model(file, {})[1])
    for part in ("runn is unknown; did you mean run?", "run.steps=0", "run.step is unknown; did you mean run.steps?"):
        assert part in problems
    assert "kind" not in problems


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_that_is_shipped_is_valid(path: Path):
    assert isinstance(load_config(path), TrainConfig)
