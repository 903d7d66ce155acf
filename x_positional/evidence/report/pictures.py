"""What position schemes do, measured and stored as data: a page can be drawn again without the weights.

Sizes are bounded: at most HEADS heads, maps of SIDE x SIDE, POINTS distances.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from x_positional.config.layers import LayersConfig
from x_positional.errors import XPositionalError
from x_positional.evidence.evaluation.results import Record
from x_positional.models.language import TransformerWrapper
from x_positional.modules.stack import AttentionLayers
from x_positional.plotting.biases import ScoreBias, adds_bias, bias_map, bias_of_distance, farthest
from x_positional.plotting.canvas import evenly_spaced
from x_positional.plotting.draw_embeddings import embeds, similarity, table
from x_positional.plotting.draw_products import most_varying, products
from x_positional.plotting.draw_rotation import first_channels, wavelengths
from x_positional.plotting.gallery import facts
from x_positional.plotting.rotation import find_pairs, phasors, rotates
from x_positional.plotting.schemes import PlottedScheme, Stage, plotted_schemes

HEADS, SIDE, ROUGH_SIDE, POINTS, PAIRS, TOKENS = 8, 64, 32, 160, 32, 256
"""ROUGH_SIDE is for maps that are not a function of the distance alone; TOKENS is the most that a map covers."""
DIGITS = 4

Values = tuple[float | None, ...]


class Map(Record):
    """Values by query and key, every `step` tokens, one row of `values` a head."""

    step: int
    side: int
    """Queries, and keys."""
    by_distance: bool
    """`values` are those of distances 1 - side to side - 1 (in steps); otherwise query by query."""
    values: tuple[Values, ...]


class Bias(Record):
    """What is added to the attention scores, in logits."""

    heads: tuple[int, ...]
    """Numbers from 1 of the heads that are shown."""
    of_heads: int
    distances: tuple[int, ...]
    """Query position minus key position."""
    values: tuple[Values, ...]
    """[head][distance]"""
    map: Map
    note: str = ""
    """What it was measured on."""


class Rotation(Record):
    """How queries and keys are rotated."""

    channels: tuple[int, ...] = ()
    """The first channel of each pair; empty where there are no pairs of two channels."""
    wavelengths: Values = ()
    """Positions per turn; None where a pair does not rotate."""
    unscaled: Values = ()
    """Before RoPE scaling; empty without one."""
    positions: tuple[int, ...] = ()
    cosines: tuple[Values, ...] = ()
    """[pair][position]: cosine of the angle by which a pair is rotated, of every pair in `shown_channels`."""
    shown_channels: tuple[int, ...] = ()
    distances: tuple[int, ...] = ()
    products: Values = ()
    """Of an equal query and key of unit length, by distance, in the head that varies most."""


class SchemePicture(Record):
    """One scheme with the parameters of one stage."""

    section: str
    """The scheme's name; equal in all stages."""
    summary: str
    stage: str | None = None
    """`before training`, `after 200 training steps`; None for a new scheme, or one without learned parameters."""
    trained_length: int
    bias: Bias | None = None
    rotation: Rotation | None = None
    similarity: Map | None = None
    """Cosine similarity of position embeddings, for schemes that have some."""
    note: str = ""
    """Which learned parameters these are."""
    problem: str | None = None
    """Why it could not be measured."""


class Pictures(Record):
    """The schemes of a model."""

    facts: str
    """The model in a few words."""
    schemes: tuple[SchemePicture, ...]


def pictures_of(
    model: TransformerWrapper, *, initial: TransformerWrapper | None = None, when: str = "after training"
) -> Pictures:
    """Measure the schemes of a trained model, beside those of `initial`, the same model before training.

    Args:
        model: A decoder or encoder on any device; its schemes are copied to the CPU.
        initial: Built with the seed of the run.
        when: The stage of `model` in words, as in "after 200 training steps".
    """
    stages = [Stage("trained", when, _on_cpu(model))]
    if initial is not None:
        stages.insert(0, Stage("initial", "before training", _on_cpu(initial)))
    config = model.config
    return measure(config.layers, config.max_seq_len, embed_dim=config.placed_dim, stages=stages)


def not_measured(section: str, problem: str, trained_length: int) -> Pictures:
    """In place of pictures that could not be made."""
    scheme = SchemePicture(section=section, summary="", trained_length=trained_length, problem=problem)
    return Pictures(facts="", schemes=(scheme,))


def measure(
    layers: LayersConfig, max_seq_len: int, *, embed_dim: int | None = None, stages: Sequence[Stage] = ()
) -> Pictures:
    """Measure the schemes of a stack, as `plotting.draw` does.

    Args:
        layers: The stack.
        max_seq_len: The context length of the model.
        embed_dim: Width of the embeddings, if it differs from `layers.dim`.
        stages: Whose learned parameters to measure; by default those of a new scheme.
    """
    schemes = plotted_schemes(layers, max_seq_len, embed_dim, stages)
    return Pictures(facts=facts(layers, max_seq_len), schemes=tuple(map(_measured, schemes)))


def _on_cpu(model: TransformerWrapper) -> AttentionLayers:
    parameters = list(model.attn_layers.parameters())
    if all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters):
        return model.attn_layers
    return copy.deepcopy(model.attn_layers).cpu().float()


@torch.no_grad()
def _measured(plotted: PlottedScheme) -> SchemePicture:
    summary = f"{plotted.config.summary} ({plotted.config.paper})" if plotted.config.paper else plotted.config.summary
    base = SchemePicture(
        section=plotted.section,
        summary=summary,
        stage=None if plotted.stage is None else plotted.stage.when,
        trained_length=plotted.trained,
        note=plotted.learned_note.strip() if plotted.stage is None else "",
    )
    try:
        return base.model_copy(
            update={
                "bias": _bias(plotted) if adds_bias(plotted.scheme) else None,
                "rotation": _rotation(plotted) if rotates(plotted.scheme) else None,
                "similarity": _similarity(plotted) if embeds(plotted) else None,
            }
        )
    except XPositionalError as error:
        return base.model_copy(update={"problem": str(error)})


def _bias(plotted: PlottedScheme) -> Bias:
    heads = evenly_spaced(plotted.dims.heads, HEADS)
    distances = _distances(farthest(plotted), both_sides=not plotted.dims.causal)
    found = bias_of_distance(plotted, distances)
    tokens = min(plotted.max_seq_len, TOKENS)
    return Bias(
        heads=tuple(head + 1 for head in heads),
        of_heads=plotted.dims.heads,
        distances=tuple(distances.tolist()),
        values=tuple(_values(found.values[head]) for head in heads),
        map=_map(bias_map(plotted, tokens).values[heads]),
        note=_note(plotted, found),
    )


def _note(plotted: PlottedScheme, found: ScoreBias) -> str:
    text = "Measured on random, normally distributed queries, keys and inputs." if found.content_dependent else ""
    if found.randomized:
        text += " The initial parameters add nothing, so random ones are shown."
    return text.strip()


def _rotation(plotted: PlottedScheme) -> Rotation:
    distances = _distances(plotted.horizon, both_sides=False)
    product = products(plotted.probe, distances)
    by_distance = {"distances": tuple(distances.tolist()), "products": _values(product.equal[most_varying(product)])}
    length = plotted.horizon + 1
    pairs = find_pairs(plotted.probe, length)
    if pairs is None:
        return Rotation(**by_distance)
    unscaled: Values = ()
    if plotted.unscaled is not None and (before := find_pairs(plotted.unscaled, length)) is not None:
        waves = dict(zip(before.inputs, wavelengths(plotted.unscaled, before, length).tolist(), strict=True))
        unscaled = _values(torch.tensor([waves.get(channels, math.inf) for channels in pairs.inputs]))
    positions = torch.arange(0, min(plotted.max_seq_len, TOKENS), max(1, min(plotted.max_seq_len, TOKENS) // SIDE))
    shown = evenly_spaced(len(pairs.inputs), PAIRS)
    angles = phasors(plotted.probe, pairs, positions, plotted.max_seq_len)[:, shown].angle().cos()
    channels = first_channels(pairs)
    return Rotation(
        **by_distance,
        channels=tuple(channels.tolist()),
        wavelengths=_values(wavelengths(plotted.probe, pairs, length)),
        unscaled=unscaled,
        positions=tuple(positions.tolist()),
        cosines=tuple(map(_values, angles.mT)),
        shown_channels=tuple(channels[shown].tolist()),
    )


def _similarity(plotted: PlottedScheme) -> Map:
    return _map(similarity(table(plotted, min(plotted.max_seq_len, TOKENS)))[None])


def _distances(reach: int, *, both_sides: bool) -> Tensor:
    """[N] distances: all of the short ones, then each a little farther, up to `reach`."""
    near = torch.arange(min(reach, POINTS // 3) + 1)
    far = torch.logspace(0, math.log10(max(reach, 1)), POINTS - len(near), dtype=torch.float64).round().long()
    grid = torch.cat([near, far]).unique()
    return torch.cat([-grid.flip(0), grid]).unique() if both_sides else grid


def _map(values: Tensor) -> Map:
    """[H T T] -> every `step` tokens; by distance where every diagonal has one value."""
    tokens = values.shape[-1]
    step = -(-tokens // SIDE)
    thin = values[:, ::step, ::step]
    side = thin.shape[-1]
    diagonals = [torch.diagonal(thin, -distance, 1, 2) for distance in range(1 - side, side)]
    if all(bool(torch.isclose(d, d[:, :1], rtol=1e-4, atol=1e-6, equal_nan=True).all()) for d in diagonals):
        rows = torch.stack([diagonal[:, 0] for diagonal in diagonals], 1)
        return Map(step=step, side=side, by_distance=True, values=tuple(map(_values, rows)))
    step = -(-tokens // ROUGH_SIDE)
    thin = values[:, ::step, ::step]
    return Map(
        step=step, side=thin.shape[-1], by_distance=False, values=tuple(_values(head.flatten()) for head in thin)
    )


def _values(numbers: Tensor) -> Values:
    """Rounded to DIGITS digits; None where not finite."""
    return tuple(float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in numbers.tolist())
