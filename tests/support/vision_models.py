"""A small perturbed vision model in float64, and images for it."""

import torch
from torch import Tensor

from tests.support.perturbing import perturb
from x_positional import Encoder, ViTransformerWrapper


def build(position="axial", depth: int = 2, **settings) -> ViTransformerWrapper:
    """3 x 5 patches of 4 x 4 pixels with 2 channels; every parameter perturbed, float64."""
    torch.manual_seed(1)
    layers = Encoder(dim=22, depth=depth, heads=3, attn_dim_head=8, position=position)
    sizes = {"image_size": (12, 20), "patch_size": 4, "channels": 2, "num_classes": 5}
    model = ViTransformerWrapper(attn_layers=layers, **{**sizes, **settings}).double().eval()
    perturb(model)
    return model


def images(height: int, width: int, batch: int = 2, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height + width)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
