"""Dates in many spellings -> ISO 8601, evaluated on dates that were never trained on. Needs `pip install babel`.

python examples/dates_seq2seq.py [--quick]"""

import argparse
import random
import re
import time
from datetime import date, timedelta

import torch
from babel.dates import format_date
from torch import Tensor, nn

from x_positional import XTransformer

LOCALES = ["en", "en_GB", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "fi", "pl", "cs", "hu", "tr", "id", "ja"]
FORMATS = ["full", "long", "medium", "short", "d MMMM y", "MMM d, y", "EEE d MMM y", "y MMMM d"]
DAYS = [date(1970, 1, 1) + timedelta(days) for days in range(36524)]  # a century, so that "24" is one year


def spell(day: date) -> str:
    """'7. März 2024', 'thursday, march 7, 2024', '2024/03/07', ...; never a spelling that could also be another day."""
    text = format_date(day, random.choice(FORMATS), random.choice(LOCALES))
    ambiguous = day.day <= 12 and re.match(r"\d+/\d+/", text)  # 7/3/24: March or July?
    return spell(day) if ambiguous else random.choice([str, str.lower, str.upper])(text)


def batch(days: list[date]) -> tuple[Tensor, Tensor, Tensor]:
    """Spellings [B S] as bytes padded with 0, their mask, and the ISO dates [B 11] with a start token 0."""
    source = nn.utils.rnn.pad_sequence([torch.tensor(list(spell(day).encode())) for day in days], batch_first=True)
    return source, source != 0, torch.tensor([[0, *day.isoformat().encode()] for day in days])


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    steps, held_out = (30, 50) if parser.parse_args(arguments).quick else (2000, 2000)
    torch.manual_seed(0), random.seed(0), random.shuffle(days := list(DAYS))
    side = {"num_tokens": 256, "max_seq_len": 64, "depth": 2, "heads": 2, "attn_dim_head": 32, "rotary_pos_emb": True}
    model = XTransformer(dim=64, tie_token_emb=True, **{s + k: v for s in ("enc_", "dec_") for k, v in side.items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    began = time.time()
    for step in range(1, steps + 1):
        source, mask, target = batch(random.choices(days[held_out:], k=64))
        loss = model(source, target, mask=mask)
        optimizer.zero_grad(), loss.backward(), nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step()
        if step % 30 == 0:
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {time.time() - began:.0f} s", flush=True)
    source, mask, target = batch(days[:held_out])  # none of them was in a training batch
    written = model.generate(source, target[:, :1], 10, mask=mask, temperature=0)
    exact = (written == target[:, 1:]).all(-1).double().mean().item()
    print(f"exact match on {held_out} unseen dates: {exact:.1%}, {time.time() - began:.0f} s in total")
    return exact


if __name__ == "__main__":
    main()
