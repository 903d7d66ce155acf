"""Every scaling of rotary frequencies by name; importing this module registers all of them."""

from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, SerializeAsAny

from x_positional.schemes.rotary.scaling.base import SCALINGS, RopeScaling, scaling_config
from x_positional.schemes.rotary.scaling.length import DynamicNtk, LengthScaling, LongRope
from x_positional.schemes.rotary.scaling.parts import Llama3, NtkByParts, Yarn, YarnPaper
from x_positional.schemes.rotary.scaling.static import DefaultRope, Linear, Ntk, NtkAlpha, Proportional

Scaling: TypeAlias = Annotated[SerializeAsAny[RopeScaling] | None, BeforeValidator(scaling_config)]
"""The field of a config: a scaling, its name, a dict with `rope_type`, or None."""

__all__ = [
    "SCALINGS",
    "DefaultRope",
    "DynamicNtk",
    "LengthScaling",
    "Linear",
    "Llama3",
    "LongRope",
    "Ntk",
    "NtkAlpha",
    "NtkByParts",
    "Proportional",
    "RopeScaling",
    "Scaling",
    "Yarn",
    "YarnPaper",
    "scaling_config",
]
