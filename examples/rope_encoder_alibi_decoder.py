"""Two schemes in one model: a rotary encoder and an ALiBi decoder, trained to spell words backwards.

python examples/rope_encoder_alibi_decoder.py [--quick]
"""

import argparse
import time

import torch
from torch import Tensor

from x_positional import XTransformer

START, LETTERS, LONGEST = 0, 26, 9


def words(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random words [B 9] of 3 to 9 letters (ids 1 to 26), right-padded; their mask; and the words reversed [B 10].

    Each reversed word follows a start token and is padded with -100, which the loss ignores.
    """
    lengths = torch.randint(3, LONGEST + 1, (count, 1))
    index = torch.arange(LONGEST)
    source, mask = torch.randint(1, LETTERS + 1, (count, LONGEST)), index < lengths
    backwards = source.gather(1, (lengths - 1 - index).clamp(min=0))
    target = torch.cat([torch.full((count, 1), START), torch.where(mask, backwards, -100)], dim=1)
    return source, mask, target


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    steps = 40 if parser.parse_args(arguments).quick else 500
    torch.manual_seed(0)
    sizes = {"num_tokens": 27, "max_seq_len": 16, "depth": 2, "heads": 2, "attn_dim_head": 32}
    sides = {f"{side}_{name}": size for side in ("enc", "dec") for name, size in sizes.items()}
    model = XTransformer(dim=64, tie_token_emb=True, enc_rotary_pos_emb=True, dec_alibi_pos_bias=True, **sides)
    print(model.describe())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    began = time.time()
    for step in range(1, steps + 1):
        source, mask, target = words(64)
        loss = model(source, target, mask=mask)
        optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()
        if step % 40 == 0:
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {time.time() - began:.0f} s", flush=True)
    source, mask, target = words(200)
    reversed_words = model.generate(source, target[:, :1], LONGEST, mask=mask, temperature=0)
    accuracy = ((reversed_words == target[:, 1:]) | ~mask).all(-1).float().mean().item()
    print(f"{accuracy:.1%} of 200 new words were reversed without a mistake")
    return accuracy


if __name__ == "__main__":
    main()
