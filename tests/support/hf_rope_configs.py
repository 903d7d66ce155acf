"""RoPE settings as Hugging Face's config.json has them."""

from typing import Any

from x_positional.schemes import (
    LongRope,
)

LLAMA = {"model_type": "llama", "max_position_embeddings": 131_072}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}

EACH: Any = {"length_policy": "recompute"}

LONG = LongRope(short_factor=(1, 2), long_factor=(3, 4), factor=4.0, original_max_position_embeddings=32, **EACH)
