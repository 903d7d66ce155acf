"""Masked-token training of an encoder: mask some bytes of a text and predict them from both sides.

python examples/masked_tokens_encoder.py [--quick]
"""

import argparse
import time
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional import Encoder, TransformerWrapper

MASK = 256  # the id after the 256 bytes


def mask(text: Tensor, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Windows [B T] of the text with 15 percent of their tokens masked, and the targets: -100 where not masked."""
    tokens = text[torch.randint(len(text) - length, (count, 1)) + torch.arange(length)]
    chosen = torch.rand(count, length) < 0.15
    return tokens.masked_fill(chosen, MASK), tokens.masked_fill(~chosen, -100)


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only a few steps")
    steps = 60 if parser.parse_args(arguments).quick else 1000
    torch.manual_seed(0)
    text = torch.tensor(list("\n\n".join(topics[name] for name in sorted(topics)).encode()))
    train, held_out = text.split([len(text) * 9 // 10, len(text) - len(text) * 9 // 10])
    layers = Encoder(dim=128, depth=3, heads=4, attn_dim_head=32, position="rope")
    model = TransformerWrapper(num_tokens=257, max_seq_len=64, attn_layers=layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    began = time.time()
    for step in range(1, steps + 1):
        tokens, targets = mask(train, 16, 64)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad(), loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step()
        if step % 30 == 0:
            print(f"step {step}/{steps}  loss {loss.item():.2f}  {time.time() - began:.0f} s", flush=True)
    tokens, targets = mask(held_out, 128, 64)
    with torch.no_grad():
        accuracy = (model.eval()(tokens).argmax(-1) == targets)[targets != -100].float().mean().item()
    baseline = (targets[targets != -100] == ord(" ")).float().mean().item()
    print(f"{accuracy:.1%} of the masked bytes of unseen text are predicted (always a space: {baseline:.1%})")
    return accuracy, baseline


if __name__ == "__main__":
    main()
