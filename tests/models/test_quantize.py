"""`quantize`: every kind of model computes what its integers stand for, can be written, and is refused where it must be.

The reference is a float64 copy with plain layers that hold the dequantized matrices.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.models.test_wrapped_layers import MLA, MODELS, cached, wrapper
from tests.support.draws import draws
from tests.support.export_models import own
from tests.support.quantized import BROKEN, floats_of
from tests.support.rounding import rounding
from tests.support.small_models import SIDE, close, decoder, ids
from tests.support.wrapped_layers import Scaled, targets
from x_positional import (
    ArgumentError,
    AutoregressiveWrapper,
    CacheError,
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    PretrainedError,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    from_pretrained,
    quantize,
)
from x_positional.models import quantize as quantize_module
from x_positional.modules import quantized
from x_positional.modules.latent_attention import LatentAttention
from x_positional.modules.quantized import Int8Embedding, Int8Linear
from x_positional.testing.cases import cases
from x_positional.testing.subject import Sizes, Subject
from x_positional.testing.suite import CHECKS, run_check

SIDES = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SIDE.items()}
SCHEMES = draws(["rope", "t5", "cope", "forgetting", "absolute + deberta"], list(cases()))
CHECKED = [c for c in CHECKS if c not in ("compiles", "gradcheck")]


def tied(**flags) -> TransformerWrapper:
    return wrapper("rope", tie_embedding=True, **flags)


def seq2seq() -> XTransformer:
    torch.manual_seed(0)
    return XTransformer(dim=24, tie_token_emb=True, dec_tie_embedding=True, **SIDES).eval()


def vision() -> ViTransformerWrapper:
    torch.manual_seed(0)
    layers = Encoder(dim=24, depth=2, heads=3, head_dim=8, position="axial")
    return ViTransformerWrapper(image_size=12, patch_size=4, attn_layers=layers, num_classes=5).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme(name: str) -> None:
    case = cases()[name]
    subject = Subject(case.scheme, case.sizes or Sizes(), torch.device("cpu"))
    plain, tokens = subject.fresh(subject.kinds[0]), subject.tokens(14, batch=2)
    model = quantize(copy.deepcopy(plain))
    want = floats_of(model)(tokens)
    close(model(tokens).double(), want)
    assert (plain(tokens) - want).abs().max() > 100 * rounding(want)
    if subject.kinds[0] == "decoder" and subject.capabilities().kv_cacheable:
        close(cached(model, tokens).double(), want)


@pytest.mark.parametrize("check", draws([c for c in CHECKED if c != "backends_agree"], list(CHECKS)))
def test_contract(check: str) -> None:
    result = run_check(check, SUBJECT)
    assert result.verdict in ("pass", "n/a"), result.detail


SUBJECT = Subject("rope", Sizes(), torch.device("cpu"), "int8")


def wrong_in_few_rows(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """A kernel for decoding that rounds scales to bfloat16."""
    few = x.numel() // weight.shape[1] <= 8
    return quantized._dequantized(x, weight, scale.bfloat16().to(scale.dtype) if few else scale)


def test_the_contract_rejects_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "_product", wrong_in_few_rows)
    result = run_check("cached_equals_full", Subject("rope", Sizes(), torch.device("cpu"), "int8"))
    assert result.verdict == "fail"
    assert result.margin is not None
    assert result.margin >= 10


def test_the_contract_rejects_scales_outside_of_the_state_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loose(nn.Module):
        def __init__(self, layer: nn.Linear):
            super().__init__()
            weight, scale = quantized.quantize_rows(layer.weight)
            self.weight, self.bias = quantized.frozen(weight), layer.bias
            self.scale = scale.numpy()

        def forward(self, x: Tensor) -> Tensor:
            return quantized.int8_linear(x, self.weight, torch.from_numpy(self.scale), self.bias)

    subject = Subject("rope", Sizes(), torch.device("cpu"), "int8")
    monkeypatch.setattr("x_positional.models.quantize.Int8Linear", Loose)
    result = run_check("state_dict", subject)
    assert result.verdict == "fail"
    assert "they must be identical" in result.detail


@torch.no_grad()
@pytest.mark.parametrize("name", [*MODELS, "tied", "encoder"])
def test_every_kind_of_layer(name: str) -> None:
    more = {"tied": tied, "encoder": lambda: decoder("alibi", kind=Encoder)}
    plain, tokens = (MODELS | more)[name](), ids(2, 14)
    model = quantize(copy.deepcopy(plain))
    want = floats_of(model)(tokens)
    close(model(tokens).double(), want)
    assert (plain(tokens) - want).abs().max() > 100 * rounding(want)
    if name != "encoder":
        close(cached(model, tokens).double(), want)
    assert not [n for n in targets(model) if type(model.get_submodule(n)) is nn.Linear and ".schemes." not in n]


@torch.no_grad()
@pytest.mark.parametrize("broken", BROKEN)
def test_matrices_that_were_quantized_wrongly_are_found(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry moves by more than half a step, 1 / 127 of the largest in its row."""
    layer = decoder("rope", depth=1).attn_layers.blocks[0].attn.to_out
    step = layer.weight.abs().amax(-1, keepdim=True) / 127

    def moved() -> float:
        return ((Int8Linear(layer).matrix() - layer.weight).abs() / step).max().item()

    assert moved() <= 0.5 + 1e-3
    monkeypatch.setattr(quantized, "quantize_rows", broken)
    assert moved() > 0.6


@torch.no_grad()
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales of the neighbouring row."""
    model, tokens = quantize(decoder("rope")), ids(2, 14)
    want, right = floats_of(model)(tokens), quantized._product
    monkeypatch.setattr(quantized, "_product", lambda x, w, s: right(x, w, s.roll(1)))
    assert (model(tokens) - want).abs().max() > 100 * rounding(want)


@torch.no_grad()
def test_encoder_decoder_with_one_table() -> None:
    model = quantize(seq2seq())
    assert model.decoder.net.token_emb is model.encoder.token_emb
    assert isinstance(model.encoder.token_emb, Int8Embedding)
    source, target = ids(2, 7), ids(2, 9)
    exact = floats_of(model)
    exact.decoder.net.token_emb = exact.encoder.token_emb
    close(model.logits(source, target).double(), exact.logits(source, target))
    steps = {"seq_len": 6, "temperature": 0.0}
    texts = [m.generate(source, target[:, :2], **steps) for m in (model, exact)]
    assert torch.equal(*texts)


@torch.no_grad()
def test_images_and_continuous_inputs() -> None:
    model, image = quantize(vision()), torch.randn(2, 3, 12, 12)
    close(model(image).double(), floats_of(model)(image.double()))
    layers = Decoder(dim=24, depth=1, heads=3, head_dim=8, position="rope")
    net = ContinuousTransformerWrapper(dim_in=5, dim_out=6, max_seq_len=32, attn_layers=layers).eval()
    x = torch.randn(2, 9, 5)
    close(quantize(net)(x).double(), floats_of(net)(x.double()))


@torch.no_grad()
def test_latent_attention_reads_the_matrix() -> None:
    """So that a step in a long context does not expand every latent."""
    attention = quantize(decoder({"kind": "rope", "dim": 4}, **MLA)).attn_layers.blocks[0].attn
    assert isinstance(attention, LatentAttention)
    assert attention._from_latent() is not None


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "roundings"), [(torch.bfloat16, 16), (torch.float16, 16), (torch.float64, 64)])
def test_other_dtypes(dtype: torch.dtype, roundings: int) -> None:
    """Half precision rounds the result of each of eight sums in two layers; float64 also rounds their additions, as in
    `tests.support.rounding`."""
    model, tokens = quantize(tied().to(dtype)), ids(2, 14)
    want = floats_of(model)(tokens)
    got = model(tokens)
    assert got.dtype == dtype
    assert (got - want).abs().max() <= roundings * torch.finfo(dtype).eps * want.abs().max()
    assert cached(model, tokens).dtype == dtype
    again = quantize(tied()).to(dtype)
    assert again(tokens).dtype == dtype


@torch.no_grad()
def test_generation_draws_the_tokens_of_the_float_model() -> None:
    model = quantize(tied())
    texts = [
        AutoregressiveWrapper(m).generate(ids(2, 5), 20, temperature=0.0, cache_kv=kv)
        for m in (model, floats_of(model))
        for kv in (True, False)
    ]
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_a_cache_filled_before_is_stale() -> None:
    model = decoder("rope")
    cache = model.new_cache(2)
    with torch.no_grad():
        model(ids(2, 4), cache=cache)
    quantize(model)
    with pytest.raises(CacheError, match="parameters of the model changed after this cache was filled"):
        model(ids(2, 1), cache=cache)


def test_adapters_train_on_top() -> None:
    """Gradients reach every adapter, and equal those on the matrices in floats."""
    model, tokens = quantize(decoder("rope")), ids(2, 9)
    exact = floats_of(model).float()
    names = ["to_qkv", "to_out", "up", "down", "to_logits"]
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    grads = []
    for net in (model, exact):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(net, config).train()
        adapted(tokens).square().mean().backward()
        grads.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    assert len(grads[0]) == 2 * len([n for n in targets(exact) if n.endswith("base_layer")])
    for name, grad in grads[0].items():
        assert grad is not None
        assert grad.abs().max() > 0, name
        close(grad, grads[1][name])


@torch.no_grad()
@pytest.mark.parametrize("make", [tied, MODELS["experts"], seq2seq, vision])
def test_a_folder_is_read_back_bit_equal(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = quantize(make())
    model.save_pretrained(tmp_path)
    read = from_pretrained(tmp_path)
    assert read.quantized == "int8"
    states = [m.state_dict() for m in (model, read)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][n]) and v.dtype == states[1][n].dtype for n, v in states[0].items())
    assert from_pretrained(tmp_path, quantize="int8").quantized == "int8"
    assert from_pretrained(tmp_path, dtype=torch.bfloat16).describe().count("bfloat16") >= 2


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    """Integers without the key, floats with it, and a name that is unknown."""
    tied().save_pretrained(tmp_path / "plain")
    quantize(tied()).save_pretrained(tmp_path / "int8")
    config = (tmp_path / "int8" / "config.json").read_text()
    (tmp_path / "plain" / "config.json").write_text(config)
    with pytest.raises(PretrainedError, match=r"to_qkv\.scale is missing"):
        from_pretrained(tmp_path / "plain")
    for other, reason in (("int9", "did you mean 'int8'"), ("", "there are: int8")):
        (tmp_path / "int8" / "config.json").write_text(config.replace('"int8"', f'"{other}"'))
        with pytest.raises(PretrainedError, match=reason):
            from_pretrained(tmp_path / "int8")
    (tmp_path / "int8" / "config.json").write_text(config.replace(',\n  "quantize": "int8"', ""))
    with pytest.raises(PretrainedError, match=r"unexpected tensor .*scale"):
        from_pretrained(tmp_path / "int8")


def test_not_for_transformers(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"weights are int8 .* Use format='native'"):
        quantize(tied()).save_pretrained(tmp_path / "hf", format="hf")
    assert not (tmp_path / "hf").exists()


@torch.no_grad()
def test_from_pretrained(tmp_path: Path) -> None:
    """What is read and quantized equals what was quantized in memory."""
    model, tokens = own(tie_embedding=True, tie_embedding_scale=1.0), ids(2, 9)
    for form in ("native", "hf"):
        model.save_pretrained(tmp_path / form, format=form)
    want = quantize(copy.deepcopy(model))(tokens)
    for form in ("native", "hf"):
        read = from_pretrained(tmp_path / form, quantize="int8")
        close(read(tokens), want)
        assert read.quantized == "int8"


@pytest.mark.parametrize("form", ["native", "hf"])
def test_one_matrix_at_a_time_is_in_floats(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tie_embedding=True, tie_embedding_scale=1.0).save_pretrained(tmp_path, format=form)
    replace, held = quantize_module._replace, []

    def counted(model: nn.Module, old: nn.Module) -> None:
        layers = [m for m in model.modules() if type(m) in (nn.Linear, nn.Embedding)]
        held.append(sum(not m.weight.is_meta for m in layers))
        replace(model, old)

    monkeypatch.setattr(quantize_module, "_replace", counted)
    from_pretrained(tmp_path, quantize="int8")
    assert held == [1] * (1 + 3 * 4)


def lora(model: TransformerWrapper) -> None:
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["token_emb"]))


def hooked(model: TransformerWrapper) -> None:
    model.attn_layers.blocks[0].attn.to_out.register_forward_hook(lambda module, args, output: output)


def parametrized(model: TransformerWrapper) -> None:
    parametrize.register_parametrization(model.attn_layers.blocks[0].ff.up, "weight", Scaled())


def infinite(model: TransformerWrapper) -> None:
    model.attn_layers.blocks[0].ff.up.weight.data[0, 0] = torch.inf


def narrow(model: TransformerWrapper) -> None:
    model.attn_layers.blocks[0].ff.up.to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.train(), r"training mode, and int8 weights cannot be trained\. Call model\.eval\(\)"),
        (quantize, "already quantized"),
        (lora, r"token_emb is a modified Embedding\. Merge adapters"),
        (hooked, r"blocks\.0\.attn\.to_out is a modified Linear\. .*remove hooks"),
        (parametrized, r"blocks\.0\.ff\.up is a modified ParametrizedLinear"),
        (infinite, r"blocks\.0\.ff\.up has weights that are not finite"),
        (narrow, r"blocks\.0\.ff\.up has dtype torch\.float8_e4m3fn\. Use one of torch\.float16"),
    ],
)
def test_refusals_change_nothing(change: Callable[[TransformerWrapper], object], reason: str) -> None:
    model = tied()
    change(model)
    before = [type(m) for m in model.modules()]
    with pytest.raises(ArgumentError, match=reason):
        quantize(model)
    assert [type(m) for m in model.modules()] == before


def test_wrong_arguments(tmp_path: Path) -> None:
    for name, reason in (("int9", "did you mean 'int8'"), ("fp4", "there are: int8"), (8, "use 'int8'")):
        with pytest.raises(ArgumentError, match=f"unknown quantize={name!r}; {reason}"):
            quantize(tied(), name)
        with pytest.raises(ArgumentError, match=f"unknown quantize={name!r}"):
            from_pretrained(tmp_path / "missing", quantize=name)
    with pytest.raises(ArgumentError, match="quantize needs a model; got str"):
        quantize("model")  # type: ignore[type-var]
    with pytest.raises(ArgumentError, match="it has no matrices"):
        quantize(nn.ReLU().eval())


def test_description() -> None:
    """Parameters are those of the float model; the bytes are those of all tensors."""
    model = tied()
    before = model.describe()
    after = quantize(model).describe()
    held = sum(t.nbytes for t in model.state_dict().values())
    lines = [line for line in after.splitlines() if not line.startswith("weights")]
    assert "\n".join(lines) == before
    assert f"int8 with a scale per row: {held / 1e6:,.1f} MB" in after
