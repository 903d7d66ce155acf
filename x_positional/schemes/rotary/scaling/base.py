"""What a scaling of rotary frequencies is: a small config that turns a width and a theta into frequencies."""

from typing import Any, ClassVar, get_args

import torch
from torch import Tensor
from typing_extensions import Self

from x_positional.errors import did_you_mean
from x_positional.schemes.registry import Config
from x_positional.schemes.rotary.frequencies import Frequencies, Number

CPU = torch.device("cpu")


class RopeScaling(Config):
    """Base of every scaling. Subclass with `rope_type: Literal["name"] = "name"` and `frequencies`; that names it.

    Notation of the subclasses: f_i = theta^(-2i/width), i = 0 .. width/2 - 1; s the factor; L the trained length
    `original_max_position_embeddings`; r_i = L f_i / (2 pi) the turns that pair i makes in L positions.
    """

    tag: ClassVar[str] = "rope_type"
    rope_type: str
    paper: ClassVar[str] = ""
    """Authors, year, arXiv number."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name in get_args(cls.model_fields["rope_type"].annotation):
            known = SCALINGS.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"scaling {name!r} is already registered, by {known.__module__}.{known.__name__}")
            SCALINGS[name] = cls

    @property
    def follows_length(self) -> bool:
        """The frequencies of a text depend on how long it is, so a longer one turns its keys otherwise."""
        return False

    @property
    def takes_final_length(self) -> bool:
        """The frequencies are chosen once, for the length that a text will have in the end."""
        return False

    @property
    def usual_length(self) -> int | None:
        """The length that counts where no other is named; None where none counts, or nobody knows."""
        return None

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        """Radians per position of width/2 pairs, float64, and the attention factor.

        length: of the text, where `follows_length`, or in the end, where `takes_final_length`; a tensor [B|1 T|1] has one
        for each token.
        """
        raise TypeError(f"{type(self).__name__} defines no frequencies(width, theta)")

    def bound(self, max_seq_len: int | None) -> Self:
        """The same with what it takes from the model's length where nobody names another."""
        return self

    def cache_key(self, length: int) -> int | None:
        """Texts of two lengths rotate alike where their cache keys are equal."""
        return None

    def problems(self, width: int, theta: float) -> list[str]:
        """Why `frequencies` cannot work, each with the value, the reason and the way out; [] if it can."""
        return []

    def reach(self) -> float | None:
        """The length that the scaled frequencies are meant for; None where nothing says so."""
        return None

    def trained_length(self) -> int | None:
        """L, the length before stretching; None where nothing says so."""
        return None

    def _said(self, text: str) -> str:
        return f"scaling {self.rope_type}: {text}"


SCALINGS: dict[str, type[RopeScaling]] = {}


def scaling_config(value: Any) -> RopeScaling | None:
    """A scaling, its name, or a dict with `rope_type` -> the scaling. Raises ValueError."""
    if value is None or isinstance(value, RopeScaling):
        return value
    if isinstance(value, str):
        value = {"rope_type": value}
    if not isinstance(value, dict) or "rope_type" not in value:
        raise ValueError(
            f"scaling must be a RopeScaling, its name, or a dict with rope_type; got {value!r}. "
            f"Names: {', '.join(sorted(SCALINGS))}"
        )
    kind = str(value["rope_type"])
    if kind not in SCALINGS:
        raise ValueError(f"no scaling named {kind!r}; {did_you_mean(kind, SCALINGS)}")
    return SCALINGS[kind].model_validate(value)


def rescaled_theta(width: int, theta: float, factor: Number) -> Number:
    """theta * factor^(width/(width-2)): the slowest pair turns `factor` times slower, the fastest as before."""
    return theta * factor ** (width / (width - 2))


def needs_two_pairs(width: int) -> list[str]:
    """Why `rescaled_theta` has no meaning."""
    if width > 2:
        return []
    return [
        f"width {width} is one pair, and the exponent width/(width-2) needs two. Use linear, or rotate more channels."
    ]


def mixed(inv_freq: Tensor, factor: float, keep: Tensor) -> Tensor:
    """[F]: as they are where keep is 1, divided by the factor where it is 0, in between otherwise."""
    return inv_freq * keep + inv_freq / factor * (1 - keep)
