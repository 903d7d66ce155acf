"""Small perturbed models of x-transformers."""

from typing import Any

import torch
import x_transformers as xt
from torch import nn

from tests.support.perturbing import perturb

SHAPE = {"dim": 18, "depth": 2, "heads": 3, "attn_dim_head": 8, "verbose": False}

IDS = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(3))


def perturbed_model(kind: str = "Decoder", wrapper: dict[str, Any] | None = None, **layers: Any) -> Any:
    """Their language model, perturbed."""
    stack = getattr(xt, kind)(**{**SHAPE, **layers})
    return moved(xt.TransformerWrapper(num_tokens=11, max_seq_len=24, attn_layers=stack, **(wrapper or {})))


def moved(model: nn.Module) -> Any:
    perturb(model)
    return model.eval()
