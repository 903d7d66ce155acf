"""Encoder-decoder: the encoder reads the source both ways, the decoder writes the target and attends to it.

B batch, S source tokens, T target tokens, N new tokens, M model dim.
"""

from typing import Any

import torch
from torch import Tensor, nn

from x_positional.config import ModelConfig
from x_positional.decoding import evaluating
from x_positional.describe import describe
from x_positional.flags import FlagError, xtransformer_from_flags
from x_positional.generate import AutoregressiveWrapper, PromptsLike
from x_positional.sampling import FilterChoice
from x_positional.wrappers import TokenEncoder, TransformerWrapper


class XTransformer(nn.Module):
    """`XTransformer(dim=512, enc_num_tokens=256, enc_depth=6, enc_heads=8, enc_max_seq_len=1024, dec_...=..., ...)`.

    Flags of TransformerWrapper and of the layers, with `enc_` or `dec_` before them; anything else is refused.
    tie_token_emb: both sides share one embedding, so they need equal num_tokens and emb_dim.
    """

    def __init__(self, *, dim: int, **flags: Any):
        super().__init__()
        fields = xtransformer_from_flags(dim, flags)
        encoder, decoder = (ModelConfig.model_validate(fields[side]) for side in ("encoder", "decoder"))
        self.encoder = TokenEncoder.from_config(encoder)
        net = TransformerWrapper.from_config(decoder)
        if fields["tie_token_emb"]:
            ours, theirs = net.token_emb.weight.shape, self.encoder.token_emb.weight.shape
            if ours != theirs:
                raise FlagError("XTransformer", [
                    f"tie_token_emb=True shares one table, and the decoder's is {list(ours)}, the encoder's {list(theirs)}. "
                    "Give both the same num_tokens and emb_dim."
                ])  # fmt: skip
            net.token_emb = self.encoder.token_emb
        self.decoder = AutoregressiveWrapper(net, ignore_index=fields["ignore_index"], pad_value=fields["pad_value"])

    def describe(self) -> str:
        """Both sides in words."""
        sides = (("encoder", self.encoder), ("decoder", self.decoder.net))
        return "\n".join(f"{name}\n{describe(side, side.config)}" for name, side in sides)

    def forward(
        self, src: Tensor, tgt: Tensor, mask: Tensor | None = None, *, tgt_mask: Tensor | None = None
    ) -> Tensor:
        """Source ids [B S], target ids [B T] -> mean cross entropy (nats) of target tokens 1 .. T-1.

        mask: [B S] bool, True = keep; tgt_mask: [B T] likewise, its padding is no target.
        """
        return self.decoder(tgt, mask=tgt_mask, context=self.encoder(src, mask=mask), context_mask=mask)

    @torch.no_grad()
    def generate(
        self, src: Tensor, start_tokens: PromptsLike, seq_len: int, mask: Tensor | None = None, *,
        eos_token: int | list[int] | None = None, temperature: float = 1.0, prompt_lens: Tensor | None = None,
        filter_logits_fn: FilterChoice | list[FilterChoice] | None = "top_k", filter_kwargs: Any = None,
        restrict_to_max_seq_len: bool = True, cache_kv: bool = True, repetition_penalty: float = 1.0,
        generator: torch.Generator | None = None, seed: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Source ids [B S] and target prompts [B T] -> new target tokens [B N].

        The source is read once and its keys are computed once. The rest is as in `AutoregressiveWrapper.generate`.
        """
        with evaluating(self):
            return self.decoder.generate(
                start_tokens, seq_len, eos_token, temperature, prompt_lens, filter_logits_fn,
                restrict_to_max_seq_len, filter_kwargs, cache_kv, repetition_penalty=repetition_penalty,
                generator=generator, seed=seed, context=self.encoder(src, mask=mask), context_mask=mask,
            )  # fmt: skip
