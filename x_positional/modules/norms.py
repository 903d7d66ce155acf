"""Norms by name. Gains are stored as an offset from one, so that weight decay pulls them towards the identity.

Tensors are [..., M]; the last axis is normalized, in float32 where the input is narrower.
"""

from typing import Literal

import torch
from torch import Tensor, nn

NormKind = Literal["layer", "rms", "scale", "simple_rms", "none"]
EPS: dict[NormKind, float] = {"layer": 1e-5, "rms": 1e-6, "scale": 1e-6, "simple_rms": 1e-6, "none": 1e-6}
"""eps of each kind where none is given."""


class Norm(nn.Module):
    """A norm over the last axis.

    Args:
        dim: M.
        kind: layer (mean and variance, Ba et al. 2016, arXiv:1607.06450), rms (Zhang & Sennrich 2019, arXiv:1910.07467), scale
            (one gain for all channels, Nguyen & Salazar 2019, arXiv:1910.05895), simple_rms (no gain), none (identity).
        eps: None is the default of the kind.
        bias: layer only.
        unit_offset: the gain is stored as gain - 1.
        gain: False leaves it out (layer, rms).
    """

    def __init__(
        self,
        dim: int,
        kind: NormKind = "layer",
        eps: float | None = None,
        bias: bool = False,
        unit_offset: bool = True,
        gain: bool = True,
    ):
        super().__init__()
        self.dim, self.kind, self.unit_offset = dim, kind, unit_offset
        self.eps = EPS[kind] if eps is None else eps
        gains = {"layer": dim, "rms": dim, "scale": 1}.get(kind) if gain else None
        start = 0.0 if unit_offset else 1.0
        self.gain = None if gains is None else nn.Parameter(torch.full((gains,), start))
        self.shift = nn.Parameter(torch.zeros(dim)) if bias and kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """[... M] -> [... M]."""
        if self.kind == "none":
            return x
        gain = self.gain
        if gain is not None and self.unit_offset:
            gain = gain + 1.0
        if self.kind == "layer":
            return torch.layer_norm(
                x, (self.dim,), gain, self.shift, self.eps
            )  # not F's, which reads settings of cuDNN
        if self.kind == "scale" and gain is not None:  # rms_norm takes a gain per channel only
            return torch.rms_norm(x, (self.dim,), None, self.eps) * gain
        return torch.rms_norm(x, (self.dim,), gain, self.eps)
