"""The inputs that `x-positional verify` runs through both models: plain, padded, shifted, cached, longer than windows.

B batch, T tokens, S source tokens; C channels, H W pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

LENGTH, BATCH, SHIFT = 48, 2, 3
PIECES = (5, 1, 1, 9)
"""Tokens per step through the cache; the last step takes the rest."""


@dataclass(frozen=True)
class VerifyCase:
    """One input, and how each of the two models takes it."""

    name: str
    given: str = ""
    """Size of the input, for the table."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the forward pass of transformers."""
    ours: Callable[[Any], Tensor] = lambda model: torch.empty(0)
    """Runs the same input through x_positional's model."""
    mask: Tensor | None = None
    """[B T], True where outputs are compared; None compares all."""
    needs: frozenset[str] = frozenset()
    """Keyword arguments that the forward pass of transformers must accept."""
    note: str = ""
    """Why the case is not run; "" if it is."""

    @property
    def runs(self) -> bool:
        return not self.note

    def without(self, note: str) -> "VerifyCase":
        """This case, not run."""
        return replace(self, note=note)


def cases_of(model: nn.Module, kind: str, hf: Mapping[str, Any], max_tokens: int) -> list[VerifyCase]:
    """The cases for a kind of model: "decoder", "encoder", "seq2seq" or "vision"."""
    config: Any = model.config
    if kind == "vision":
        return _images(config)
    if kind == "seq2seq":
        return _seq2seq(_Ids(config.encoder.num_tokens, hf.get("pad_token_id")))
    ids = _Ids(config.num_tokens, hf.get("pad_token_id"))
    length = min(LENGTH, config.max_seq_len - SHIFT - 1)
    plain = _plain("plain", ids.draw(BATCH, length))
    if kind == "encoder":
        return [plain, _padded(ids, length, left=False), _past(config, ids, max_tokens)]
    shifted = _shifted(ids.draw(BATCH, length), SHIFT)
    return [plain, _padded(ids, length, left=True), shifted, _cached(model, plain), _past(config, ids, max_tokens)]


class _Ids:
    """Random ids of the vocabulary except the padding id, from which some models infer padding."""

    def __init__(self, vocabulary: int, pad: Any):
        self.vocabulary, self.pad = vocabulary, pad if isinstance(pad, int) and 0 <= pad < vocabulary else 0
        self._generator = torch.Generator().manual_seed(0)

    def draw(self, batch: int, length: int) -> Tensor:
        """[B T]"""
        drawn = torch.randint(0, self.vocabulary - 1, (batch, length), generator=self._generator)
        return drawn + (drawn >= self.pad).long()


def _size(tokens: Tensor) -> str:
    return f"{tokens.shape[0]} x {tokens.shape[1]}"


def _plain(name: str, tokens: Tensor) -> VerifyCase:
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    return VerifyCase(name, _size(tokens), inputs, lambda model: model(tokens))


def _padded(ids: _Ids, length: int, *, left: bool) -> VerifyCase:
    """Rows of three lengths. With left padding, transformers also gets the positions that follow from the mask."""
    lengths = torch.tensor([length, max(1, length - 5), max(1, length // 4)])[:, None]
    index = torch.arange(length)
    mask = index >= length - lengths if left else index < lengths
    tokens = torch.where(mask, ids.draw(3, length), ids.pad)
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask.long(), "use_cache": False}
    if left:
        inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    given = f"3 x {length}, unpadded {', '.join(str(int(n)) for n in lengths)}"
    return VerifyCase(
        "left padded" if left else "right padded", given, inputs, lambda model: model(tokens, mask=mask), mask
    )


def _shifted(tokens: Tensor, by: int) -> VerifyCase:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens) + by
    inputs = {**_plain("", tokens).inputs, "position_ids": positions}
    return VerifyCase(
        "shifted positions",
        f"{_size(tokens)} from position {by}",
        inputs,
        lambda model: model(tokens, positions=positions),
        needs=frozenset({"position_ids"}),
    )


def _cached(model: Any, whole: VerifyCase) -> VerifyCase:
    """The tokens of `whole`, through x_positional's model in pieces with a cache."""
    tokens: Tensor = whole.inputs["input_ids"]
    if not all(scheme.capabilities().kv_cacheable for scheme in model.attn_layers.position_schemes):
        return VerifyCase(
            "cached",
            note="the frequencies depend on the sequence length, so cached keys would be rotated by outdated frequencies",
        )

    def pieces(model: Any) -> Tensor:
        cache, found, start = model.new_cache(len(tokens)), [], 0
        for size in (*PIECES, tokens.shape[1]):
            piece = tokens[:, start : start + size]
            start += size
            if piece.shape[1]:
                found.append(model(piece, cache=cache))
        return torch.cat(found, 1)

    return replace(whole, name="cached", given=f"{_size(tokens)} in pieces", ours=pieces)


def _past(config: Any, ids: _Ids, max_tokens: int) -> VerifyCase:
    """A sequence longer than every window and chunk."""
    name, kinds = "past the window", config.layers.layer_kinds()
    windows = [size for kind in kinds for size in (kind.window, kind.chunk) if size]
    if not windows:
        return VerifyCase(name, note="no layer has a window")
    length = max(windows) + max(windows) // 4 + 8
    if length > min(max_tokens, config.max_seq_len):
        if config.max_seq_len >= length:
            return VerifyCase(name, note=f"the window is {max(windows)} tokens: --max-tokens {length} runs it")
        note = f"testing the window of {max(windows)} tokens needs {length}, more than max_seq_len={config.max_seq_len}"
        return VerifyCase(name, note=note)
    return _plain(name, ids.draw(1, length))


def _seq2seq(ids: _Ids) -> list[VerifyCase]:
    source, target = ids.draw(BATCH, LENGTH // 2), ids.draw(BATCH, LENGTH // 3)

    def case(name: str, src: Tensor, mask: Tensor) -> VerifyCase:
        inputs = {"input_ids": src, "attention_mask": mask.long(), "decoder_input_ids": target, "use_cache": False}
        given = f"{_size(src)} -> {_size(target)}"
        return VerifyCase(name, given, inputs, lambda model: model.logits(src, target, mask=mask))

    lengths = torch.tensor([source.shape[1], source.shape[1] // 2])[:, None]
    mask = torch.arange(source.shape[1]) < lengths
    return [
        case("plain", source, torch.ones_like(source, dtype=torch.bool)),
        case("right padded", torch.where(mask, source, ids.pad), mask),
    ]


def _images(config: Any) -> list[VerifyCase]:
    """At the trained size, and one patch wider, for which learned tables are interpolated."""
    (height, width), patch = config.image_size, config.patch_size[1]
    generator = torch.Generator().manual_seed(0)

    def case(name: str, wide: int) -> VerifyCase:
        pixels = torch.randn(BATCH, config.channels, height, wide, generator=generator)
        inputs = {"pixel_values": pixels} | ({} if wide == width else {"interpolate_pos_encoding": True})
        return VerifyCase(name, f"{BATCH} images of {height} x {wide}", inputs, lambda model: _output(model, pixels))

    return [case("plain", width), case("another size", width + patch)]


def _output(model: Any, pixels: Tensor) -> Tensor:
    """Logits, or without a head the hidden states of all tokens, in the order of transformers."""
    if model.config.num_classes is not None:
        return model(pixels)
    encoded = model.encode(pixels)
    cls = [] if encoded.cls is None else [encoded.cls[:, None]]
    return torch.cat([*cls, encoded.registers, encoded.patches], dim=1)
