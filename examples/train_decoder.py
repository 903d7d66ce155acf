"""Train a small byte-level rotary decoder on the documentation topics that ship with Python, then sample from it.

python examples/train_decoder.py [--quick]
"""

import argparse
import math
import time
from pydoc_data.topics import topics

import torch
from torch import Tensor

from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper


def texts() -> tuple[Tensor, Tensor]:
    """Training and validation bytes (every tenth topic): two tensors [N] of ids from 0 to 255."""
    names = sorted(topics)
    validation = set(names[::10])
    parts = ["\n\n".join(topics[n] for n in names if (n in validation) == held_out) for held_out in (False, True)]
    return torch.tensor(list(parts[0].encode())), torch.tensor(list(parts[1].encode()))


def windows(text: Tensor, count: int, length: int) -> Tensor:
    """[count, length + 1] windows at random offsets."""
    starts = torch.randint(len(text) - length, (count, 1))
    return text[starts + torch.arange(length + 1)]


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    steps, size = (25, 16) if parser.parse_args(arguments).quick else (600, 128)
    torch.manual_seed(0)
    train, validation = texts()
    layers = Decoder(dim=128, depth=3, heads=4, attn_dim_head=32, rotary_pos_emb=True)
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=256, max_seq_len=size, attn_layers=layers))
    print(model.net.describe())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    began = time.time()
    for step in range(1, steps + 1):
        loss = model(windows(train, 16, size))
        optimizer.zero_grad(), loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step()
        if step % 25 == 0:
            bits = loss.item() / math.log(2)
            print(f"step {step}/{steps}  {bits:.2f} bits per byte  {time.time() - began:.0f} s", flush=True)
    with torch.no_grad():
        bits = model(windows(validation, 64, size)).item() / math.log(2)
    print(f"validation: {bits:.2f} bits per byte (8 is a uniform guess)")
    new = model.generate(torch.tensor(list(b"The following ")), 200, temperature=0.7, seed=0)
    print("The following " + bytes(new.tolist()).decode(errors="replace"))
    return bits


if __name__ == "__main__":
    main()
