"""Decoding sequences of floats: the output for each token is the next input.

B batch, T prompt tokens, S tokens so far, I width, M model dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import as_tensor
from x_positional.errors import InputError
from x_positional.generation.eval_mode import in_eval_mode
from x_positional.generation.prefill import check_limits
from x_positional.generation.prompts import at_last_places, mask_of_lengths
from x_positional.generation.sampling import Range

FloatPrompts = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class FloatSeries:
    """A batch of prompts."""

    values: Tensor
    """[B T I], right-padded with 0."""
    mask: Tensor | None
    """[B T] bool, True = a token; None if all rows are equally long."""
    single: bool
    """The caller passed one prompt [T I], and gets one row back."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.values.shape[1]


def read_series(prompts: Any, prompt_lens: Any, width: int, device: torch.device) -> FloatSeries:
    """[T I], [B T I] (right-padded, with `prompt_lens` [B]), or a list of [T I]. Raises InputError."""
    if isinstance(prompts, list | tuple):
        return _ragged(prompts, prompt_lens, width, device)
    _check(prompts, (2, 3), width, "start_tokens")
    values = prompts[None] if prompts.ndim == 2 else prompts
    lengths = None if prompt_lens is None else as_tensor(prompt_lens, "prompt_lens")
    mask = None if lengths is None else mask_of_lengths(lengths, values)
    return FloatSeries(values.to(device), None if mask is None else mask.to(device), prompts.ndim == 2)


def _ragged(rows: Sequence[Any], prompt_lens: Any, width: int, device: torch.device) -> FloatSeries:
    if not rows:
        raise InputError("the list of prompts is empty. Give at least one.")
    if prompt_lens is not None:
        raise InputError("prompt_lens was given, but a list of prompts has lengths already. Leave it out.")
    for i, row in enumerate(rows):
        _check(row, (2,), width, f"start_tokens[{i}]")
    values = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = mask_of_lengths(lengths, values)
    return FloatSeries(values.to(device), None if mask is None else mask.to(device), False)


def _check(x: Any, axes: tuple[int, ...], width: int, name: str) -> None:
    shapes = " or ".join({2: f"[tokens, {width}]", 3: f"[batch, tokens, {width}]"}[n] for n in axes)
    if not isinstance(x, Tensor):
        raise InputError(f"{name} must be a float tensor {shapes}; got {type(x).__name__}.")
    if x.ndim not in axes or x.shape[-1] != width or not x.is_floating_point() or 0 in x.shape:
        raise InputError(f"{name} must be floats {shapes}, not empty; got {list(x.shape)} of {x.dtype}.")


@dataclass(frozen=True, eq=False)
class FloatOptions:
    """The parameters of `generate` and `stream` of a model of floats.

    Args:
        start_tokens: One prompt [T I], a right-padded batch [B T I] with `prompt_lens`, or a list of prompts [T I] of any
            lengths. Each row gives the tokens it would give alone.
        seq_len: New tokens per row.
        prompt_lens: [B] the tokens of each row of a padded batch.
        cache_kv: Keep keys and values between steps; False recomputes the whole sequence for every token.
        restrict_to_max_seq_len: Beyond the model's max_seq_len each token attends to the last max_seq_len tokens only;
            False: to all of them.
        context: [B S C] for cross-attention.
        context_mask: [B S] bool, True = keep.
    """

    start_tokens: FloatPrompts
    seq_len: int
    _: KW_ONLY
    prompt_lens: Tensor | Sequence[int] | None = None
    cache_kv: bool = True
    restrict_to_max_seq_len: bool = True
    context: Tensor | None = None
    context_mask: Tensor | None = None

    def __post_init__(self) -> None:
        problems = [*Range(0, integer=True).problems("seq_len", self.seq_len)]
        for name in ("cache_kv", "restrict_to_max_seq_len"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name}={getattr(self, name)!r} must be a bool.")
        if problems:
            raise InputError("\n".join(problems))


class FloatLoop:
    """One call of `generate` or `stream` of a `ContinuousTransformerWrapper` whose outputs are as wide as its inputs.

    Raises:
        InputError: before anything is computed.
    """

    def __init__(self, net: Any, options: FloatOptions):
        self.net, self.steps = in_eval_mode(net), options.seq_len
        self.context: dict[str, Tensor | None] = {"context": options.context, "context_mask": options.context_mask}
        device = next(net.parameters()).device
        self.series = read_series(options.start_tokens, options.prompt_lens, net.dim_in, device)
        schemes = net.attn_layers.position_schemes
        total = self.total = self.series.longest + self.steps - (self.steps > 0)
        trained = net.config.max_seq_len
        check_limits(schemes, total, trained)
        self.window = trained if options.restrict_to_max_seq_len and trained is not None and total > trained else None
        recomputes = not options.cache_kv or not all(scheme.capabilities().kv_cacheable for scheme in schemes)
        self.cached = not recomputes
        fixed = any(scheme.takes_final_length for scheme in schemes)
        self.final_lengths = self._final_lengths() if fixed else None

    def _final_lengths(self) -> Tensor:
        """[B|1] the tokens of each row after the last step."""
        values, mask = self.series.values, self.series.mask
        prompt = torch.full((1,), self.series.longest, device=values.device) if mask is None else mask.sum(-1)
        return prompt + self.steps

    def _new_cache(self) -> KVCache:
        return self.net.attn_layers.new_cache(
            len(self.series.values),
            max_len=self.total if self.window is None else None,
            window=self.window,
            rereads=not self.cached,
            final_lengths=self.final_lengths,
        )

    def _read(self, x: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
        """[B T I] -> the output for each row's last token [B I]."""
        outputs = self.net(x, mask=mask, cache=cache, **self.context)
        return at_last_places(outputs, mask)

    def generate(self) -> Tensor:
        """The new tokens [B N I], or [N I] for one prompt [T I]."""
        new = list(self.stream())
        tokens = torch.stack(new, dim=1) if new else self.series.values[:, :0]
        return tokens[0] if self.series.single else tokens

    @torch.no_grad()
    def stream(self) -> Iterator[Tensor]:
        """The new tokens [B I], one after the other."""
        x, mask = self.series.values, self.series.mask
        cache = self._new_cache()
        for step in range(self.steps):
            token = self._read(x, mask, cache)
            yield token
            if step + 1 == self.steps:
                return
            if self.cached:
                x, mask = token[:, None].to(x.dtype), None
                self.context = {}
                continue
            x, cache = torch.cat([x, token[:, None].to(x.dtype)], dim=1), self._new_cache()
            mask = None if mask is None else torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
