"""Models of x_positional in EleutherAI's lm-evaluation-harness, as its model `x_positional`. Importing this registers it.

Log-likelihoods come from batches padded on the right with their mask, so they are those of each text alone. Only the logits of
scored tokens are computed, and texts that differ in their last token alone are read once.
"""

# pyright: reportMissingImports=false
# lm_eval is an extra that not every check of types has.

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.console import Console
from torch import Tensor

from x_positional.errors import UserError, did_you_mean
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TransformerWrapper
from x_positional.pretrained.api import load_source
from x_positional.pretrained.source import open_source
from x_positional.progress import progress_bars
from x_positional.schemes.precision import widened
from x_positional.training.cpu import resolve_device

TOKENS_AT_ONCE, LOGITS_AT_ONCE = 8192, 1 << 24
"""Tokens of a pass with batch_size=auto, and logits that are held at a time."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the largest number of new tokens."""

MODEL = "x_positional"
COMMANDS = ("run", "ls", "validate")
"""Of lm_eval."""

Request = tuple[Any, list[int], list[int]]
"""What identifies a request in lm-eval's cache, context ids, continuation ids."""


@dataclass(frozen=True)
class Sampling:
    """The generation options of a task."""

    until: tuple[str, ...]
    new_tokens: int
    options: dict[str, Any]
    """Of `AutoregressiveWrapper.generate`."""

    @classmethod
    def of(cls, given: dict[str, Any], default: int) -> "Sampling":
        """Raises UserError for options that are not supported."""
        rest = dict(given)
        until = rest.pop("until", None) or ()
        counts = [int(value) for name in COUNTS if (value := rest.pop(name, None)) is not None]
        sampled = rest.pop("do_sample", float(rest.get("temperature", 0.0)) > 0)
        temperature = float(rest.pop("temperature", 1.0))
        filters = {"top_k": "k", "top_p": "thres", "min_p": "min_p"}
        chosen = {name: {filters[name]: rest.pop(name)} for name in filters if name in rest}
        penalty = rest.pop("repetition_penalty", 1.0)
        if rest:
            known = {*filters, *COUNTS, "until", "do_sample", "temperature", "repetition_penalty"}
            raise UserError(
                f"unsupported generation option {next(iter(rest))}; {did_you_mean(next(iter(rest)), known)}"
            )
        options = {
            "temperature": temperature if sampled else 0.0,
            "filter_logits_fn": list(chosen) if sampled and chosen else None,
            "filter_kwargs": list(chosen.values()) if sampled and chosen else None,
            "repetition_penalty": penalty,
        }
        return cls((until,) if isinstance(until, str) else tuple(until), counts[0] if counts else default, options)

    def cut(self, text: str) -> str:
        """The text before the first stop sequence."""
        for stop in filter(None, self.until):
            text = text.split(stop)[0]
        return text


@register_model(MODEL)
class XPositionalLM(TemplateLM):
    """A decoder from anything that `from_pretrained` reads: a run, a published folder, a GGUF file, a name on the Hub.

    Args:
        path: Where the model is.
        batch_size: Texts of a pass, or "auto".
        max_batch_size: Texts of a pass with "auto", at most.
        device: None is CUDA where it is available, else the CPU.
        dtype: float32, bfloat16 or float16; None is the stored one.
        max_length: Tokens that the model sees. None is its trained length.
        max_gen_toks: New tokens of `generate_until` where the task sets none.

    Raises:
        UserError: The model does not predict the next token, or an option is unknown.
        PretrainedError: The model cannot be read.
    """

    def __init__(
        self,
        path: str,
        *,
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
    ) -> None:
        super().__init__()
        if dtype not in (None, "auto", *DTYPES):
            raise UserError(f"unknown dtype={dtype}; supported: {', '.join(DTYPES)}")
        source = open_source(path)
        self._device = torch.device(resolve_device(device or "auto"))
        model = load_source(source, DTYPES.get(dtype or ""), self._device)
        if not isinstance(model, TransformerWrapper) or not model.has_head or model.config.layers.kind != "decoder":
            raise UserError(f"{path} does not predict the next token, so it has no log-likelihoods")
        self.model, self.words, self.path = model.eval(), source.tokenizer(), Path(path)
        self.max_length = max_length or model.config.max_seq_len
        self.max_gen_toks = max_gen_toks
        self._rows = None if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        self._most = max_batch_size or 64
        self._track = progress_bars(Console(stderr=True))

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text. Raises UserError where the tokenizer has none."""
        if not self.words.ends:
            raise UserError(f"the tokenizer of {self.path} has no token that ends a text, which lm-eval needs")
        return self._special("eos_token") or self.words.ends[0]

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context: the BOS token, or else the one that ends a text."""
        start = self._special("bos_token")
        return self.eot_token_id if start is None else start

    def _special(self, name: str) -> int | None:
        return self.words.backend.token_to_id(self.words.special.get(name, ""))

    @property
    def tokenizer_name(self) -> str:
        return str(self.path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's template. Raises UserError for the name of another one."""
        if chat_template is False or chat_template is None:
            return None
        if isinstance(chat_template, str):
            raise UserError(
                f"chat_template={chat_template!r}: only the model's default template is supported; pass true"
            )
        return None if self.words.template is None else self.words.template.text

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.words.chat(chat_history, reply=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, with the tokens that begin every text unless it has them or they are refused."""
        start = self.words.special.get("bos_token")
        begun = start is not None and string.startswith(start)
        return self.words.encode(string, special=not begun if add_special_tokens is None else add_special_tokens)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows of `max_length` tokens."""
        windows: list[tuple[int, Request]] = []
        for row, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append((row, (None, *make_disjoint_window(window))))
        totals = [0.0] * len(requests)
        for (row, _), (found, _) in zip(windows, self._loglikelihood_tokens([w for _, w in windows]), strict=True):
            totals[row] += found
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the greedy one."""
        found: dict[int, tuple[float, bool]] = {}
        same: dict[tuple[int, ...], list[int]] = {}  # what the model reads -> the requests
        for number, (_, context, continuation) in enumerate(requests):
            if not continuation or len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens; it must have 1 to max_length={self.max_length}"
                )
            same.setdefault(tuple((context + continuation)[-self.max_length - 1 : -1]), []).append(number)
        rows = sorted(same, key=lambda ids: (-len(ids), ids))
        for batch in self._track(self._batches(rows), "log-likelihoods"):
            hidden = self._hidden(batch)
            for states, ids in zip(hidden, batch, strict=True):
                conts = [requests[number][2] for number in same[ids]]
                for number, answer in zip(same[ids], self._answers(states[: len(ids)], conts), strict=True):
                    found[number] = answer
                    if requests[number][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)
        return [found[number] for number in range(len(requests))]

    def _batches(self, rows: Sequence[tuple[int, ...]]) -> list[Sequence[tuple[int, ...]]]:
        """Rows of falling length in groups."""
        groups, start = [], 0
        while start < len(rows):
            fit = self._rows or max(1, min(self._most, TOKENS_AT_ONCE // len(rows[start])))
            groups.append(rows[start : start + fit])
            start += fit
        return groups

    @torch.inference_mode()
    def _hidden(self, batch: Sequence[tuple[int, ...]]) -> Tensor:
        """[B T M] the last hidden states of rows padded on the right."""
        longest = max(map(len, batch))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch], device=self._device)
        counts = torch.tensor([[len(row)] for row in batch], device=self._device)
        padded = any(len(row) < longest for row in batch)
        mask = torch.arange(longest, device=self._device) < counts if padded else None
        return self.model(ids, mask=mask, return_embeddings=True)

    @torch.inference_mode()
    def _answers(self, states: Tensor, conts: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Hidden states [T M] of one row -> the sum of the log-probabilities of each continuation, and whether it is greedy."""
        longest = max(map(len, conts))
        states, step = states[-longest:], max(1, LOGITS_AT_ONCE // self.model.num_tokens)
        ids = [torch.tensor(cont, device=self._device) for cont in conts]
        sums, greedy = [0.0] * len(conts), [True] * len(conts)
        for first in range(0, longest, step):
            log_p = widened(self.model.logits(states[first : first + step])).log_softmax(-1)
            for row, cont in enumerate(ids):
                skipped = max(0, longest - len(cont) - first)  # of a shorter continuation
                here = cont[max(0, first - longest + len(cont)) :][: len(log_p) - skipped]
                if len(here):
                    picked = log_p[skipped : skipped + len(here)]
                    sums[row] += float(picked.gather(1, here[:, None]).double().sum())
                    greedy[row] &= bool((picked.argmax(-1) == here).all())
        return list(zip(sums, greedy, strict=True))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop sequence, an end token or the largest number of tokens, through the cache."""
        found: dict[int, str] = {}
        order = sorted(range(len(requests)), key=lambda n: (repr(requests[n].args[1]), -len(requests[n].args[0])))
        jobs: list[tuple[Sampling, list[int]]] = []
        for _, same in groupby(order, key=lambda n: repr(requests[n].args[1])):
            numbers = list(same)
            sampling = Sampling.of(requests[numbers[0]].args[1], self.max_gen_toks)
            rows = self._rows or max(1, min(self._most, TOKENS_AT_ONCE // self.max_length))
            jobs += [(sampling, numbers[i : i + rows]) for i in range(0, len(numbers), rows)]
        for sampling, numbers in self._track(jobs, "generating"):
            texts = self._continued([requests[number].args[0] for number in numbers], sampling)
            for number, text in zip(numbers, texts, strict=True):
                found[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return [found[number] for number in range(len(requests))]

    @torch.inference_mode()
    def _continued(self, contexts: Sequence[str], sampling: Sampling) -> list[str]:
        room = self.max_length - sampling.new_tokens
        if room < 1:
            raise UserError(
                f"max_gen_toks={sampling.new_tokens} leaves no room for the prompt in max_length={self.max_length}; "
                "lower it, or raise max_length"
            )
        prompts = [torch.tensor(self.tok_encode(text)[-room:], device=self._device) for text in contexts]
        ends = self.words.ends

        def stopped(new: Tensor) -> Tensor:
            texts = (self._text(row) for row in new.tolist())
            return torch.tensor([any(stop in text for stop in sampling.until if stop) for text in texts]).to(new.device)

        new = AutoregressiveWrapper(self.model).generate(
            prompts,
            sampling.new_tokens,
            eos_token=ends or None,
            stopping_criteria=stopped if sampling.until else None,
            restrict_to_max_seq_len=False,
            **sampling.options,
        )
        return [sampling.cut(self._text(row)) for row in new.tolist()]

    def _text(self, ids: list[int]) -> str:
        """The text before the first id that ends one."""
        end = next((place for place, number in enumerate(ids) if number in self.words.ends), len(ids))
        return self.words.decode(ids[:end])


def run_lm_eval(arguments: Sequence[str]) -> None:
    """The command line of lm_eval with these arguments; the model is `x_positional` unless they name one."""
    given = list(arguments)
    name, rest = (given[0], given[1:]) if given and given[0] in COMMANDS else ("run", given)
    named = any(word in ("--model", "-M") or word.startswith("--model=") for word in rest)
    model = [] if named or name != "run" else ["--model", MODEL]
    before = sys.argv
    sys.argv = ["lm_eval", name, *model, *rest]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
