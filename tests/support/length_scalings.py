"""Scalings whose frequencies depend on the length of the text, and lengths around the trained one."""

from typing import Any

from x_positional.schemes import DynamicNtk, LongRope

TRAINED = 8

SHORT, LONG = (1.0, 1.1, 1.2, 1.3, 1.4), (2.0, 3.0, 5.0, 7.0, 9.0)


def dynamic(**policy: Any) -> DynamicNtk:
    return DynamicNtk(factor=3.0, original_max_position_embeddings=TRAINED, **policy)


def longrope(**policy: Any) -> LongRope:
    return LongRope(
        short_factor=SHORT, long_factor=LONG, factor=4.0, original_max_position_embeddings=TRAINED, **policy
    )


def phimoe(**policy: Any) -> LongRope:
    return longrope(**policy).model_copy(update={"short_mscale": 1.1, "long_mscale": 1.4})


KINDS = {"dynamic": dynamic, "longrope": longrope, "longrope, two scales": phimoe}

LENGTHS = (TRAINED - 1, TRAINED, TRAINED + 1)
