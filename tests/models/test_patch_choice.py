"""Images of several sizes in a batch, hidden patches, kept patches and patch dropout: each image as if it were alone."""

import pytest
import torch
from torch import Tensor

from tests.support.naive_vision import naive
from tests.support.vision_models import build, images
from x_positional import Encoder, IncompatibleConfig, ViTransformerWrapper
from x_positional.errors import InputError

ROUNDING, TABLES, APART = 1e-11, 2e-7, 1e-3
"""Of float64; of tables of cosines in float32; what no rounding explains."""
POSITIONS = ["axial", "mixed", "absolute", "rope", "alibi", "t5", "dynamic", "polar", "sinusoidal", "none"]
BESIDE = {"patches alone": {}, "both": {"pool": "cls_mean", "num_register_tokens": 2}}
SIZES = [(12, 20), (20, 8), (4, 4), (8, 28)]


def several() -> list[Tensor]:
    """Images of four sizes, one of the trained one; two have as many patches with other rows and columns."""
    return [images(*size)[0] for size in [*SIZES, (28, 8)]]


def gap(a: Tensor, b: Tensor) -> float:
    return (a - b).detach().abs().max().item()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_a_batch_of_several_sizes_gives_what_each_image_gives_alone(position: str, beside: dict) -> None:
    model, batch = build(position, **beside), several()
    encoded = model.encode(batch)
    assert encoded.grids == [(3, 5), (5, 2), (1, 1), (2, 7), (7, 2)]
    for number, image in enumerate(batch):
        alone, count = model.encode(image[None]), encoded.grids[number][0] * encoded.grids[number][1]
        assert gap(encoded.patches[number, :count], alone.patches[0]) < ROUNDING
        assert not encoded.patches[number, count:].any()
        if beside:
            assert gap(encoded.cls[number], alone.cls[0]) < ROUNDING
            assert gap(encoded.registers[number], alone.registers[0]) < ROUNDING
    assert gap(model(batch), torch.cat([model(image[None]) for image in batch])) < ROUNDING


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
@pytest.mark.parametrize("coordinates", ["index", "rescaled", "centered"])
def test_several_sizes_on_every_backend(backend: str, coordinates: str) -> None:
    layers = Encoder(dim=22, depth=2, heads=3, attn_dim_head=8, position=["axial", "absolute"], backend=backend)
    sizes = {"image_size": (12, 20), "patch_size": 4, "channels": 2, "coordinates": coordinates}
    model, batch = ViTransformerWrapper(attn_layers=layers, **sizes).double().eval(), several()
    with torch.no_grad():
        assert gap(model(batch), torch.cat([model(image[None]) for image in batch])) < ROUNDING


def test_images_of_one_size_may_come_as_a_list() -> None:
    model, x = build(pool="cls"), images(12, 20)
    assert gap(model(list(x)), model(x)) < ROUNDING
    two = [images(8, 28)[0], images(28, 8)[0]]  # as many patches each, at other rows and columns
    assert gap(model(two), torch.cat([model(image[None]) for image in two])) < ROUNDING


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_kept_patches_are_the_formula_on_them_alone(position: str, beside: dict) -> None:
    """The others are as if they were not there, and positions stay those of the whole image."""
    model, x = build(position, **beside), images(20, 12)
    kept = torch.tensor([[14, 3, 0, 7], [2, 9, 4, 12]])
    found = model(x, kept=kept)
    if position in ("axial", "mixed", "absolute", "rope", "none"):  # those that the written-out transformer has
        expected = torch.stack([naive(model, image, row.tolist()) for image, row in zip(x, kept, strict=True)])
        assert gap(found, expected) < TABLES
    others = torch.ones(2, 15, dtype=torch.bool).scatter(1, kept, False)
    assert gap(found, model(x, mask=~others)) < ROUNDING
    assert gap(found, model(x)) > APART


def test_kept_patches_come_out_in_their_order() -> None:
    model, x = build("axial"), images(12, 20)
    kept, order = torch.tensor([[1, 8, 4], [0, 14, 2]]), [2, 0, 1]
    encoded = model.encode(x, kept=kept)
    assert torch.equal(encoded.kept, kept)
    assert gap(model.encode(x, kept=kept[:, order]).patches, encoded.patches[:, order]) < ROUNDING
    whole = torch.arange(15).expand(2, -1)
    assert gap(model(x, kept=whole, return_embeddings=True), model(x, return_embeddings=True)) < ROUNDING


@pytest.mark.parametrize("position", POSITIONS)
def test_hidden_patches_have_no_effect(position: str) -> None:
    """A patch's pixels reach others through attention and the mean alone, and a mask closes both."""
    model, x = build(position, pool="cls_mean"), images(12, 20)
    mask = torch.rand(2, 15, generator=torch.Generator().manual_seed(0)) < 0.6
    noise = x.unflatten(3, (5, 4)).unflatten(2, (3, 4)).permute(0, 2, 4, 1, 3, 5).clone()  # [B rows columns C h w]
    noise[~mask.unflatten(1, (3, 5))] = 1e3
    changed = noise.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    assert gap(model(changed, mask=mask), model(x, mask=mask)) < ROUNDING
    assert gap(model(changed), model(x)) > APART
    assert not model(x, mask=mask, return_embeddings=True)[~mask].any()


def test_a_mask_and_kept_patches_of_images_of_several_sizes() -> None:
    model, batch = build(["axial", "absolute"]), [images(12, 20)[0], images(8, 8)[0]]
    mask = torch.ones(2, 15, dtype=torch.bool)
    mask[0, 3] = mask[1, 0] = False
    kept = torch.tensor([[3, 5, 9], [0, 1, 3]])
    found = model(batch, mask=mask, kept=kept)
    expected = [[5, 9], [1, 3]]
    alone = [model(image[None], kept=torch.tensor([row])) for image, row in zip(batch, expected, strict=True)]
    assert gap(found, torch.cat(alone)) < ROUNDING


def test_patch_dropout_leaves_out_a_share_in_training_alone() -> None:
    model, x = build("axial", patch_dropout=0.4, pool="cls"), images(12, 20, batch=200)
    assert model.encode(x).kept is None
    model.train()
    encoded = model.encode(x)
    assert encoded.patches.shape == (200, 9, 22)
    assert (encoded.kept.diff(dim=1) > 0).all()
    often = encoded.kept.flatten().bincount(minlength=15) / 200
    assert ((often > 0.4) & (often < 0.8)).all()  # 0.6, and a standard deviation of 0.035
    model.eval()
    assert gap(model.encode(x[:3], kept=encoded.kept[:3]).cls, encoded.cls[:3]) < ROUNDING


def test_patch_dropout_of_several_sizes_leaves_each_its_share() -> None:
    model, batch = build("axial", patch_dropout=0.5).train(), several()
    encoded = model.encode(batch)
    assert encoded.mask.sum(1).tolist() == [8, 5, 1, 7, 7]
    for number, image in enumerate(batch):
        shown = encoded.kept[number][encoded.mask[number]]
        assert len(set(shown.tolist())) == len(shown)
        alone = model.eval().encode(image[None], kept=shown[None])
        assert gap(encoded.patches[number][encoded.mask[number]], alone.patches[0]) < ROUNDING
    assert build("axial", patch_dropout=0.99).train().encode(batch).mask.sum(1).tolist() == [1] * 5


def test_every_parameter_learns_from_kept_patches() -> None:
    model = build(["axial", "absolute"], pool="cls", num_register_tokens=2, patch_dropout=0.5).train()
    for _ in range(4):
        model(several()).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_it_compiles_without_graph_breaks() -> None:
    model = build("axial", pool="cls", patch_dropout=0.4).float()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, kept = images(12, 20).float(), torch.tensor([[1, 2, 3], [0, 14, 7]])
    with torch.no_grad():
        assert gap(compiled(x, kept=kept), model(x, kept=kept)) < 1e-4
        assert compiled.train()(x).shape == (2, 5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"kept": torch.tensor([[0, 15], [1, 2]])}, r"kept holds 15, but patches are numbered 0 to 14, row by row"),
        ({"kept": torch.tensor([[0, -1], [1, 2]])}, r"kept holds -1"),
        ({"kept": torch.tensor([[0, 1]])}, r"\[batch=2, patches to keep\].*shape \[1, 2\]"),
        ({"kept": torch.tensor([[0, 0], [1, 2]])}, r"names a patch of an image twice"),
        ({"kept": torch.ones(2, 15, dtype=torch.bool)}, r"got torch.bool.*mask of patches is passed as mask="),
        ({"kept": torch.rand(2, 3)}, r"integers.*got torch.float32"),
        ({"mask": torch.ones(2, 14, dtype=torch.bool)}, r"\[2, 15\]; got \[2, 14\]"),
        ({"mask": torch.ones(2, 3, 5, dtype=torch.bool)}, r"\[2, 15\], patches in raster order; got \[2, 3, 5\]"),
        ({"mask": torch.ones(2, 15)}, r"mask must be bool, True = keep"),
        ({"mask": torch.arange(30).view(2, 15) < 15}, r"mask leaves no patch of image 1"),
        (
            {"mask": torch.arange(30).view(2, 15) < 20, "kept": torch.tensor([[0, 1], [5, 6]])},
            r"mask and kept leave no patch of image 1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_choices_that_do_not_fit_are_refused(inputs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()(images(12, 20), **inputs)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], r"or a list of tensors \[channels=2, height, width\], one an image; got a list of nothing"),
        ([images(12, 20)], r"image 0 must have shape \[channels=2, height, width\].*got \[2, 2, 12, 20\]"),
        ([images(12, 20)[0], images(13, 20)[0]], r"image 1: height 13 is not a multiple.*height 12 or 16"),
        (
            [images(12, 20)[0], images(12, 20)[0].float()],
            r"image 1 must be torch.float64, as the model is; got torch.float32",
        ),
        ([images(12, 20)[0], 3], r"got a list of Tensor, int"),
        ("image.png", r"got str"),
        ([(images(12, 20)[0] * 255).byte()], r"image 0 must be floats; got torch.uint8"),
    ],
    ids=["empty", "four axes", "a height that is cut", "two dtypes", "a number", "a path", "bytes"],
)
def test_lists_that_are_no_images_are_refused(batch, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()(batch)


def test_a_kept_number_beyond_the_smallest_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"kept holds 9, but patches are numbered 0 to 3 in the smallest image"):
        build()([images(12, 20)[0], images(8, 8)[0]], kept=torch.tensor([[9], [4]]))


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises((ValueError, IncompatibleConfig), match="patch_dropout"):
        build(patch_dropout=share)
