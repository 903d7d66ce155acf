"""What a scheme adds to token embeddings, asked from its hook.

T positions, M model dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.plotting.part import Part


def embeds(part: Part) -> bool:
    """Whether it adds anything to embeddings."""
    return part.scheme.overrides("embed")


@torch.no_grad()
def table(part: Part, positions: int) -> Tensor:
    """[T M]: what is added at positions 0, 1, 2, ..."""
    zeros = torch.zeros(1, positions, part.dims.embed_dim)
    return part.scheme.embed(zeros, part.subject.place(torch.arange(positions)))[0]


def similarity(rows: Tensor) -> Tensor:
    """[T M] -> [T T] cosines between rows."""
    rows = F.normalize(rows.double(), dim=-1)
    return (rows @ rows.mT).float()
