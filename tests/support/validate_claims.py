"""Tests what an accepting report claims against the model itself: positions, caches and lengths."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests.support.validate_forced import BATCH, context_of, forced, tokens_of
from x_positional.config.models import ModelConfig
from x_positional.config.validate import Report
from x_positional.errors import InputError, PositionError


@torch.no_grad()
def false_claims(config: ModelConfig, report: Report) -> list[str]:
    """The claims that do not hold. What is claimed must run, and what is not claimed must be refused."""
    return list(_false(config, report))


def _false(config: ModelConfig, report: Report) -> Iterator[str]:
    caps = report.capabilities
    assert caps is not None
    assert report.past is not None
    model, context = forced(config), context_of(config)

    def runs_at(positions: Tensor) -> bool:
        return runs(lambda: model(tokens_of(config, 3), positions=positions, **context))

    if runs_at(torch.tensor([0, 2, 5])) != caps.uses_positions:
        yield f"uses_positions={caps.uses_positions}"
    if runs_at(torch.tensor([0, 1.5, 4.25])) != (caps.uses_positions and caps.continuous):
        yield f"uses_positions={caps.uses_positions} and continuous={caps.continuous}"
    if config.layers.kind == "decoder" and runs(lambda: model.new_cache(BATCH)) != caps.kv_cacheable:
        yield f"kv_cacheable={caps.kv_cacheable}"
    ends = [s.limit for s in model.attn_layers.position_schemes if s.limit is not None]
    length = min(ends, default=config.max_seq_len) + 1
    if runs(lambda: model(tokens_of(config, length), **context)) != caps.unbounded:
        yield f"unbounded={caps.unbounded}"
    if report.past.startswith("refused") == caps.unbounded or (ends and f" {length - 1} " not in report.past):
        yield f"past={report.past!r}"


def runs(call: Callable[[], object]) -> bool:
    """Whether a call is accepted."""
    try:
        call()
    except (InputError, PositionError):
        return False
    return True
