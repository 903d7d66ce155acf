"""What `x-positional verify` gives to both sides: random ids, padded, moved, in pieces, and past windows.

B batch, T tokens, S source tokens; C channels, H W pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

LENGTH, BATCH, SHIFT = 48, 2, 3
PIECES = (5, 1, 1, 9)
"""Tokens at a time through a cache; the rest in one."""


@dataclass(frozen=True)
class Case:
    """inputs: keyword arguments of transformers' forward. needs: those that it must take. ours: the same through a model
    here. mask: [B T], where outputs are compared; None is everywhere. note: why it is not run."""

    name: str
    given: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    ours: Callable[[Any], Tensor] = lambda model: torch.empty(0)
    mask: Tensor | None = None
    needs: frozenset[str] = frozenset()
    note: str = ""

    @property
    def runs(self) -> bool:
        return not self.note

    def without(self, note: str) -> "Case":
        """The same, not run."""
        return replace(self, note=note)


def cases_of(model: nn.Module, kind: str, hf: Mapping[str, Any], max_tokens: int) -> list[Case]:
    """The cases of a kind of family."""
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
    """Random ids of the vocabulary, without that of padding: some models find padding by it."""

    def __init__(self, vocabulary: int, pad: Any):
        self.vocabulary, self.pad = vocabulary, pad if isinstance(pad, int) and 0 <= pad < vocabulary else 0
        self._generator = torch.Generator().manual_seed(0)

    def draw(self, batch: int, length: int) -> Tensor:
        """[B T]"""
        drawn = torch.randint(0, self.vocabulary - 1, (batch, length), generator=self._generator)
        return drawn + (drawn >= self.pad).long()


def _words(tokens: Tensor) -> str:
    return f"{tokens.shape[0]} x {tokens.shape[1]}"


def _plain(name: str, tokens: Tensor) -> Case:
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    return Case(name, _words(tokens), inputs, lambda model: model(tokens))


def _padded(ids: _Ids, length: int, *, left: bool) -> Case:
    """Rows of three lengths. Where padding stands first, transformers is told the positions that follow from the mask."""
    lengths = torch.tensor([length, max(1, length - 5), max(1, length // 4)])[:, None]
    places = torch.arange(length)
    mask = places >= length - lengths if left else places < lengths
    tokens = torch.where(mask, ids.draw(3, length), ids.pad)
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask.long(), "use_cache": False}
    if left:
        inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    given = f"3 x {length}, text {', '.join(str(int(n)) for n in lengths)}"
    return Case("left padded" if left else "right padded", given, inputs, lambda model: model(tokens, mask=mask), mask)


def _shifted(tokens: Tensor, by: int) -> Case:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens) + by
    inputs = {**_plain("", tokens).inputs, "position_ids": positions}
    return Case(
        "shifted positions",
        f"{_words(tokens)} from {by} on",
        inputs,
        lambda model: model(tokens, positions=positions),
        needs=frozenset({"position_ids"}),
    )


def _cached(model: Any, whole: Case) -> Case:
    """The same tokens as `whole`, read here in pieces through a cache."""
    tokens: Tensor = whole.inputs["input_ids"]
    if not all(scheme.capabilities().kv_cacheable for scheme in model.attn_layers.position_schemes):
        return Case(
            "cached", note="frequencies follow the length of the text, so a cache would hold keys of another table"
        )

    def pieces(model: Any) -> Tensor:
        cache, found, start = model.new_cache(len(tokens)), [], 0
        for size in (*PIECES, tokens.shape[1]):
            piece = tokens[:, start : start + size]
            start += size
            if piece.shape[1]:
                found.append(model(piece, cache=cache))
        return torch.cat(found, 1)

    return replace(whole, name="cached", given=f"{_words(tokens)} in pieces", ours=pieces)


def _past(config: Any, ids: _Ids, max_tokens: int) -> Case:
    """A text longer than every window and chunk."""
    name, kinds = "past the window", config.layers.layer_kinds()
    windows = [size for kind in kinds for size in (kind.window, kind.chunk) if size]
    if not windows:
        return Case(name, note="no layer has a window")
    length = max(windows) + max(windows) // 4 + 8
    if length > min(max_tokens, config.max_seq_len):
        why = f"--max-tokens {length} runs it" if config.max_seq_len >= length else "as long as the longest text"
        return Case(name, note=f"the window is {max(windows)} tokens: {why}")
    return _plain(name, ids.draw(1, length))


def _seq2seq(ids: _Ids) -> list[Case]:
    source, target = ids.draw(BATCH, LENGTH // 2), ids.draw(BATCH, LENGTH // 3)

    def case(name: str, src: Tensor, mask: Tensor) -> Case:
        inputs = {"input_ids": src, "attention_mask": mask.long(), "decoder_input_ids": target, "use_cache": False}
        given = f"{_words(src)} -> {_words(target)}"
        return Case(name, given, inputs, lambda model: model.logits(src, target, mask=mask))

    lengths = torch.tensor([source.shape[1], source.shape[1] // 2])[:, None]
    mask = torch.arange(source.shape[1]) < lengths
    return [
        case("plain", source, torch.ones_like(source, dtype=torch.bool)),
        case("right padded", torch.where(mask, source, ids.pad), mask),
    ]


def _images(config: Any) -> list[Case]:
    """At the trained size, and one patch wider: learned tables are resized to it."""
    (height, width), patch = config.image_size, config.patch_size[1]
    generator = torch.Generator().manual_seed(0)

    def case(name: str, wide: int) -> Case:
        pixels = torch.randn(BATCH, config.channels, height, wide, generator=generator)
        inputs = {"pixel_values": pixels} | ({} if wide == width else {"interpolate_pos_encoding": True})
        return Case(name, f"{BATCH} images of {height} x {wide}", inputs, lambda model: _seen(model, pixels))

    return [case("plain", width), case("another size", width + patch)]


def _seen(model: Any, pixels: Tensor) -> Tensor:
    """Logits, or without a head the hidden states of all tokens in the order of transformers."""
    if model.config.num_classes is not None:
        return model(pixels)
    encoded = model.encode(pixels)
    return torch.cat([encoded.cls[:, None], encoded.registers, encoded.patches], dim=1)
