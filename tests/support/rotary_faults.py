"""The error of a rotary library in each case of the page: every function takes the library and returns a number.

The reference is float64 trigonometry written here; a library that does not support the case raises.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """x [... D] with its first pairs rotated by angle [... F], in float64."""
    x, width = x.double(), 2 * angle.shape[-1]
    a, b = x[..., :width:2], x[..., 1:width:2]
    pairs = torch.stack((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)
    return torch.cat((pairs.flatten(-2), x[..., width:]), -1)


def angles(positions: Tensor, dim: int = 64, theta: float = 1e4) -> Tensor:
    return positions.double()[:, None] * theta ** -(torch.arange(0, dim // 2 * 2, 2, dtype=torch.float64) / dim)


def worst(got: Tensor, right: Tensor) -> float:
    """Largest relative error of a row."""
    return float(((got.double() - right).norm(dim=-1) / right.norm(dim=-1)).max())


def error(library: ModuleType, x: Tensor, offset: int = 0, theta: float = 1e4, **config: object) -> float:
    """Error of the last row of x [T 64], rotated at the positions offset .. offset+T-1."""
    module = library.RotaryEmbedding(64, theta=theta, **config)
    right = rotated(x, angles(torch.arange(len(x)) + offset, theta=theta))
    return worst(module.rotate_queries_or_keys(x, offset=offset)[-1:], right[-1:])


def bf16_position_257(library: ModuleType) -> float:
    return error(library, noise(258, 64).bfloat16())


def bf16_position_777(library: ModuleType) -> float:
    return error(library, noise(778, 64).bfloat16())


def bf16_rows_lost(library: ModuleType) -> float:
    """Positions of 1024 with exactly the rotation of another: the fastest pair separates all of them even in bfloat16."""
    same = torch.ones(1024, 64).bfloat16()
    return 1024 - len(library.RotaryEmbedding(64).rotate_queries_or_keys(same).unique(dim=0))


def fp16_position_2049(library: ModuleType) -> float:
    return error(library, noise(2050, 64).half())


def bf16_module(library: ModuleType) -> float:
    module, x = library.RotaryEmbedding(64).bfloat16(), noise(1001, 64)
    return worst(module.rotate_queries_or_keys(x)[-1:], rotated(x, angles(torch.arange(1001)))[-1:])


def bf16_call_then_float32(library: ModuleType) -> float:
    module, x = library.RotaryEmbedding(64), noise(1024, 64)
    module.rotate_queries_or_keys(x.bfloat16())
    return worst(module.rotate_queries_or_keys(x), rotated(x, angles(torch.arange(1024))))


def float64_queries(library: ModuleType) -> float:
    return error(library, noise(4096, 64).double())


def position_65535(library: ModuleType) -> float:
    return error(library, noise(1, 64), 65535)


def position_million(library: ModuleType) -> float:
    return error(library, noise(1, 64), 2**20 - 1)


def xpos_scores(q: Tensor, k: Tensor) -> Tensor:
    """[T S] scores of q, the last tokens of k's sequence, in float64 from the formula."""
    keys = torch.arange(len(k))
    queries = keys[-len(q) :]
    base = ((torch.arange(0, 64, 2, dtype=torch.float64) + 25.6) / 89.6).repeat_interleave(2)
    decay = base ** ((queries[:, None] - keys) / 512)[..., None]
    q, k = rotated(q, angles(queries)), rotated(k, angles(keys))
    return torch.einsum("id,jd,ijd->ij", q, k, decay)


def xpos_decode(tokens: int) -> Callable[[ModuleType], float]:
    def measure(library: ModuleType) -> float:
        q, k = noise(1, 64), noise(tokens, 64, seed=1)
        new_q, new_k = library.RotaryEmbedding(64, use_xpos=True).rotate_queries_with_cached_keys(q, k)
        return worst(new_q.double() @ new_k.double().mT, xpos_scores(q, k))

    return measure


def xpos_bf16(library: ModuleType) -> float:
    """Against the largest score of a causal row."""
    q, k = noise(512, 64).bfloat16(), noise(512, 64, seed=1).bfloat16()
    new_q, new_k = library.RotaryEmbedding(64, use_xpos=True).rotate_queries_and_keys(q, k)
    right = xpos_scores(q, k).tril()
    return float(((new_q.double() @ new_k.double().mT).tril() - right).abs().max() / right.abs().max())


def xpos_offset(library: ModuleType) -> float:
    """An offset of 100 must rotate and scale the queries as tokens 100 positions later."""
    q, k = noise(1, 64), noise(64, 64)
    moved = library.RotaryEmbedding(64, use_xpos=True).rotate_queries_with_cached_keys(q, k, offset=100)
    longer = torch.cat((k, noise(100, 64, seed=1)))
    return worst(moved[0].double() @ moved[1].double().mT, xpos_scores(q, longer)[:, :64])


def xpos_sequence_first(heads: int) -> Callable[[ModuleType], float]:
    def measure(library: ModuleType) -> float:
        q, k = noise(16, heads, 64), noise(16, heads, 64, seed=1)
        module = library.RotaryEmbedding(64, use_xpos=True, seq_before_head_dim=True)
        new_q, new_k = (x.transpose(0, 1).double() for x in module.rotate_queries_with_cached_keys(q, k))
        right = torch.stack([xpos_scores(q[:, head], k[:, head]) for head in range(heads)])
        return worst(new_q @ new_k.mT, right)

    return measure


def xpos_history(library: ModuleType) -> float:
    """Change of `get_scale` caused by an earlier, longer call."""
    module, q = library.RotaryEmbedding(64, use_xpos=True), noise(512, 64)
    positions = module.get_seq_pos(16)
    before = module.get_scale(positions, seq_len=16).clone()
    module.rotate_queries_and_keys(q, q)
    return float((module.get_scale(positions, seq_len=16) - before).abs().max())


def learned(shape: tuple[int, ...], ranges: Tensor | None, dtype: torch.dtype) -> Callable[[ModuleType], float]:
    """Rotations of `shape` on tokens of the same shape with 64 channels."""

    def measure(library: ModuleType) -> float:
        x, rotations = noise(*shape[:-1], 64).to(dtype), noise(*shape, seed=1).to(dtype)
        sizes = None if ranges is None else ranges.to(dtype)
        right = rotations.double() if sizes is None else (rotations.double()[..., None] * sizes.double()).flatten(-2)
        got = library.apply_learned_rotations(rotations, x, freq_ranges=sizes)
        return worst(got, rotated(x, right))

    return measure


def after(spoil: Callable[[torch.nn.Module], object], **config: float) -> Callable[[ModuleType], float]:
    """Change of the float32 angles of positions 0 .. 3 caused by an earlier call."""

    def measure(library: ModuleType) -> float:
        module = library.RotaryEmbedding(64, **config)
        spoil(module)
        return float(
            (module(torch.arange(4.0), seq_len=4) - angles(torch.arange(4)).repeat_interleave(2, -1)).abs().max()
        )

    return measure


def axial_offsets(library: ModuleType) -> float:
    """Radians, in a square grid with offsets 0 and 10."""
    freqs = library.RotaryEmbedding(8).get_axial_freqs(4, 4, offsets=(0, 10))
    rows, columns = (angles(torch.arange(4) + shift, 8).repeat_interleave(2, -1) for shift in (0, 10))
    right = torch.cat((rows[:, None].expand(4, 4, 8), columns.expand(4, 4, 8)), -1)
    return float((freqs - right).abs().max())


def axial_interpolation(library: ModuleType) -> float:
    """Change of a grid's angles, in radians, caused by a call on a sequence."""
    module = library.RotaryEmbedding(8, interpolate_factor=2.0)
    before = library.RotaryEmbedding(8, interpolate_factor=2.0).get_axial_freqs(4, 4)
    module.rotate_queries_or_keys(noise(8, 8))
    return float((module.get_axial_freqs(4, 4) - before).abs().max())


def offset_after_longer_call(offset: float) -> Callable[[ModuleType], float]:
    def measure(library: ModuleType) -> float:
        module, x = library.RotaryEmbedding(64), noise(8, 64)
        module.rotate_queries_or_keys(noise(64, 64))
        return worst(module.rotate_queries_or_keys(x, offset=offset), rotated(x, angles(torch.arange(8) + offset)))

    return measure


def load_after_call(library: ModuleType) -> float:
    module, x = library.RotaryEmbedding(64), noise(8, 64)
    module.rotate_queries_or_keys(x)
    module.load_state_dict(library.RotaryEmbedding(64, theta=100).state_dict())
    return worst(module.rotate_queries_or_keys(x), rotated(x, angles(torch.arange(8), theta=100)))


def meta_device(library: ModuleType) -> float:
    """Materialised on the CPU as uninitialised memory, here ones."""
    with torch.device("meta"):
        module = library.RotaryEmbedding(64)
    module._apply(torch.ones_like if module.device.type == "cpu" else lambda x: torch.ones_like(x, device="cpu"))
    x = noise(8, 64)
    return worst(module.rotate_queries_or_keys(x), rotated(x, angles(torch.arange(8))))


def shape(dim: int, width: int, freqs: Tensor, **config: object) -> Callable[[ModuleType], float]:
    """A plain call with a number of frequencies other than dim / 2."""

    def measure(library: ModuleType) -> float:
        x = noise(8, width)
        got = library.RotaryEmbedding(dim, **config).rotate_queries_or_keys(x)
        return worst(got, rotated(x, torch.arange(8).double()[:, None] * freqs.double()))

    return measure


def positive_seq_dim(heads: int) -> Callable[[ModuleType], float]:
    """seq_dim=1 of [B T H D], the same axis as -3."""

    def measure(library: ModuleType) -> float:
        x = noise(1, 8, heads, 64)
        return worst(
            library.RotaryEmbedding(64).rotate_queries_or_keys(x, seq_dim=1),
            rotated(x, angles(torch.arange(8))[:, None]),
        )

    return measure


def rows_on_heads(library: ModuleType) -> float:
    """2-dim freqs [T R] with seq_dim=-3, as many heads as tokens."""
    x, module = noise(1, 8, 8, 64), library.RotaryEmbedding(64)
    return worst(
        library.apply_rotary_emb(module(torch.arange(8.0)), x, seq_dim=-3), rotated(x, angles(torch.arange(8))[:, None])
    )


def static_method(library: ModuleType) -> float:
    x = noise(8, 64)
    module = library.RotaryEmbedding(64)
    return worst(module.apply_rotary_emb(module(torch.arange(8.0)), x), rotated(x, angles(torch.arange(8))))
