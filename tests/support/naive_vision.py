"""A vision transformer written out in float64: patches, positions as complex rotations, blocks, pooling.

T patches, E tokens that are no patch, H heads, D head dim, F = D/2 pairs, M model dim.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional import ViTransformerWrapper
from x_positional.schemes import AxialEmbedding, MixedEmbedding, NoPosition, RopeEmbedding, SinusoidalEmbedding


def normed(x: Tensor, gain: Tensor) -> Tensor:
    """Layer norm without bias."""
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def cut(image: Tensor, height: int, width: int) -> list[Tensor]:
    """[C H W] -> the pixels of each patch, row by row; within it by row, column, channel."""
    rows, columns = image.shape[1] // height, image.shape[2] // width
    return [
        torch.stack(
            [
                image[channel, row * height + y, column * width + x]
                for y in range(height)
                for x in range(width)
                for channel in range(len(image))
            ]
        )
        for row in range(rows)
        for column in range(columns)
    ]


def coordinate(i: int, size: int, trained: int, how: str) -> float:
    return {"index": i, "rescaled": i * trained / size, "centered": (i + 0.5) / size * 2 - 1}[how]


def weights(at: float, size: int, how: str) -> list[tuple[int, float]]:
    """Keys' cubic convolution with a = -0.75, or the straight line, at a place between the entries of a table; entries
    past an end are those of the end."""
    first, a = math.floor(at), -0.75

    def cubic(x: float) -> float:
        x = abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    if how == "bilinear":
        near = [(n, 1 - abs(max(at, 0.0) - n)) for n in (math.floor(max(at, 0.0)), math.floor(max(at, 0.0)) + 1)]
    else:
        near = [(n, cubic(at - n)) for n in range(first - 1, first + 3)]
    return [(min(max(n, 0), size - 1), weight) for n, weight in near]


def resized(table: Tensor, grid: tuple[int, int], how: str) -> Tensor:
    """[rows columns M] -> [T M]; the edges of both grids lie on each other."""
    if grid == tuple(table.shape[:2]):
        return table.flatten(0, 1)
    places = [[(i + 0.5) * old / new - 0.5 for i in range(new)] for new, old in zip(grid, table.shape, strict=False)]
    return torch.stack(
        [
            torch.stack(
                [
                    wr * wc * table[r, c]
                    for r, wr in weights(row, table.shape[0], how)
                    for c, wc in weights(column, table.shape[1], how)
                ]
            ).sum(0)
            for row in places[0]
            for column in places[1]
        ]
    )


def angles(scheme: RopeEmbedding | MixedEmbedding | NoPosition, at: Tensor, heads: int, head_dim: int) -> Tensor:
    """[H E+T F] how far each pair turns; `at` is [E+T 2] (row, column), or [E+T 1] the number of the patch."""
    pairs = head_dim // 2
    if isinstance(scheme, MixedEmbedding):
        return torch.einsum("ta,hfa->htf", at, scheme.rate.double())
    if isinstance(scheme, AxialEmbedding):
        each = pairs // 2
        rates = torch.tensor([scheme.theta ** (-4 * i / head_dim) for i in range(each)], dtype=torch.float64)
        if scheme.freqs == "pixel":
            step = (scheme.max_freq / 2 - 1) / (each - 1)
            rates = torch.tensor([math.pi * (1 + i * step) for i in range(each)], dtype=torch.float64)
        turn = torch.cat([at[:, :1] * rates, at[:, 1:] * rates], -1)
    elif isinstance(scheme, RopeEmbedding):
        turn = at * torch.tensor([scheme.theta ** (-2 * i / head_dim) for i in range(pairs)], dtype=torch.float64)
    else:
        turn = torch.zeros(len(at), pairs, dtype=torch.float64)
    return turn.expand(heads, -1, -1)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """[H T D] with pairs (i, i + D/2) turned by [H T F]."""
    pairs = x.shape[-1] // 2
    z = torch.complex(x[..., :pairs], x[..., pairs:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def waves(T: int, M: int) -> Tensor:
    """[T M] sin and cos in turn of t 10000^(-2i/M)."""
    return torch.tensor(
        [[(math.cos if c % 2 else math.sin)(t * 10_000 ** (-2 * (c // 2) / M)) for c in range(M)] for t in range(T)],
        dtype=torch.float64,
    )


def block(x: Tensor, part: Any, angle: Tensor) -> Tensor:
    """[T M] -> [T M]: pre-norm attention and feedforward."""
    heads, head_dim = part.attn.heads, part.attn.head_dim
    n = normed(x, part.attn_residual.before.gain + 1)
    q, k, v = (n @ part.attn.to_qkv.weight.t()).unflatten(-1, (3, heads, head_dim)).permute(1, 2, 0, 3)
    scores = turned(q, angle) @ turned(k, angle).transpose(1, 2) / math.sqrt(head_dim)
    x = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ part.attn.to_out.weight.t()
    n = normed(x, part.ff_residual.before.gain + 1)
    return x + F.gelu(n @ part.ff.up.weight.t() + part.ff.up.bias) @ part.ff.down.weight.t() + part.ff.down.bias


def naive(vision: ViTransformerWrapper, image: Tensor, kept: list[int] | None = None) -> Tensor:
    """[C H W] -> [classes], with the weights of `vision` in float64 and nothing else of it. kept: the only patches."""
    config, model = vision.config, cast(Any, vision)  # of a module's attributes only its author knows the types
    layers, embedding, to_logits = model.attn_layers, model.patch_embedding, model.to_logits
    patches = torch.stack(cut(image, *config.patch_size))
    grid = (image.shape[1] // config.patch_size[0], image.shape[2] // config.patch_size[1])
    if config.patch_norms:
        x = normed(patches, embedding.pixel_norm.weight) @ embedding.project.weight.t() + embedding.project.bias
        x = normed(x, embedding.norm.weight)
    else:
        x = patches @ embedding.project.weight.permute(0, 2, 3, 1).flatten(1).t() + embedding.project.bias
    cls = model.cls_token
    if model.patch_table is not None:
        table, scale = model.patch_table.table, model.patch_table.scale
        if config.cls_position:
            cls, table = cls + scale * table[:1], table[1:].unflatten(0, config.grid)
        x = x + scale * resized(table, grid, config.interpolation)
    schemes = list(layers.schemes)
    if any(isinstance(scheme, SinusoidalEmbedding) for scheme in schemes):
        x = x + waves(len(x), x.shape[1])
    if model.emb_norm is not None:
        x = normed(x, model.emb_norm.gain)
    at = [
        [coordinate(i, n, old, config.coordinates) for i, n, old in zip(place, grid, config.grid, strict=True)]
        for place in ((row, column) for row in range(grid[0]) for column in range(grid[1]))
    ]
    if model.axes < 2:
        at = [[float(i)] for i in range(len(at))]
    if kept is not None:
        x, at = x[kept], [at[number] for number in kept]
    beside = [t for t in (cls, model.register_tokens) if t is not None]
    places = torch.tensor([[0.0] * len(at[0])] * sum(map(len, beside)) + at, dtype=torch.float64)
    x = torch.cat([*beside, x])
    for number, part in enumerate(layers.blocks):
        scheme = schemes[number if schemes[0].per_layer else 0]
        x = block(x, part, angles(scheme, places, part.attn.heads, part.attn.head_dim))
    x = normed(x, layers.final_norm.gain + 1)
    mean = x[len(x) - len(at) :].mean(0)
    pooled = {"mean": mean, "cls": x[0], "cls_mean": torch.cat([x[0], mean])}[config.pool]
    return pooled @ to_logits.weight.t() + to_logits.bias
