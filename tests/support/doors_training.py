"""The data and the steps of training that the doors of docs/doors.md share.

B batch, T tokens.
"""

import copy

import torch

from tests.support.generation_models import ids
from x_positional import AutoregressiveWrapper, TransformerWrapper

TEXTS = ids(4, 9, seed=11)
"""[B T] the training data of the doors."""
ANSWERS = torch.where(torch.arange(9) < torch.tensor([[1], [3], [6], [2]]), -100, TEXTS)
"""[B T] labels, of a different number in each row."""
RATE, STEPS = 0.05, 3


@torch.enable_grad()
def trained(net: TransformerWrapper, steps: int = STEPS) -> TransformerWrapper:
    """A copy after steps of SGD on TEXTS and ANSWERS, all rows at once."""
    net = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        AutoregressiveWrapper(net)(TEXTS, labels=ANSWERS).backward()
        optimizer.step()
    return net.eval()
