"""The FSDP column of docs/doors.md: two processes of gloo train models whose parameters are divided between them."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tests.support.doors_training import ANSWERS, RATE, STEPS, TEXTS
from x_positional import AutoregressiveWrapper, TransformerWrapper
from x_positional.errors import XPositionalError
from x_positional.training.loop.sharding import sharded

RANKS = 2
Outcome = dict[str, torch.Tensor] | str
"""The trained parameters, or why the model is refused."""


def trained_in_shards(nets: dict[str, TransformerWrapper], folder: Path) -> dict[str, Outcome]:
    """Each model after the steps of `trained`, with half of the rows in each process. One pair of processes trains them all."""
    torch.save(nets, folder / "models.pt")
    start_processes(_train, (folder,), nprocs=RANKS, start_method="spawn")
    return torch.load(folder / "outcomes.pt")


def _train(rank: int, folder: Path) -> None:
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    nets = torch.load(folder / "models.pt", weights_only=False)
    outcomes: dict[str, Outcome] = {}
    for name, net in nets.items():
        try:
            outcomes[name] = _steps(net.train(), rank)
        except XPositionalError as error:
            outcomes[name] = str(error)
    if rank == 0:
        torch.save(outcomes, folder / "outcomes.pt")
    dist.destroy_process_group()


def _steps(net: TransformerWrapper, rank: int) -> dict[str, torch.Tensor]:
    """The parameters after the steps. Gradients are the mean over processes, the loss is that of all targets."""
    root, model = sharded(net, torch.device("cpu"), RANKS), AutoregressiveWrapper(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    texts, answers, count = TEXTS[rank::RANKS], ANSWERS[rank::RANKS], model.count_targets(TEXTS, labels=ANSWERS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = root(lambda: model(texts, labels=answers, num_targets=count))
        (loss * RANKS).backward()
        optimizer.step()
    return {name: root.whole(parameter).detach().clone() for name, parameter in net.named_parameters()}
