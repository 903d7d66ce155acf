"""A VisionConfig is the same in Python, YAML and flags, and the validator and `describe` say what is applied."""

from pathlib import Path

import pytest
import torch

from x_positional import Encoder, TransformerWrapper, VisionConfig, ViTransformerWrapper, check
from x_positional.errors import ConfigError, IncompatibleConfig

LAYERS = {"dim": 24, "depth": 2, "heads": 3, "head_dim": 8}
POSITIONS = {
    "not chosen": None,
    "absolute": "absolute",
    "absolute, scaled": {"kind": "absolute", "scale": 0.5},
    "axial": "axial",
    "mixed": {"kind": "mixed", "theta": 20.0},
    "both": ["absolute", "axial"],
    "none": "none",
    "alibi": "alibi",
}


def config(position="axial", **settings) -> VisionConfig:
    layers = {**LAYERS, "position": position}
    return VisionConfig.model_validate({"image_size": (12, 20), "patch_size": 4, "layers": layers, **settings})


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_classes": 3, "pool": "cls", "num_register_tokens": 2, "emb_dropout": 0.25, "patch_size": (2, 5)}],
    ids=["plain", "set"],
)
def test_yaml_json_and_models_and_back(position, settings: dict, tmp_path: Path) -> None:
    original = config(position, **settings)
    path = tmp_path / "image.yaml"
    text = original.to_yaml(path)
    assert VisionConfig.from_yaml(path) == original
    assert VisionConfig.from_yaml(path).to_yaml() == text
    assert VisionConfig.model_validate_json(original.model_dump_json()) == original
    model = ViTransformerWrapper.from_config(original)
    assert model.config == original
    assert check(path).ok
    assert str(check(path)) == str(check(model)) == str(check(original))


def test_a_config_and_flags_make_the_same_model() -> None:
    torch.manual_seed(0)
    built = ViTransformerWrapper.from_config(config("mixed", num_classes=3))
    torch.manual_seed(0)
    encoder = Encoder(dim=24, depth=2, heads=3, attn_dim_head=8, position="mixed")
    flagged = ViTransformerWrapper(image_size=[12, 20], patch_size=4, attn_layers=encoder, num_classes=3)
    assert built.config == flagged.config
    x = torch.randn(2, 3, 8, 24)
    assert torch.equal(built(x), flagged(x))


def test_one_number_is_both_sides_and_layers_are_an_encoder() -> None:
    short = VisionConfig.model_validate({"image_size": 8, "patch_size": 4, "layers": LAYERS})
    assert (short.image_size, short.patch_size, short.grid) == ((8, 8), (4, 4), (2, 2))
    assert short.layers.kind == "encoder"


def test_a_scheme_instance_cannot_be_written() -> None:
    from x_positional.schemes import AxialEmbedding

    with pytest.raises(ConfigError, match="AxialEmbedding was given as an instance"):
        config(AxialEmbedding(8)).to_yaml()


@pytest.mark.parametrize(
    ("position", "settings", "words"),
    [
        (None, {}, ["position        a learned table\n", "positions       not read", "the table is resized (bicubic)"]),
        ("none", {}, ["none: a bag of patches", "mean of the patches"]),
        ("axial", {"coordinates": "rescaled"}, ["position        axial\n", "row and column, rescaled"]),
        (["absolute", "mixed"], {"interpolation": "bilinear"}, ["a learned table + mixed", "resized (bilinear)"]),
        (
            "absolute",
            {"antialias": True, "pool": "cls_mean", "cls_position": True, "patch_norms": False},
            ["resized (bicubic, antialiased)", "cls token and the mean of the patches"],
        ),
        ("alibi", {}, ["alibi", "one axis: the number of the patch, row by row"]),
        (
            "axial",
            {"pool": "cls", "num_register_tokens": 2, "num_classes": 9},
            [
                "the cls token and 2 registers at 0, not rotated",
                "12 x 20 pixels, 3 x 5 patches of 4 x 4; other sizes run",
                "9 classes on the cls token",
            ],
        ),
    ],
)
def test_describe_says_what_is_applied(position, settings: dict, words: list[str]) -> None:
    text = ViTransformerWrapper.from_config(config(position, **settings)).describe()
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("position", "absolute", "name"),
    [
        (None, True, "absolute"),
        ("none", False, "none"),
        ("axial", False, "axial"),
        (["mixed", "absolute"], True, "absolute + mixed"),
    ],
    ids=str,
)
def test_the_report_speaks_of_the_whole_model(position, absolute: bool, name: str) -> None:
    report = check(config(position))
    assert report.ok
    assert not report.warnings
    assert report.position == name
    assert report.capabilities.absolute is absolute
    assert report.past.startswith("any size that patch_size divides runs")
    assert ("the table is resized" in report.past) == absolute


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"position": "rope"}, "rope has one axis and numbers the 3 x 5 patches row by row: the patch below is 5 away"),
        ({"position": "sinusoidal"}, "sinusoidal has one axis"),
        ({"coordinates": "centered"}, "far patches look alike. Use axial with freqs='pixel'"),
        ({"position": "mixed", "coordinates": "centered"}, "far patches look alike"),
        ({"position": {"kind": "axial", "freqs": "pixel"}}, "near ones look far. Use coordinates='centered'"),
    ],
    ids=str,
)
def test_what_works_and_may_not_be_meant(settings: dict, words: str) -> None:
    report = check(config(**settings))
    assert report.ok
    assert sum(words in warning for warning in report.warnings) == 1


def test_no_warning_where_coordinates_and_frequencies_fit() -> None:
    assert check(config({"kind": "axial", "freqs": "pixel"}, coordinates="centered")).warnings == []
    assert check(config("axial", coordinates="rescaled")).warnings == []


def test_a_window_is_no_square() -> None:
    layers = {**LAYERS, "position": "axial", "window": 3}
    report = check({"image_size": 16, "patch_size": 4, "layers": layers})
    assert report.ok
    assert any("not a square of patches" in warning for warning in report.warnings)


def test_fields_flags_and_uses_are_judged() -> None:
    report = check(
        {"image_size": 30, "patch_size": 4, "layers": {**LAYERS, "position": "axial"}, "coordinats": "index"}
    )
    assert len(report.errors) == 3
    assert "did you mean coordinates?" in report.errors[0]
    report = check(image_size=16, patch_size=4, dim=24, depth=2, heads=3, position="axial", num_registers=2, pool="cls")
    assert len(report.errors) == 1
    assert "did you mean num_register_tokens" in report.errors[0]
    assert check(image_size=16, patch_size=4, dim=24, depth=2, rotary_pos_emb=True).ok
    assert not check(config(), cache="static").ok
    assert any("8 channels" in error or "axial" in error for error in check(config({"kind": "axial", "dim": 6})).errors)


def test_no_position_is_refused_only_where_the_input_cannot_carry_it() -> None:
    encoder = Encoder(dim=24, depth=2, heads=3, position="none")
    assert encoder(torch.randn(1, 4, 24)).shape == (1, 4, 24)
    with pytest.raises(IncompatibleConfig, match="nothing tells one order of tokens from another"):
        TransformerWrapper(num_tokens=7, max_seq_len=8, attn_layers=encoder)


def test_the_page_about_images_runs(capsys) -> None:
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text("utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (2, 10)
    assert names["patches"].shape == (2, 40, 64)
    assert [t.shape[1] for t in (names["encoded"].patches, names["encoded"].registers)] == [24, 4]
    assert "row and column, index; the cls token and 4 registers at 0, not rotated" in capsys.readouterr().out
