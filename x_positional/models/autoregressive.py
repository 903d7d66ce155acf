"""A language model's loss and its sampling, as users call them.

B batch, T prompt tokens, N new tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import SeqLens, check_documents, packed_documents, token_mask
from x_positional.errors import InputError
from x_positional.generation.decoding import Decoding, Run
from x_positional.generation.prompts import as_ids, nothing_new, read_prompts
from x_positional.generation.sampling import NON_NEGATIVE, POSITIVE, FilterChoice, resolve_filters
from x_positional.models.language import TransformerWrapper

PromptsLike = Tensor | Sequence[Tensor | Sequence[int]] | None


class AutoregressiveWrapper(nn.Module):
    """Next-token loss and sampling around a `TransformerWrapper` of a Decoder.

    ignore_index: targets that do not count (the model reads pad_value there). pad_value: fills rows after their eos.
    """

    def __init__(self, net: TransformerWrapper, ignore_index: int = -100, pad_value: int = 0):
        super().__init__()
        if net.config.layers.kind != "decoder":
            raise InputError(
                "AutoregressiveWrapper predicts each token from those before it, and the layers of this net, of kind "
                f"{net.config.layers.kind!r}, see them all. Use a Decoder."
            )
        if net.config.logits_dim not in (None, net.num_tokens):
            raise InputError(
                f"logits_dim={net.config.logits_dim} columns cannot name {net.num_tokens} tokens. Leave logits_dim out."
            )
        if not 0 <= pad_value < net.num_tokens:
            raise InputError(f"pad_value={pad_value} is read by the model: it must be from 0 to {net.num_tokens - 1}.")
        self.net, self.ignore_index, self.pad_value = net, ignore_index, pad_value

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        seq_lens: SeqLens | None = None,
    ) -> Tensor:
        """Ids [B T] -> the mean cross entropy (nats) of tokens 1 .. T-1, each predicted from those before it.

        Padding (mask False), the token after it, ignore_index and the first token of a packed document are no targets.
        Raises InputError for fewer than two tokens and for ids, masks, positions and documents that do not fit.
        """
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise InputError(f"a loss needs [batch, tokens] with at least two tokens; these are {list(tokens.shape)}.")
        tokens = as_ids(tokens)
        ids = tokens.masked_fill(tokens == self.ignore_index, self.pad_value)
        self.net.check_tokens(ids)
        (batch, length), targets = tokens.shape, tokens[:, 1:]
        present = token_mask(batch, length, mask, positions)
        if present is not None:
            targets = torch.where(present[:, 1:] & present[:, :-1], targets, self.ignore_index)
        document_ids = packed_documents(document_ids, seq_lens, batch, length)
        if document_ids is not None:
            document_ids = document_ids.to(tokens.device)
            documents = check_documents(document_ids, batch, length)
            targets = torch.where(documents[:, 1:] == documents[:, :-1], targets, self.ignore_index)
        logits = self.net(
            ids[:, :-1],
            mask=_but_last(mask),
            positions=_positions_but_last(positions, length),
            document_ids=_but_last(document_ids),
            context=context,
            context_mask=context_mask,
            checked=True,
        )
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=self.ignore_index)

    @overload
    def generate(
        self, prompts: PromptsLike, seq_len: int, *args: Any, return_cache: Literal[False] = False, **options: Any
    ) -> Tensor: ...
    @overload
    def generate(
        self, prompts: PromptsLike, seq_len: int, *args: Any, return_cache: Literal[True], **options: Any
    ) -> tuple[Tensor, KVCache]: ...
    @torch.no_grad()
    def generate(
        self,
        prompts: PromptsLike,
        seq_len: int,
        eos_token: int | Sequence[int] | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | None = None,
        filter_logits_fn: FilterChoice | Sequence[FilterChoice] | None = "top_k",
        restrict_to_max_seq_len: bool = True,
        filter_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        cache_kv: bool = True,
        *,
        repetition_penalty: float = 1.0,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        cache: KVCache | None = None,
        return_cache: bool = False,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, KVCache]:
        """Continue prompts by up to `seq_len` tokens; returns the new tokens [B N] ([N] for a prompt [T]).

        prompts: [T], [B T] (right-padded with prompt_lens), or a list of ragged prompts; each row equals itself alone.
        eos_token: one id or several; a row is filled with pad_value after it, and decoding stops when all rows ended.
        temperature: 0 takes the likeliest token. filter_logits_fn: "top_k", "top_p", "min_p", "top_a", "typical", a
        function of logits, or a list applied in turn; filter_kwargs: its options (a list or dict by name for several).
        restrict_to_max_seq_len: past max_seq_len each token sees the last max_seq_len tokens; otherwise all of them.
        positions: of the prompts, [B T] or [B T A], -1 for none; new tokens go on after the largest of their row.
        repetition_penalty: counts the tokens of this call, prompts included. generator or seed: a repeatable draw.
        cache: continue from what an earlier call returned (`return_cache=True`), or fill a new one. It then holds all
        that was read and drawn, up to each row's eos: prompts are only what comes after, None to go on as it stands.
        Frequencies with length_policy="fixed" and no length are those of a row's prompt and seq_len together, or of the
        final_lengths that the cache was made with.
        Raises InputError, PositionError, CacheError, ValueError (filters), all before anything is computed.
        """
        read = nothing_new(cache) if prompts is None else read_prompts(prompts, prompt_lens, self._device)
        decoding = self._decoding(
            seq_len,
            eos_token,
            temperature,
            filter_logits_fn,
            restrict_to_max_seq_len,
            filter_kwargs,
            cache_kv,
            repetition_penalty,
            generator,
            seed,
            context,
            context_mask,
            positions,
            return_cache or cache is not None,
        )
        run = Run(self.net, read, decoding, cache, self.pad_value)
        new = list(run.tokens())
        tokens = torch.stack(new, dim=1) if new else read.tokens[:, :0]
        tokens = tokens[0] if read.single else tokens
        return (tokens, run.cache) if return_cache and run.cache is not None else tokens

    def stream(
        self,
        prompts: PromptsLike,
        seq_len: int,
        eos_token: int | Sequence[int] | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | None = None,
        filter_logits_fn: FilterChoice | Sequence[FilterChoice] | None = "top_k",
        restrict_to_max_seq_len: bool = True,
        filter_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        cache_kv: bool = True,
        *,
        repetition_penalty: float = 1.0,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        cache: KVCache | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The tokens of `generate`, [B] at a time, as they are drawn; a cache given holds all that were handed out."""
        read = nothing_new(cache) if prompts is None else read_prompts(prompts, prompt_lens, self._device)
        decoding = self._decoding(
            seq_len,
            eos_token,
            temperature,
            filter_logits_fn,
            restrict_to_max_seq_len,
            filter_kwargs,
            cache_kv,
            repetition_penalty,
            generator,
            seed,
            context,
            context_mask,
            positions,
            cache is not None,
        )
        return Run(self.net, read, decoding, cache, self.pad_value).tokens()

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    def _decoding(
        self,
        seq_len: int,
        eos_token: int | Sequence[int] | None,
        temperature: float,
        filter_logits_fn: Any,
        restrict: bool,
        filter_kwargs: Any,
        cache_kv: bool,
        penalty: float,
        generator: torch.Generator | None,
        seed: int | None,
        context: Tensor | None,
        context_mask: Tensor | None,
        positions: Tensor | None,
        keep_cache: bool,
    ) -> Decoding:
        if seq_len < 0:
            raise InputError(f"seq_len={seq_len} is the number of new tokens; it cannot be negative.")
        if not cache_kv and keep_cache:
            raise InputError("a cache was asked for or given, with cache_kv=False. Use cache_kv=True.")
        NON_NEGATIVE.require("temperature", temperature)
        POSITIVE.require("repetition_penalty", penalty)
        if seed is not None:
            if generator is not None:
                raise InputError("seed= and generator= both make the draw repeatable. Give one.")
            generator = torch.Generator(self._device).manual_seed(seed)
        return Decoding(
            seq_len=seq_len,
            eos=self._ending_ids(eos_token),
            temperature=temperature,
            filters=resolve_filters(filter_logits_fn, filter_kwargs),
            penalty=penalty,
            generator=generator,
            use_cache=cache_kv,
            restrict=restrict,
            keep_cache=keep_cache,
            context=context,
            context_mask=context_mask,
            positions=positions,
        )

    def _ending_ids(self, eos_token: int | Sequence[int] | None) -> Tensor | None:
        if eos_token is None:
            return None
        ids, last = torch.as_tensor(eos_token).flatten(), self.net.num_tokens - 1
        whole = not (ids.is_floating_point() or ids.dtype == torch.bool)
        if not (whole and len(ids) and int(ids.min()) >= 0 and int(ids.max()) <= last):
            raise InputError(f"eos_token={eos_token!r} must be one or several ids from 0 to {last}.")
        return ids.to(self._device)


def _but_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[..., :-1]


def _positions_but_last(positions: Tensor | None, length: int) -> Tensor | None:
    if positions is None:
        return None
    tokens_axis = 0 if positions.ndim == 1 else 1
    return positions.narrow(tokens_axis, 0, length - 1)
