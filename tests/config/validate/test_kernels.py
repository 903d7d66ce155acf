"""The kernel that the validator names is the one that torch picks; CUDA's limits as its sources state them."""

from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from x_positional import Decoder, TransformerWrapper, check
from x_positional.config.validate.kernels import Heads, sdpa_kernel

PICKED = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cudnn"}
PLAIN = {"num_tokens": 7, "max_seq_len": 16, "dim": 32, "depth": 1, "heads": 4}
CASES = [
    {"position": "rope"},
    {"position": "rope", "head_dim": 7 * 2},
    {"position": "rope", "head_dim": 300},
    {"position": "rope", "kv_heads": 2},
    {"position": "t5", "kv_heads": 2},
    {"position": "rope", "window": 3},
    {"position": "polar"},
    {"position": "alibi"},
    {"position": {"kind": "alibi", "learned": True}},
    {"position": "t5"},
    {"position": "dynamic"},
    {"position": "forgetting"},
    {"position": ["rope", "t5"]},
    {"position": "rope", "attn": {"dropout": 0.25}},
    {"position": "rope", "kind": "encoder"},
]


def picked(model: TransformerWrapper, train: bool) -> set[str]:
    """The kernels that scaled_dot_product_attention would pick in one pass, asked at each call."""
    seen, real = set(), F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        choice = torch._fused_sdp_choice(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        seen.add(PICKED[choice])
        return real(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    model.train(train)
    device = next(model.parameters()).device
    with torch.set_grad_enabled(train), patch.object(F, "scaled_dot_product_attention", spy):
        model(torch.zeros(2, 9, dtype=torch.long, device=device))
    return seen


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("flags", CASES, ids=str)
def test_the_kernel_on_cpu(flags: dict, train: bool) -> None:
    agrees(flags, train, "cpu", torch.float32)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks the kernels of a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("flags", CASES, ids=str)
def test_the_kernel_on_cuda(flags: dict, train: bool, dtype: torch.dtype) -> None:
    agrees(flags, train, "cuda", dtype)


def agrees(flags: dict, train: bool, device: str, dtype: torch.dtype) -> None:
    report = check(**PLAIN | flags, device=device, dtype=dtype, train=train)
    assert report.backend == "sdpa"
    layers = {
        k: v for k, v in {**PLAIN, "head_dim": 64, **flags}.items() if k not in ("num_tokens", "max_seq_len", "kind")
    }
    if flags.get("kind") == "encoder":
        from x_positional import Encoder as Layers
    else:
        Layers = Decoder
    model = TransformerWrapper(num_tokens=7, max_seq_len=16, attn_layers=Layers(**layers)).to(device, dtype)
    kernels = picked(model, train)
    for kernel in kernels - {"cudnn"}:
        assert f"the {kernel} kernel on {device}" in (report.reason or "")
    held = [w for w in report.warnings if "runs its math kernel" in w]
    if "cudnn" in kernels:  # on some GPUs it takes over from any other kernel, and the warning about math says so
        assert all("except on GPUs with cuDNN attention" in w for w in held)
    else:
        assert bool(held) == ("math" in kernels)


HALF, FULL, DOUBLE = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("heads", "kernel", "reasons"),
    [
        (Heads(qk=64, v=64, dtype=HALF), "flash", []),
        (Heads(qk=256, v=256, dtype=HALF), "flash", []),
        (Heads(qk=36, v=36, dtype=HALF), "flash", []),
        (Heads(qk=64, v=64, dtype=FULL), "memory-efficient", ["flash supports float16 and bfloat16, not float32"]),
        (
            Heads(qk=64, v=64, dtype=HALF, masked=True),
            "memory-efficient",
            ["flash supports no bias and no mask tensor"],
        ),
        (Heads(qk=264, v=264, dtype=HALF), "memory-efficient", ["flash supports heads up to 256 wide, not 264"]),
        (
            Heads(qk=128, v=64, dtype=HALF),
            "memory-efficient",
            ["flash needs q, k and v of one width, not 128 and 64"],
        ),
        (Heads(qk=36, v=36, dtype=FULL, masked=True), "memory-efficient", ["float32", "mask"]),
        (Heads(qk=36, v=36, dtype=HALF, masked=True), "math", ["multiples of 8 in bfloat16, not 36 and 36"]),
        (Heads(qk=70, v=35, dtype=FULL), "math", ["multiples of 4 in float32, not 70 and 35"]),
        (Heads(qk=64, v=64, dtype=HALF, grouped=True), "flash", []),
        (
            Heads(qk=64, v=64, dtype=HALF, grouped=True, masked=True),
            "math",
            ["memory-efficient supports no grouped key heads"],
        ),
        (
            Heads(qk=64, v=64, dtype=DOUBLE),
            "math",
            ["memory-efficient supports float16, bfloat16 and float32, not float64"],
        ),
        (Heads(qk=64, v=64, dtype=HALF, masked=True, mask_grad=True, dropout=True), "memory-efficient", []),
    ],
    ids=str,
)
def test_kernels_on_cuda_by_width_and_dtype(heads: Heads, kernel: str, reasons: list[str]) -> None:
    found, why = sdpa_kernel("cuda", heads)
    assert found == kernel
    for reason in reasons:
        assert reason in "; ".join(why)
    assert (not why) == (kernel == "flash")


def test_polar_names_the_kernels_that_take_it() -> None:
    on_cuda = check(**PLAIN, position="polar", device="cuda", dtype="bfloat16")
    assert "the memory-efficient kernel on cuda: flash needs q, k and v of one width, not 128 and 64" in (
        on_cuda.reason or ""
    )
    on_cpu = check(**PLAIN, position="polar", device="cpu")
    assert "flash needs q, k and v of one width" in on_cpu.warnings[-1]
    assert check(**PLAIN, position="polar", device="cpu", backend="flex").warnings == on_cpu.warnings[:1]


@pytest.mark.parametrize("head_dim", [8, 16])
def test_flex_heads_on_cuda(head_dim: int) -> None:
    report = check(**PLAIN, position="rope", backend="flex", head_dim=head_dim, device="cuda")
    assert report.ok == (head_dim >= 16)
    assert check(**PLAIN, position="rope", backend="flex", head_dim=head_dim, device="cpu").ok


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks the kernels of a CUDA device")
@pytest.mark.parametrize("head_dim", [8, 16])
def test_flex_heads_on_cuda_in_truth(head_dim: int) -> None:
    layers = Decoder(dim=32, depth=1, heads=2, head_dim=head_dim, position="rope", backend="flex")
    model = TransformerWrapper(num_tokens=7, max_seq_len=16, attn_layers=layers).cuda()
    tokens = torch.zeros(1, 9, dtype=torch.long, device="cuda")
    if head_dim < 16:
        with pytest.raises(Exception, match="at least 16"):
            model(tokens)
    else:
        assert model(tokens).isfinite().all()


def test_flex_trains_on_cuda_alone() -> None:
    flags = {**PLAIN, "position": "rope", "backend": "flex"}
    assert check(**flags, device="cpu").ok
    assert not check(**flags, device="cpu", train=True).ok
    assert check(**flags, device="cuda", train=True).ok


@pytest.mark.parametrize(
    ("flags", "fewest"),
    [({"position": "t5"}, 512), ({"position": "forgetting"}, 512), ({"attn": {"dropout": 0.25}}, 64)],
    ids=str,
)
def test_long_sequences_on_cpu_run_by_blocks_and_are_not_warned_of(flags: dict, fewest: int) -> None:
    for length, runs in ((fewest - 1, True), (fewest, False)):
        report = check(**PLAIN | flags | {"max_seq_len": length}, device="cpu", train=True)
        assert any("runs its math kernel" in warning for warning in report.warnings) == runs
        assert f"below {fewest} tokens, blocks of queries from there on" in (report.reason or "")
        layers = Decoder(dim=16, depth=1, heads=2, head_dim=8, **flags)
        model = TransformerWrapper(num_tokens=7, max_seq_len=length, attn_layers=layers)
        with patch.object(F, "scaled_dot_product_attention", side_effect=F.scaled_dot_product_attention) as kernel:
            model(torch.zeros(1, length, dtype=torch.long))
        assert kernel.called == runs
