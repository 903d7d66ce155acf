"""A custom position scheme: registered by name, checked by the contract suite, and used like any other.

The scheme is KERPLE with the logarithmic kernel (Chi et al. 2022, arXiv:2205.09921, equation 7).
python examples/your_own_scheme.py [--quick]
"""

import argparse
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional import Decoder, Dims, TransformerWrapper
from x_positional.schemes import DistanceScheme
from x_positional.schemes.registry import SchemeConfig
from x_positional.testing import ContractReport, check_scheme


class Kerple(DistanceScheme):
    """bias = -r1 * log(1 + r2 * |distance|), with positive, learned r1 and r2 per head."""

    def __init__(self, heads: int):
        super().__init__(heads)
        self.r1, self.r2 = (nn.Parameter(torch.rand(heads)) for _ in range(2))

    def of_distance(self, distance: Tensor) -> Tensor:
        """[...] -> [H ...], in logits."""
        r1, r2 = (F.softplus(r).reshape(-1, *[1] * distance.ndim) for r in (self.r1, self.r2))
        return -r1 * torch.log1p(r2 * distance.abs())


class KerpleConfig(SchemeConfig):
    """`position="kerple"`: defining this class registers the name."""

    kind: Literal["kerple"] = "kerple"
    summary: ClassVar[str] = "a learned logarithmic penalty per head"
    paper: ClassVar[str] = "Chi et al. 2022, arXiv:2205.09921"

    def build(self, dims: Dims) -> Kerple:
        return Kerple(dims.heads)


def main(arguments: list[str] | None = None) -> ContractReport:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only some of the checks")
    some = ("cached_equals_full", "packing", "shift") if parser.parse_args(arguments).quick else None
    print("checking kerple, at most a minute ...", flush=True)
    report = check_scheme("kerple", only=some)  # raises ContractError if a check fails
    print(report)
    model = TransformerWrapper(
        num_tokens=256, max_seq_len=128, attn_layers=Decoder(dim=64, depth=2, heads=4, position=["rope", "kerple"])
    )
    print(model.describe())
    print(model.config.to_yaml())
    return report


if __name__ == "__main__":
    main()
