"""A vision transformer that classifies digits in noise: trained at 20 x 20 pixels, also evaluated at 24 x 24 and 16 x 28.

python examples/vit_digits.py [--quick]
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional import Encoder, ViTransformerWrapper

ROWS = "75557262277174771717557117471774757711117575775717"  # rows of ten digits, three bits each
PIXELS = torch.tensor([int(bits) for bits in ROWS]).view(10, 5, 1) >> torch.tensor([2, 1, 0]) & 1
SIZES = ((20, 20), (24, 24), (16, 28))


def draw(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images [B 1 H W] of noise with a digit of 10 x 6 pixels at a random place, and the digits [B]."""
    labels, images = torch.randint(10, (count,)), torch.rand(count, 1, height, width) * 0.6
    digits = PIXELS[labels].repeat_interleave(2, 1).repeat_interleave(2, 2) * 0.8
    for image, digit in zip(images, digits, strict=True):
        top, left = int(torch.randint(height - 9, ())), int(torch.randint(width - 5, ()))
        image[0, top : top + 10, left : left + 6] += digit
    return images, labels


def train(position: str, steps: int) -> ViTransformerWrapper:
    torch.manual_seed(0)
    layers = Encoder(dim=64, depth=3, heads=4, attn_dim_head=16, position=position)
    model = ViTransformerWrapper(image_size=SIZES[0], patch_size=4, attn_layers=layers, channels=1, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        images, labels = draw(48, *SIZES[0])
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(), loss.backward(), torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step()
        if step % 50 == 0:
            print(f"{position}: step {step}/{steps}  loss {loss.item():.2f}", flush=True)
    return model.eval()


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only a few steps")
    steps, right = 150 if parser.parse_args(arguments).quick else 900, {}
    for position in ("axial", "absolute"):
        model, right[position] = train(position, steps), []
        for size in SIZES:
            images, labels = draw(400, *size)
            with torch.no_grad():
                right[position].append((model(images).argmax(-1) == labels).double().mean().item())
        print(position, *(f"{h} x {w}: {share:.1%}" for (h, w), share in zip(SIZES, right[position], strict=True)))
    return right


if __name__ == "__main__":
    main()
