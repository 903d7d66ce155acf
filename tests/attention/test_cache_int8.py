"""A cache in int8: every scheme's bound is the contract check `int8_cache`; here is what it rejects, and everything else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.draws import draws
from tests.support.generation_models import GREEDY, ids, language_model
from x_positional import AutoregressiveWrapper
from x_positional.attention import cache as cache_module
from x_positional.attention.integers import dequantize_rows, quantize_rows
from x_positional.errors import CacheError
from x_positional.testing import Sizes
from x_positional.testing.subject import Subject
from x_positional.testing.suite import run_check


def truncated(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds towards zero."""
    scale = quantize_rows(x)[1]
    return (x / scale[..., None]).trunc().to(torch.int8), scale


def of_the_token_before(x: Tensor) -> tuple[Tensor, Tensor]:
    integers, scale = quantize_rows(x)
    return integers, scale.roll(1, dims=2)


def of_another_head(x: Tensor) -> tuple[Tensor, Tensor]:
    integers, scale = quantize_rows(x)
    return integers, scale.roll(1, dims=1)


def wide_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scales for 8 bits without a sign: large entries wrap around."""
    scale = x.abs().amax(-1) / 255
    return (x / scale[..., None]).round().to(torch.int16).to(torch.int8), scale


def narrow_scales(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scales that were rounded to bfloat16 after the division."""
    integers, scale = quantize_rows(x)
    return integers, scale.bfloat16().to(scale.dtype)


BROKEN = [truncated, of_the_token_before, of_another_head, wide_steps, narrow_scales]


@pytest.mark.parametrize("broken", BROKEN)
def test_the_contract_rejects_a_wrong_rounding(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> None:
    monkeypatch.setattr(cache_module, "quantize_rows", broken)
    result = run_check("int8_cache", Subject("rope", Sizes(), torch.device("cpu")))
    assert result.verdict == "fail"
    assert "rounding explains half a step" in result.detail


def test_the_contract_rejects_reading_with_the_scale_of_another_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "dequantize_rows", lambda x, scale: dequantize_rows(x, scale.roll(1, dims=2)))
    result = run_check("int8_cache", Subject("rope", Sizes(), torch.device("cpu")))
    assert result.verdict == "fail"
    assert result.margin is not None
    assert result.margin > 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_no_entry_moves_by_more_than_half_a_step(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0, 0] = 0
    integers, scale = quantize_rows(x.to(torch.promote_types(dtype, torch.float32)))
    assert integers.dtype == torch.int8
    assert scale.shape == (2, 3, 5)
    step = x.double().abs().amax(-1, keepdim=True) / 127
    back = dequantize_rows(integers, scale.double())
    assert ((back - x.double()).abs() <= step * (0.5 + 1e-4)).all()
    assert not back[0, 0, 0].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_not_hidden(bad: float) -> None:
    x = torch.ones(1, 1, 2, 4)
    x[0, 0, 1, 2] = bad
    back = dequantize_rows(*quantize_rows(x))
    assert torch.equal(back[0, 0, 0], x[0, 0, 0])
    assert not back[0, 0, 1].isfinite().any()


def test_bytes() -> None:
    """Of 10 channels in float64: 10 bytes and a scale of 8, in place of 80."""
    net = language_model("rope")
    full, small = net.new_cache(2), net.new_cache(2, dtype=torch.int8)
    with torch.no_grad():
        for cache in (full, small):
            net(ids(2, 9), cache=cache)
    assert small.nbytes() * 80 == full.nbytes() * 18
    half = net.bfloat16().new_cache(2, dtype=torch.int8)
    with torch.no_grad():
        net(ids(2, 9), cache=half)
    assert half.nbytes() * 80 == full.nbytes() * 14, "scales are float32 at least"


def test_gradients_are_refused() -> None:
    net = language_model("rope")
    cache = net.new_cache(2, dtype=torch.int8)
    with pytest.raises(CacheError, match=r"no gradient flows. Call the model under torch.no_grad\(\)"):
        net(ids(2, 5), cache=cache)
    assert cache.span == 0
    with torch.no_grad():
        net(ids(2, 5), cache=cache)
    assert cache.span == 5


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("compile", draws((False,), (False, True)))
def test_generation(window: int | None, compile: bool) -> None:
    """The logits of a cache that was filled at once, and kept, reordered and copied ones."""
    net, prompts = language_model("rope", window=window), [ids(5)[0:5], ids(9, seed=3)]
    model = AutoregressiveWrapper(net)
    cache = net.new_cache(2, dtype=torch.int8)
    tokens = model.generate(prompts, 12, **GREEDY, cache=cache, compile=compile)
    rows = [torch.cat([prompt, new]) for prompt, new in zip(prompts, tokens, strict=True)]
    with torch.no_grad():
        for prompt, row, new in zip(prompts, rows, tokens, strict=True):
            alone = net(row[None, :-1], cache=net.new_cache(1, dtype=torch.int8))[0]
            assert torch.equal(alone[len(prompt) - 1 :].argmax(-1), new)
        copied = cache.__copy__()
        cache.reorder([1, 0])
        assert torch.equal(copied.state.layers[0][3][1], cache.state.layers[0][3][0])
        last = torch.stack([row[-1:] for row in rows])
        torch.testing.assert_close(net(last, cache=copied).flip(0), net(last.flip(0), cache=cache), rtol=0, atol=1e-12)
