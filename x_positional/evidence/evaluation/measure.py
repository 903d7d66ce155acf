"""Everything that an evaluation measures of one model, in one call."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from x_positional.config.layers import LayersConfig
from x_positional.config.models import plain
from x_positional.errors import ArgumentError, ConfigError, UserError
from x_positional.evidence.evaluation.lengths import LengthSettings, loss_by_length
from x_positional.evidence.evaluation.options import TOLERANCE
from x_positional.evidence.evaluation.passkey import Codec, PasskeySettings, passkey_scores
from x_positional.evidence.evaluation.positions import loss_by_position
from x_positional.evidence.evaluation.results import (
    DataSummary,
    Evaluation,
    LengthLoss,
    ModelSummary,
    PasskeyScore,
    PositionLoss,
)
from x_positional.evidence.evaluation.usable import usable_length
from x_positional.models.describe import position_words
from x_positional.models.language import TransformerWrapper
from x_positional.progress import Track, silent
from x_positional.training.data.corpus import fingerprint_of


@dataclass(frozen=True)
class EvalSettings:
    """What is measured."""

    lengths: LengthSettings
    """Lengths and windows of the loss by length."""
    position_windows: int = 16
    """Windows of the loss by position, at most; 0 leaves it out."""
    bins: int = 32
    """Bins of positions."""
    tolerance: float = TOLERANCE
    """The rise of the loss that a usable length allows, in nats per token."""
    passkey: PasskeySettings | None = None
    """Passkey retrieval at the same lengths. None leaves it out."""


def evaluate_model(
    model: TransformerWrapper,
    tokens: np.ndarray,
    settings: EvalSettings,
    *,
    name: str,
    trained_length: int | None,
    data: DataSummary,
    codec: Codec | None = None,
    device: torch.device | None = None,
    autocast: torch.autocast | None = None,
    track: Track = silent,
) -> Evaluation:
    """Loss by length and by position, and the usable length. The model's mode and parameters stay as they are.

    Args:
        model: A decoder with logits.
        tokens: Held-out ids [N].
        settings: What is measured.
        name: Of the model, for tables.
        trained_length: Tokens of a training window; None where unknown.
        data: The text, see `summary_of_data`.
        codec: The tokenizer, for passkey retrieval.
        device: Where the windows go; None is the device of the model.
        autocast: Entered around each pass; None is none.
        track: Shows progress.

    Raises:
        UserError: The text is shorter than the longest length.
        ArgumentError: The model does not predict the next token, or passkey retrieval has no tokenizer.
    """
    if settings.passkey is not None and codec is None:
        raise ArgumentError("passkey retrieval needs codec, the model's tokenizer")
    started = time.perf_counter()
    how: dict[str, Any] = {"device": device, "autocast": autocast, "track": track}
    protocol = settings.lengths.protocol(len(tokens))
    lengths = loss_by_length(model, tokens, settings.lengths, **how)
    retrieval: tuple[PasskeyScore, ...] = ()
    if settings.passkey is not None and codec is not None:
        retrieval = passkey_scores(model, codec, settings.lengths.lengths, settings.passkey, track=track)
    return Evaluation(
        model=summary_of_model(model, name, trained_length),
        data=data,
        protocol=protocol,
        lengths=lengths,
        positions=_positions(model, tokens, lengths, settings, how),
        passkey=retrieval,
        usable=usable_length(lengths, settings.tolerance),
        seconds=time.perf_counter() - started,
    )


def _positions(
    model: TransformerWrapper,
    tokens: np.ndarray,
    lengths: tuple[LengthLoss, ...],
    settings: EvalSettings,
    how: dict[str, Any],
) -> PositionLoss | None:
    """Of the longest length that the model can run; None where there is none, or it is left out."""
    longest = max((entry.length for entry in lengths if entry.loss is not None), default=None)
    if longest is None or not settings.position_windows:
        return None
    sizes = {"windows": settings.position_windows, "bins": settings.bins}
    try:
        return loss_by_position(model, tokens, longest, **sizes, start_token=settings.lengths.start_token, **how)
    except UserError:  # logits of all tokens take more memory than those of the last ones
        return None


def summary_of_model(model: TransformerWrapper, name: str, trained_length: int | None) -> ModelSummary:
    """What is known of a model."""
    layers = model.config.layers
    return ModelSummary(
        name=name,
        position=position_words(layers, model.config.max_seq_len),
        settings=_position_settings(layers),
        trained_length=trained_length,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def summary_of_data(name: str, tokens: np.ndarray, text_bytes: int | None) -> DataSummary:
    """What is known of a text. text_bytes: its size in UTF-8; None where it is unknown."""
    return DataSummary(
        name=name,
        tokens=len(tokens),
        bytes_per_token=None if text_bytes is None else text_bytes / len(tokens),
        fingerprint=fingerprint_of(tokens),
    )


def _position_settings(layers: LayersConfig) -> dict[str, Any]:
    """The keys of the layers that decide positions and what is visible, as in a config file; {} for a scheme instance."""
    try:
        return {key: value for key, value in plain(layers).items() if key in POSITION_KEYS}
    except ConfigError:
        return {}


POSITION_KEYS = ("position", "pattern", "window", "chunk", "keep_first")
"""Fields of `LayersConfig`."""
