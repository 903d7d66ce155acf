"""Small random models of transformers, every parameter and buffer perturbed, and what ours must share with them.

B batch, T tokens, V vocabulary.
"""

import contextlib
import inspect
import io
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
"""Far from every default, so that a norm that reads another eps shows."""

transformers.logging.set_verbosity_error()


@dataclass(frozen=True, kw_only=True)
class Published:
    """A small model of a family. name: of the test. config: settings of its config class. length: tokens of the long
    text, past every window and original length. positions: False where its forward takes none.
    padded, jumping: False where the published code itself is wrong there (say why where it is set)."""

    name: str
    model: str
    config: Mapping[str, Any]
    length: int = 23
    padded: bool = True
    jumping: bool = True
    exported: bool = True
    attention: str = "sdpa"
    loads: Mapping[str, Any] = field(default_factory=dict)


def perturb(model: nn.Module, seed: int = 0) -> None:
    """Add noise to everything that is saved: norms, biases, sinks, router corrections too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def quietly(call: Any, *args: Any, **settings: Any) -> Any:
    """Without the progress bars and the talk of transformers."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **settings)


@cache
def folder_of(name: str, model: str) -> Path:
    """A place for a model, kept while the tests run."""
    return Path(tempfile.mkdtemp(prefix=f"x_positional_{name}_"))


_BUILT: dict[str, tuple[nn.Module, nn.Module, Path]] = {}


def both(case: Published) -> tuple[nn.Module, nn.Module, Path]:
    """Their model, ours read from the folder that theirs was saved to, and the folder."""
    if case.name not in _BUILT:
        cls = getattr(transformers, case.model)
        torch.manual_seed(1)
        config = quietly(cls.config_class, **{"attn_implementation": case.attention, **case.config})
        theirs = quietly(cls, config).eval()
        perturb(theirs)
        folder = folder_of(case.name, case.model)
        quietly(theirs.save_pretrained, folder)
        with warnings.catch_warnings():  # a key of a plain file that nothing reads is a gap
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
    """[B T V]. A mask is always given: without one, jumps of position_ids would start new documents."""
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
