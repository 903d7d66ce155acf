"""Pictures of what is added to token embeddings: the table, and how alike its rows are.

T positions, M model dim.
"""

from x_positional.plotting.canvas import Picture, figure, limits, png
from x_positional.plotting.embeddings import similarity, table
from x_positional.plotting.part import Part

ROWS = 512


def draw_table(part: Part) -> Picture:
    """Position by channel."""
    rows = table(part, _rows(part))
    colour_map, low, high = limits(rows)
    drawn = figure(7.2, 4.4)
    axes = drawn.subplots()
    image = axes.imshow(rows.numpy(), cmap=colour_map, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.set(xlabel="channel of the embedding", ylabel="position")
    drawn.colorbar(image, ax=axes, label="added to the embedding")
    sentence = (
        f"What each of the first {len(rows)} positions adds to the {rows.shape[1]} channels of a token's embedding, "
        f"between {float(rows.min()):.3g} and {float(rows.max()):.3g}."
    )
    if part.scheme.limit is not None:
        sentence += f" There is no row after position {part.scheme.limit - 1}."
    return Picture(f"{part.name}-table", "Table", sentence + part.learned, png(drawn))


def draw_similarity(part: Part) -> Picture:
    """Position by position."""
    cosines = similarity(table(part, _rows(part)))
    colour_map, low, high = limits(cosines)
    drawn = figure(5.6, 4.6)
    axes = drawn.subplots()
    image = axes.imshow(cosines.numpy(), cmap=colour_map, vmin=low, vmax=high, interpolation="nearest")
    axes.set(xlabel="position", ylabel="position")
    drawn.colorbar(image, ax=axes, label="cosine similarity")
    last = len(cosines) - 1
    half = last // 2
    beside = f"{float(cosines.diagonal(1).mean()):.2f}" if last else "1"
    sentence = (
        f"How alike the vectors of two positions are: neighbours {beside} on average, positions {half} apart "
        f"{float(cosines.diagonal(half).mean()):.2f}."
    )
    return Picture(f"{part.name}-similarity", "Cosine similarity of positions", sentence, png(drawn))


def _rows(part: Part) -> int:
    return min(part.max_seq_len, part.horizon + 1, ROWS)
