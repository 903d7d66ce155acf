"""What a scheme adds to token embeddings, measured by calling its hook.

T positions, M model dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.plotting.schemes import PlottedScheme


def embeds(plotted: PlottedScheme) -> bool:
    """Whether the scheme adds to embeddings."""
    return plotted.scheme.overrides("embed")


@torch.no_grad()
def table(plotted: PlottedScheme, positions: int) -> Tensor:
    """[T M]: what is added at positions 0 to T - 1."""
    zeros = torch.zeros(1, positions, plotted.dims.embed_dim)
    return plotted.scheme.embed(zeros, plotted.probe.on_axes(torch.arange(positions)))[0]


def similarity(rows: Tensor) -> Tensor:
    """[T M] -> [T T]: cosine similarity of the rows."""
    rows = F.normalize(rows.double(), dim=-1)
    return (rows @ rows.mT).float()
