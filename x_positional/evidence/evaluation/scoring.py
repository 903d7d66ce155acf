"""The loss of each scored token of a batch of windows.

B windows, T tokens, K scored tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from x_positional.errors import ArgumentError, UserError, XPositionalError
from x_positional.generation.eval_mode import in_eval_mode
from x_positional.models.language import TransformerWrapper
from x_positional.modules.cross_entropy import TokenLoss

EACH = TokenLoss(reduction="none")


class Scorer:
    """A model in eval mode that scores the last tokens of windows.

    Args:
        model: A decoder with logits. Its own mode stays as it is.
        device: Where the windows go; None is the device of the model.
        autocast: Entered around each pass; None is none.

    Raises:
        ArgumentError: The model does not predict the next token.
    """

    def __init__(
        self, model: TransformerWrapper, device: torch.device | None = None, autocast: torch.autocast | None = None
    ) -> None:
        if not isinstance(model, TransformerWrapper) or not model.has_head or model.config.layers.kind != "decoder":
            raise ArgumentError(f"{type(model).__name__} does not predict the next token, so it has no loss by length")
        self.model = in_eval_mode(model)
        self.device = next(model.parameters()).device if device is None else device
        self._context: Any = nullcontext() if autocast is None else autocast

    @torch.inference_mode()
    def losses(self, windows: np.ndarray, scored: int) -> Tensor:
        """Ids [B T] -> the loss [B K] of the last K tokens of each window, float64 on the CPU.

        The last token is predicted only, so the model reads T - 1 tokens. Logits are computed for the scored tokens alone.

        Raises:
            UserError: The model refuses this length, or memory does not suffice.
        """
        ids = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.int64)).to(self.device)
        with reasons(), self._context:
            hidden = self.model(ids[:, :-1], return_embeddings=True)
            found = self.model.token_losses(hidden[:, -scored:], ids[:, -scored:].contiguous(), EACH)
            return found.double().cpu()


@contextmanager
def reasons() -> Iterator[None]:
    """Raises errors of the package, and memory that does not suffice, as a UserError with the reason."""
    try:
        yield
    except XPositionalError as error:
        raise UserError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        raise UserError(reason) from error


def out_of_memory(error: Exception) -> str | None:
    """`out of memory`, and where; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the GPU"
    texts = ("not enough memory", "can't allocate memory")  # torch on a CPU raises a RuntimeError with one of them
    known = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return "out of memory" if known or isinstance(error, MemoryError) else None


def cut(tokens: np.ndarray, ends: np.ndarray, length: int, start_token: int | None = None) -> np.ndarray:
    """[B T] the `length` tokens before each end; with a start token, in place of the first one of each."""
    windows = np.stack([tokens[end - length : end] for end in ends]).astype(np.int64)
    if start_token is not None:
        windows[:, 0] = start_token
    return windows
