"""ViTransformerWrapper against a vision transformer written out in float64, at trained sizes and others."""

import pytest
import torch
from torch import Tensor
from transformers.models.dinov3_vit.modeling_dinov3_vit import get_patches_center_coordinates

from tests.support.naive_vision import coordinate, naive, resized
from tests.support.vision_models import build, images
from x_positional import ViTransformerWrapper
from x_positional.modules.patches import PatchTable, patch_positions
from x_positional.schemes import Absolute, Axial, Rope

TIGHT = 2e-7
"""Tables of cosines are float32, everything else float64."""

POSITIONS = {
    "table": None,
    "table, scaled": Absolute(scale=0.3),
    "axial": "axial",
    "axial, RoPE-ViT": Axial(theta=100.0),
    "axial, pixel": Axial(freqs="pixel"),
    "mixed": "mixed",
    "table and axial": ["axial", "absolute"],
    "rope": Rope(theta=500.0),
    "sinusoidal": "sinusoidal",
    "none": "none",
}
BESIDE = {
    "patches alone": {},
    "cls": {"pool": "cls"},
    "registers": {"num_register_tokens": 3},
    "both": {"pool": "cls", "num_register_tokens": 2},
    "cls and mean": {"pool": "cls_mean", "num_register_tokens": 1},
    "no norms": {"patch_norms": False, "patch_size": (4, 5)},
}
SIZES = {"trained": (12, 20), "larger": (20, 28), "smaller": (8, 12), "another shape": (28, 8), "one patch": (4, 4)}


def assert_same(model: ViTransformerWrapper, x: Tensor) -> None:
    with torch.no_grad():
        found, expected = model(x), torch.stack([naive(model, image) for image in x])
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=TIGHT, rtol=0)


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_at_the_trained_size(position, beside: dict) -> None:
    assert_same(build(position, **beside), images(12, 20))


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_at_any_size(position, size: tuple[int, int]) -> None:
    assert_same(build(position, pool="cls", num_register_tokens=1), images(*size))


@pytest.mark.parametrize("position", [None, Absolute(scale=0.3), ["axial", "absolute"]], ids=str)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_row_for_the_cls_token(position, size: tuple[int, int]) -> None:
    assert_same(build(position, pool="cls_mean", cls_position=True, num_register_tokens=1), images(*size))


@pytest.mark.parametrize("position", ["axial", "mixed", ["absolute", "mixed"]], ids=str)
@pytest.mark.parametrize("coordinates", ["index", "rescaled", "centered"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_coordinates(position, coordinates: str, size: tuple[int, int]) -> None:
    assert_same(build(position, coordinates=coordinates, num_register_tokens=1), images(*size))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_table_is_resized(interpolation: str, size: tuple[int, int]) -> None:
    assert_same(build(interpolation=interpolation, position="absolute"), images(*size))


@pytest.mark.parametrize(
    "settings", [{"patch_size": (2, 5)}, {"patch_size": (12, 4)}, {"post_emb_norm": True}], ids=str
)
def test_other_patches_and_the_norm_of_embeddings(settings: dict) -> None:
    assert_same(build(["absolute", "axial"], **settings), images(12, 20))


def test_patches_are_numbered_row_by_row() -> None:
    assert patch_positions((2, 3), (2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert patch_positions((2, 3), (2, 3)).dtype == torch.int64


@pytest.mark.parametrize("how", ["index", "rescaled", "centered"])
@pytest.mark.parametrize("grid", [(3, 5), (7, 2), (1, 1), (300, 4)])
def test_coordinates_are_the_formula(how: str, grid: tuple[int, int]) -> None:
    found = patch_positions(grid, (3, 5), how).unflatten(0, grid)
    for axis in (0, 1):
        numbers = [coordinate(i, grid[axis], (3, 5)[axis], how) for i in range(grid[axis])]
        expected = torch.tensor(numbers, dtype=torch.float64)
        along = found[..., axis].double().movedim(axis, 0).flatten(1)
        torch.testing.assert_close(along, expected[:, None].expand_as(along), atol=1e-12, rtol=0)


def test_centered_coordinates_are_those_of_dinov3() -> None:
    expected = get_patches_center_coordinates(5, 9, dtype=torch.float64, device=torch.device("cpu"))
    found = patch_positions((5, 9), (3, 3), "centered")
    torch.testing.assert_close(found, expected.reshape(-1, 2).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("grid", [(3, 5), (6, 10), (7, 4), (2, 3), (1, 1), (1, 11)])
def test_a_resized_table_is_the_formula(interpolation: str, grid: tuple[int, int]) -> None:
    table = PatchTable((3, 5), 4, interpolation).double()
    torch.nn.init.normal_(table.table)
    torch.testing.assert_close(table(grid), resized(table.table, grid, interpolation), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_table_is_resized_in_float32(dtype: torch.dtype) -> None:
    table = PatchTable((3, 5), 4).to(dtype)
    expected = resized(table.table.double(), (4, 7), "bicubic").to(dtype)
    torch.testing.assert_close(table((4, 7)), expected, atol=0, rtol=2 * torch.finfo(dtype).eps)
    assert table((4, 7)).dtype == dtype
