"""Attributes that x-transformers and transformers have and a model here does not: their AttributeError names what to use."""

from typing import TYPE_CHECKING, Any

from torch import nn

from x_positional.config.flags.missing import ATTRIBUTES


class ExplainsAbsent(nn.Module):
    """A module whose AttributeError for a known name of another library contains the way out.

    `hasattr` stays False for them, so nobody takes the model for one of another library.
    """

    if not TYPE_CHECKING:  # the types of parameters and submodules are those of nn.Module.__getattr__

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError as error:
                way = next((names[name] for names in _tables(type(self)) if name in names), None)
                if way is None:
                    raise
                raise AttributeError(f"{error}. {way}", name=name, obj=self) from None


def _tables(cls: type) -> list[dict[str, str]]:
    """The attributes that are explained for a class and its bases."""
    return [ATTRIBUTES[base.__name__] for base in cls.__mro__ if base.__name__ in ATTRIBUTES]
