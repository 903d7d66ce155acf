"""What a scaling of rotary frequencies is: a small config that maps a width and a theta to frequencies."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from x_positional.schemes.registry import NamedConfig
from x_positional.schemes.rotary.frequencies import Frequencies, Number

CPU = torch.device("cpu")
SYNONYMS = {
    **dict.fromkeys(("su", "long", "long_rope", "phi3"), "longrope"),
    **dict.fromkeys(("dynamic_ntk", "ntk_dynamic"), "dynamic"),
    **dict.fromkeys(("ntk_aware", "ntk_scaled"), "ntk"),
    **dict.fromkeys(("alpha", "hunyuan"), "ntk_alpha"),
    **dict.fromkeys(("by_parts", "ntk_parts"), "ntk_by_parts"),
    **dict.fromkeys(("llama", "llama_3", "llama31", "llama3_1"), "llama3"),
    **dict.fromkeys(("interpolation", "position_interpolation", "pi"), "linear"),
    **dict.fromkeys(("p_rope", "prope", "partial"), "proportional"),
    **dict.fromkeys(("none", "mrope", "m_rope"), "default"),
}
"""Words that are used elsewhere for a scaling."""
SCALINGS: dict[str, type["RopeScaling"]] = {}
"""Every scaling by name."""


class RopeScaling(NamedConfig):
    """Base of every scaling. Subclass with `rope_type: Literal["name"] = "name"` and `frequencies`; that registers it.

    Notation of the subclasses: f_i = theta^(-2i/width), i = 0 .. width/2 - 1; s the factor; L the trained length
    `original_max_position_embeddings`; r_i = L f_i / (2 pi) the rotations of pair i in L positions.
    """

    tag: ClassVar[str] = "rope_type"
    registry: ClassVar[dict[str, type[Any]]] = SCALINGS
    noun: ClassVar[str] = "scaling"
    expected: ClassVar[str] = "scaling must be a RopeScaling, its name, or a dict with rope_type"
    synonyms: ClassVar[Mapping[str, str]] = SYNONYMS
    abstract: ClassVar[bool] = True
    rope_type: str
    """The name in `scaling=` and in files."""
    paper: ClassVar[str] = ""
    """Authors, year, arXiv number."""

    @property
    def follows_length(self) -> bool:
        """The frequencies depend on the current sequence length, so cached keys go stale as the sequence grows."""
        return False

    @property
    def takes_final_length(self) -> bool:
        """The frequencies are chosen once, for the length that a sequence will have in the end."""
        return False

    @property
    def usual_length(self) -> int | None:
        """The length to use if none is given; None if no length matters, or none is known."""
        return None

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        """The frequencies of width/2 pairs in float64, in radians per position, and the attention factor.

        Args:
            width: the rotated channels of a head.
            theta: the base of the frequencies.
            length: the current sequence length if `follows_length`, the final one if `takes_final_length`; a tensor
                [B|1 T|1] gives one length per token.
            device: where the frequencies are computed.
        """
        raise TypeError(f"{type(self).__name__} defines no frequencies(width, theta)")

    def bound(self, max_seq_len: int | None) -> Self:
        """The same scaling, which takes the model's length if no other is given."""
        return self

    def cache_key(self, length: int) -> int | None:
        """Sequences of two lengths have the same frequencies if their cache keys are equal."""
        return None

    def problems(self, width: int, theta: float) -> list[str]:
        """Why `frequencies` cannot work, each with the value, the reason and the way out; [] if it can."""
        return []

    def reach(self) -> float | None:
        """The length that the scaled frequencies are meant for; None if unknown."""
        return None

    def trained_length(self) -> int | None:
        """L, the length before scaling; None if unknown."""
        return None

    def _problem(self, text: str) -> str:
        return f"scaling {self.rope_type}: {text}"


class StaticScaling(RopeScaling):
    """Base of scalings whose frequencies are the same for every sequence. Override `_inv_freq`."""

    abstract: ClassVar[bool] = True

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        return Frequencies(self._inv_freq(width, theta, device), self._attention_factor())

    def _inv_freq(self, width: int, theta: float, device: torch.device) -> Tensor:
        """[F] float64, in radians per position."""
        raise TypeError(f"{type(self).__name__} defines no _inv_freq(width, theta, device)")

    def _attention_factor(self) -> float:
        """What cosines and sines of queries and keys are multiplied by."""
        return 1.0


def scaling_config(value: Any) -> RopeScaling | None:
    """A scaling, its name, a dict with `rope_type`, or None -> the scaling. Raises ArgumentError."""
    return None if value is None else RopeScaling.read(value)


def rescaled_theta(width: int, theta: float, factor: Number) -> Number:
    """theta * factor^(width/(width-2)): the slowest pair rotates `factor` times slower, the fastest is unchanged."""
    return theta * factor ** (width / (width - 2))


def needs_two_pairs(width: int) -> list[str]:
    """Why `rescaled_theta` is undefined for this width; [] if it is defined."""
    if width > 2:
        return []
    return [f"width {width} is one pair; the exponent width/(width-2) needs two. Use linear, or rotate more channels."]


def mixed(inv_freq: Tensor, factor: float, keep: Tensor) -> Tensor:
    """[F]: unchanged where keep is 1, divided by the factor where it is 0, interpolated in between."""
    return inv_freq * keep + inv_freq / factor * (1 - keep)
