"""Small random models of transformers with every parameter and buffer perturbed, and helpers to compare with them.

B batch, T tokens, V vocabulary.
"""

import contextlib
import inspect
import io
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from x_positional import from_pretrained

VOCABULARY = 67
EPS = 3e-3
"""Far from every default, so that a norm with another eps fails."""

transformers.logging.set_verbosity_error()


@dataclass(frozen=True, kw_only=True)
class Published:
    """A small model of a family."""

    name: str
    """Of the test."""
    model: str
    """Its class in transformers."""
    config: Mapping[str, Any]
    """Settings of its config class."""
    length: int = 23
    """Tokens of the long sequence, past every window and original length."""
    padded: bool = True
    """False where the published code is wrong with padding; the case says why."""
    jumping: bool = True
    """False where the published code is wrong with jumping position_ids; the case says why."""
    exported: bool = True
    attention: str = "sdpa"
    loads: Mapping[str, Any] = field(default_factory=dict)
    """Overrides for `from_pretrained`."""
    computed: str = ""
    """Pattern of tensors that are computed, and so not perturbed."""


def perturb(model: nn.Module, seed: int = 0, computed: str = "") -> None:
    """Add noise to everything that is saved, including norms, biases, sinks and router corrections.

    Args:
        model: Its parameters and buffers are changed.
        seed: Of the noise.
        computed: Pattern of tensors that stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        named = model.state_dict(keep_vars=True).items()
        for tensor in {id(t): t for name, t in named if not (computed and re.search(computed, name))}.values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def quietly(call: Any, *args: Any, **settings: Any) -> Any:
    """Call without the progress bars and warnings of transformers."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **settings)


@cache
def folder_of(name: str, model: str) -> Path:
    """A folder for a model, kept while the tests run."""
    return Path(tempfile.mkdtemp(prefix=f"x_positional_{name}_"))


_BUILT: dict[str, tuple[nn.Module, nn.Module, Path]] = {}


def both(case: Published) -> tuple[nn.Module, nn.Module, Path]:
    """The model of transformers, x_positional's loaded from the folder it was saved to, and that folder."""
    if case.name not in _BUILT:
        cls = getattr(transformers, case.model)
        torch.manual_seed(1)
        config = quietly(cls.config_class, **{"attn_implementation": case.attention, **case.config})
        theirs = quietly(cls, config).eval()
        perturb(theirs, computed=case.computed)
        folder = folder_of(case.name, case.model)
        quietly(theirs.save_pretrained, folder)
        with warnings.catch_warnings():  # an unknown key in a freshly saved config is a gap
            warnings.simplefilter("error", UserWarning)
            _BUILT[case.name] = theirs, from_pretrained(folder, **case.loads), folder
    return _BUILT[case.name]


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """[B T] random ids without 0, which is padding."""
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def takes(model: nn.Module, name: str) -> bool:
    """Whether a forward has an argument."""
    return name in inspect.signature(model.forward).parameters


@torch.no_grad()
def their_logits(
    model: nn.Module, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
) -> Tensor:
    """[B T V]. A mask is always passed: without one, transformers takes jumps of position_ids for new documents."""
    mask = torch.ones_like(tokens) if mask is None else mask.long()
    given: dict[str, Any] = {"attention_mask": mask, "use_cache": False}
    if positions is not None:
        given["position_ids"] = positions
    return model(tokens, **given).logits


def left_padded(tokens: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows cut to lengths and padded on the left: tokens, mask [B T], positions [B T] that start at the first token."""
    T = tokens.shape[1]
    mask = torch.arange(T) >= T - torch.tensor(lengths)[:, None]
    return torch.where(mask, tokens, 0), mask, (mask.long().cumsum(-1) - 1).clamp(min=0)
