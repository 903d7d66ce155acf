"""A custom position scheme: registered by name, checked by the contract suite, and used like any other.

The scheme is a Gaussian window of learned width (after Yang et al. 2018, arXiv:1810.10182, centred at the query).
python examples/your_own_scheme.py [--quick]
"""

import argparse
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional import Decoder, Dims, TransformerWrapper
from x_positional.schemes import DistanceScheme
from x_positional.schemes.precision import widened
from x_positional.schemes.registry import SchemeConfig
from x_positional.testing import ContractReport, check_scheme


class Gaussian(DistanceScheme):
    """bias = -distance^2 / (2 width^2), with a positive, learned width per head."""

    def __init__(self, heads: int):
        super().__init__(heads)
        self.width = nn.Parameter(torch.linspace(2.0, 32.0, heads))

    def of_distance(self, distance: Tensor) -> Tensor:
        """[...] -> [H ...], in logits."""
        width = F.softplus(widened(self.width)).reshape(-1, *[1] * distance.ndim)  # float32: squares are large
        return -0.5 * (distance / width).square()


class GaussianConfig(SchemeConfig):
    """`position="gaussian"`: defining this class registers the name."""

    kind: Literal["gaussian"] = "gaussian"
    summary: ClassVar[str] = "a Gaussian window of learned width per head"
    paper: ClassVar[str] = "Yang et al. 2018, arXiv:1810.10182"

    def build(self, dims: Dims) -> Gaussian:
        return Gaussian(dims.heads)


def main(arguments: list[str] | None = None) -> ContractReport:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only some of the checks")
    some = ("cached_equals_full", "packing", "shift") if parser.parse_args(arguments).quick else None
    print("checking gaussian, at most a minute ...", flush=True)
    report = check_scheme("gaussian", only=some)  # raises ContractError if a check fails
    print(report)
    model = TransformerWrapper(
        num_tokens=256, max_seq_len=128, attn_layers=Decoder(dim=64, depth=2, heads=4, position=["rope", "gaussian"])
    )
    print(model.describe(), model.config.to_yaml(), sep="\n")
    return report


if __name__ == "__main__":
    main()
