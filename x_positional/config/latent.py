"""Multi-head latent attention, as data."""

from pydantic import Field

from x_positional.schemes.registry import Config


class MLAConfig(Config):
    """Multi-head latent attention (DeepSeek-V2 2024, arXiv:2405.04434, section 2.1). Keys and values of all heads come from
    one latent of `kv_rank` channels, which is what a cache holds, beside one key of `rope_dim` channels that heads share.

    rope_dim: the first channels of a head, of queries and of that shared key; only they are rotated, and the other
    head_dim - rope_dim come from the latent. value_dim: width of a head's values, None is head_dim - rope_dim. q_rank: queries
    come from a latent too; None is none. eps: of the RMS norms of the latents. Keys are made for every head and latents have
    norms, so kv_heads, qk_norm and clip are for cross-attention alone.
    """

    kv_rank: int = Field(gt=0)
    rope_dim: int = Field(gt=0)
    value_dim: int | None = Field(default=None, gt=0)
    q_rank: int | None = Field(default=None, gt=0)
    eps: float = Field(default=1e-6, gt=0)
