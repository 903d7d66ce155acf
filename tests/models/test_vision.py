"""What ViTransformerWrapper does: shifts, tokens that are nowhere, sizes, what it gives, training, compiling, refusals."""

import pytest
import torch
from torch import Tensor

from tests.support.rounding import assert_same
from tests.support.vision_models import build, images
from x_positional import Decoder, Encoder, IncompatibleConfig, ViTransformerWrapper
from x_positional.errors import FlagError, InputError
from x_positional.schemes import Axial, Rope

EXACT, APART = 1e-6, 1e-3
CASES = ["axial", "mixed", "rope", "alibi", "t5", "dynamic", "polar", "absolute", "sinusoidal", "none"]


def gap(a: Tensor, b: Tensor) -> float:
    return (a - b).detach().abs().max().item()


def moved(model: ViTransformerWrapper, monkeypatch: pytest.MonkeyPatch, by: Tensor) -> None:
    """From here on every patch is told that it is elsewhere; other tokens stay at 0."""
    told, extra = model.positions, model.extra_tokens

    def positions(grid, device=None):
        at = told(grid, device).double()
        return torch.cat([at[:, :extra], at[:, extra:] + by], dim=1)

    monkeypatch.setattr(model, "positions", positions)


@pytest.mark.parametrize("position", ["axial", "mixed", Axial(theta=100.0, interleaved=True)], ids=str)
@pytest.mark.parametrize("size", [(12, 20), (20, 8)])
@pytest.mark.parametrize("by", [[7, -3], [0.25, 40.5]], ids=str)
def test_only_where_patches_are_to_each_other_counts(position, size, by, monkeypatch) -> None:
    model, x = build(position), images(*size)
    before = model(x)
    moved(model, monkeypatch, torch.tensor(by))
    assert gap(model(x), before) < EXACT


@pytest.mark.parametrize("beside", [{"pool": "cls"}, {"num_register_tokens": 2}], ids=str)
def test_tokens_beside_the_patches_stay_at_zero(beside, monkeypatch) -> None:
    model, x = build("axial", **beside), images(12, 20)
    before = model(x)
    moved(model, monkeypatch, torch.tensor([7, -3]))
    assert gap(model(x), before) > APART


@pytest.mark.parametrize("position", ["axial", "mixed", "rope"])
def test_positions_of_patches_and_other_tokens(position: str) -> None:
    model = build(position, pool="cls", num_register_tokens=2)
    at = model.positions((3, 5))[0]
    assert len(at) == 3 + 15
    assert not at[:3].any()
    if position == "rope":
        assert at[3:].tolist() == list(range(15))
    else:
        assert at[3:].tolist() == [[row, column] for row in range(3) for column in range(5)]


def test_a_crop_sees_what_the_same_patches_see_alone() -> None:
    """With index coordinates nothing depends on where in a larger image a crop was taken."""
    model, x = build("axial"), images(24, 28)
    crops = [x[..., top : top + 12, left : left + 16] for top, left in ((0, 0), (12, 8))]
    assert gap(model(torch.cat(crops)), torch.cat([model(crop) for crop in crops])) < 1e-12


@pytest.mark.parametrize("position", ["axial", "mixed"])
def test_rescaled_is_index_at_the_trained_size_and_only_there(position: str) -> None:
    index, rescaled = build(position), build(position, coordinates="rescaled")
    assert gap(index(images(12, 20)), rescaled(images(12, 20))) == 0
    assert gap(index(images(24, 20)), rescaled(images(24, 20))) > 1e-4


@pytest.mark.parametrize("position", CASES)
def test_the_order_of_patches_counts_unless_there_is_no_position(position: str) -> None:
    model, x = build(position), images(12, 20)
    mixed = x.unflatten(3, (5, 4))[..., [2, 0, 4, 1, 3], :].flatten(3)
    difference = gap(model(x), model(mixed))
    assert difference < 1e-12 if position == "none" else difference > 1e-4


@pytest.mark.parametrize("position", CASES)
@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_backends_agree_at_a_size_that_was_not_trained(position: str, backend: str) -> None:
    x = images(20, 12)
    layers = {"dim": 22, "depth": 2, "heads": 3, "attn_dim_head": 8, "position": position}
    models = []
    for name in ("eager", backend):
        encoder = Encoder(**layers, backend=name)
        sizes = {"image_size": (12, 20), "patch_size": 4, "channels": 2, "num_classes": 5}
        models.append(ViTransformerWrapper(**sizes, attn_layers=encoder, pool="cls", num_register_tokens=1).double())
    models[1].load_state_dict(models[0].state_dict())
    with torch.no_grad():
        assert gap(models[1](x), models[0](x)) < EXACT


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("registers", [0, 2])
def test_what_comes_out(pool: str, registers: int) -> None:
    model, x = build("axial", pool=pool, num_register_tokens=registers), images(8, 20, batch=3)
    encoded = model.encode(x)
    assert encoded.grids == [(2, 5)] * 3
    assert encoded.patches.shape == (3, 10, 22)
    assert encoded.registers.shape == (3, registers, 22)
    assert (encoded.cls is None) == (pool == "mean")
    assert gap(model(x, return_embeddings=True), encoded.patches) == 0
    pooled = encoded.patches.mean(1) if encoded.cls is None else encoded.cls
    assert gap(model(x), model.to_logits(pooled)) == 0
    headless = build("axial", pool=pool, num_register_tokens=registers, num_classes=None)
    headless.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("to_logits")})
    assert gap(headless(x), pooled) == 0


@pytest.mark.parametrize("position", CASES)
def test_every_parameter_learns(position: str) -> None:
    model = build(position, pool="cls", num_register_tokens=2, post_emb_norm=True)
    model(images(20, 12)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("position", ["absolute", "axial", "mixed", "rope"])
def test_images_of_a_batch_do_not_see_each_other(position: str) -> None:
    model, x = build(position), images(20, 12, batch=3)
    assert gap(model(x), torch.cat([model(image[None]) for image in x])) < 1e-12


def test_dropout_of_the_embedding_acts_in_training_alone() -> None:
    model, x = build(emb_dropout=0.5), images(12, 20)
    assert gap(model(x), model(x)) == 0
    model.train()
    assert gap(model(x), model(x)) > APART


@pytest.mark.parametrize("position", ["absolute", "mixed"])
def test_narrow_models_run(position: str) -> None:
    model, x = build(position, pool="cls"), images(20, 12)
    full = model(x)
    found = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert gap(found.double(), full) < 0.1


@pytest.mark.parametrize("position", ["absolute", "axial"])
def test_it_compiles_without_graph_breaks(position: str) -> None:
    model = build(position, depth=1, pool="cls", num_register_tokens=1).float()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for size in ((12, 20), (20, 8)):
            x = images(*size).float()
            assert_same(compiled(x), model(x))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images(12, 20)[0], r"shape \[batch, channels=2, height, width\].*got \[2, 12, 20\]"),
        (images(12, 20, channels=3), r"channels=2.*got \[2, 3, 12, 20\]"),
        (images(12, 20)[:0], r"none of them 0"),
        (images(12, 20)[..., :0], r"none of them 0"),
        ((images(12, 20) * 255).byte(), r"must be floats; got torch\.uint8.*\.float\(\) / 255"),
        (images(13, 20), r"height 13 is not a multiple of the patch's 4.*Resize or pad the image: height 12 or 16"),
        (images(12, 3), r"width 3 is not a multiple of the patch's 4.*width 4\."),
        (images(10, 22), r"height 10 .* and width 22 .*height 8 or 12; width 20 or 24"),
    ],
)
def test_images_that_cannot_be_cut_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()(x)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"image_size": 13}, IncompatibleConfig, r"height 13 is not a multiple of the patch's 4.*12 or 16"),
        ({"patch_size": (4, 6)}, IncompatibleConfig, r"width 20 is not a multiple of the patch's 6.*18 or 24"),
        (
            {"coordinates": "rescaled", "position": "rope"},
            IncompatibleConfig,
            "no scheme of position=rope reads row and column",
        ),
        (
            {"coordinates": "centered", "position": None},
            IncompatibleConfig,
            "no scheme of position=absolute reads row and column",
        ),
        ({"interpolation": "bilinear"}, IncompatibleConfig, "there is no learned table. Put 'absolute'"),
        ({"antialias": True}, IncompatibleConfig, "antialias=True is ignored: there is no learned table"),
        ({"cls_position": True, "pool": "cls"}, IncompatibleConfig, "there is no learned table"),
        ({"cls_position": True, "position": None}, IncompatibleConfig, "pool='mean' has no cls token"),
        ({"position": ["axial", "alibi"]}, IncompatibleConfig, "axial reads row and column, and alibi one number"),
        ({"position": Rope(sections=(1, 1, 2))}, IncompatibleConfig, "3 axes, and a patch has two"),
        ({"position": {"kind": "absolute", "offset": 2}}, IncompatibleConfig, "offset=2.*15 rows"),
        ({"position": ["absolute", "absolute"]}, IncompatibleConfig, "absolute more than once"),
        ({"position": ["absolute", "none"]}, IncompatibleConfig, "'none' with another scheme"),
        ({"pol": "cls"}, FlagError, "pol is not a flag; did you mean pool"),
        ({"num_register_token": 2}, FlagError, "did you mean num_register_tokens"),
        ({"pool": "max"}, ValueError, "pool"),
        ({"channels": 0}, ValueError, "channels"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_had_are_refused(settings: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build(**settings)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (Decoder(dim=22, depth=2, heads=3, position="axial"), "layers.kind='decoder' for images"),
        (Encoder(dim=22, depth=2, heads=3, position="axial", cross_attend=True), "the model gets no context"),
    ],
)
def test_layers_that_do_not_read_images_are_refused(layers, message: str) -> None:
    with pytest.raises(IncompatibleConfig, match=message):
        ViTransformerWrapper(image_size=12, patch_size=4, attn_layers=layers)


def test_images_of_another_dtype_are_refused() -> None:
    model = ViTransformerWrapper(image_size=8, patch_size=4, attn_layers=Encoder(dim=16, depth=1, heads=2))
    with pytest.raises(InputError, match=r"pixel_values must be torch.float32.*got torch.float64.*to\(torch.float32\)"):
        model(torch.rand(1, 3, 8, 8, dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.rand(1, 3, 8, 8))
