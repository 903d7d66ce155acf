"""What is drawn: each position scheme of a config by itself, built as the model builds it, with the lengths that matter."""

from dataclasses import dataclass

import torch

from x_positional.config import LayersConfig
from x_positional.registry import SchemeConfig
from x_positional.scheme import Dims, PositionScheme
from x_positional.validate_case import part_name, resolve_position


@dataclass(frozen=True)
class Part:
    """One scheme. before: the same before its frequencies were stretched, None where they are not. max_seq_len: the
    model's. window: of its layers, None for all keys."""

    name: str
    config: SchemeConfig
    scheme: PositionScheme
    before: PositionScheme | None
    dims: Dims
    max_seq_len: int
    window: int | None = None

    @property
    def trained(self) -> int:
        """The trained length: of the config before stretching where it says so, otherwise max_seq_len."""
        return self.config.trained_length() or self.max_seq_len

    @property
    def horizon(self) -> int:
        """The last position drawn: four times the trained length, at least max_seq_len, at most what the scheme has."""
        far = max(4 * self.trained, self.max_seq_len)
        return far if self.scheme.limit is None else min(far, self.scheme.limit - 1)

    @property
    def marks(self) -> list[tuple[int, str]]:
        """Lengths to mark, each with its name."""
        if self.before is None:
            return [(self.max_seq_len, f"trained length {self.max_seq_len}")]
        known = self.config.trained_length()
        marks = [] if known is None else [(known, f"trained length {known}")]
        return marks if known == self.max_seq_len else [*marks, (self.max_seq_len, f"max_seq_len {self.max_seq_len}")]


def parts_of(layers: LayersConfig, max_seq_len: int, embed_dim: int | None = None) -> list[Part]:
    """The schemes of a stack, parameters as at the start of training and the same at every call."""
    configs = resolve_position(layers, max_seq_len)
    dims = layers.dims(max_seq_len, embed_dim)
    parts: list[Part] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for config in configs:
            name = part_name(config)
            twins = sum(part.name.split("-")[0] == name for part in parts)
            plain = config.unstretched()
            parts.append(Part(
                name=f"{name}-{twins + 1}" if twins else name, config=config, scheme=config.build(dims),
                before=None if plain is None else plain.build(dims), dims=dims, max_seq_len=max_seq_len,
                window=layers.window,
            ))  # fmt: skip
    return parts
