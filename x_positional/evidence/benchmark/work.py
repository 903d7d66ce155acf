"""What is timed: a training step, a forward pass, one decoded token, a rotation; and what each must read and compute.

B batch, T tokens, N new tokens, H heads, D head_dim.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import x_positional
from x_positional import rotary as own_rotary
from x_positional.errors import import_extra
from x_positional.evidence.benchmark.clock import Sample, seconds
from x_positional.evidence.benchmark.machine import DTYPES
from x_positional.evidence.benchmark.models import OURS, ROTARY, TRANSFORMERS, X_TRANSFORMERS, Models, Recipe

Kind = Literal["train", "forward", "decode", "rotate"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit of work."""

    kind: Kind
    batch: int = 1
    length: int
    """Tokens of the prompt, of the forward pass or of the training step."""
    new: int = 0
    """Tokens that are decoded after the prompt."""

    @property
    def most_tokens(self) -> int:
        """The longest sequence; x-transformers also reads the token that a training step predicts."""
        return self.length + self.new + 2


@dataclass(frozen=True, kw_only=True)
class Side:
    """One contender of a row. A new variant is one more entry of SIDES."""

    library: str
    compiled: bool = False
    int8: bool = False
    scheme: str | None = None
    """In place of the row's."""
    needs: Callable[[], str | None] = lambda: None
    """Why it cannot run here; None if it can."""


SIDES = {
    "x-transformers": Side(library=X_TRANSFORMERS),
    "transformers": Side(library=TRANSFORMERS),
    "transformers static": Side(library=TRANSFORMERS, compiled=True),
    "rotary-embedding-torch": Side(library=ROTARY),
    "x_positional": Side(library=OURS),
    "x_positional none": Side(library=OURS, scheme="none"),
    "x_positional compiled": Side(library=OURS, compiled=True),
    "x_positional int8": Side(library=OURS, int8=True),
    "x_positional int8 compiled": Side(library=OURS, int8=True, compiled=True),
}


@dataclass(frozen=True)
class Demand:
    """What one unit of work reads and computes at least."""

    bytes_read: float
    operations: float


@dataclass
class Prepared:
    """A side, ready to be measured."""

    sample: Sample
    """Seconds of one unit: a step, a pass, a token."""
    demand: Demand
    output: Callable[[], Tensor]
    """What is compared between libraries: logits, new tokens, rotated queries."""
    decode: Callable[[int], object] = lambda new: None
    """Of a decode row: decode so many tokens after the prompt."""


def prepare(side: Side, work: Work, models: Models) -> Prepared:
    """A side of a row. Raises MissingExtra."""
    if work.kind == "rotate":
        return _rotate(side, work, models.recipe)
    model = models.of(side.library)
    if side.int8:
        model = vars(x_positional)["quantize"](copy.deepcopy(model).eval(), "int8")
    if work.kind == "decode":
        return _decode(side, work, model, models.recipe)
    tokens = _tokens(work, models.recipe)
    demand = Demand(0, operations(model, work, models.recipe))

    def logits() -> Tensor:
        with torch.no_grad():
            return _logits(model.eval()(tokens))

    if work.kind == "forward":
        run = logits
    else:
        run = _training_step(side, model, tokens)
    return Prepared(lambda: seconds(run, models.recipe.device), demand, logits)


def _tokens(work: Work, recipe: Recipe) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, recipe.shape.vocab, (work.batch, work.length), generator=generator).to(recipe.device)


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _training_step(side: Side, model: nn.Module, tokens: Tensor) -> Callable[[], object]:
    """Forward, backward and a step of fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.cat([tokens, tokens[:, :1]], dim=1)  # so that `length` tokens are read
    if side.library == TRANSFORMERS:
        loss_of: Callable[[], Tensor] = lambda: model(input_ids=tokens, labels=tokens, use_cache=False).loss  # noqa: E731
    else:
        wrapped = _wrapped(side, model)
        loss_of = lambda: wrapped(tokens)  # noqa: E731

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss_of().backward()
        optimizer.step()

    return step


def _wrapped(side: Side, model: nn.Module) -> Any:
    if side.library == OURS:
        return x_positional.AutoregressiveWrapper(model)  # type: ignore[arg-type]
    return import_extra("x_transformers", "rows of x-transformers need", "bench").AutoregressiveWrapper(model)


def _decode(side: Side, work: Work, model: nn.Module, recipe: Recipe) -> Prepared:
    """Seconds a token: a call for N + 1 tokens less one for 1 token, which is the prompt and everything that is paid once."""
    generate, tokens = _generate(side, model.eval()), _tokens(work, recipe)

    def sample() -> float:
        one = seconds(lambda: generate(tokens, 1), recipe.device)
        return max(seconds(lambda: generate(tokens, work.new + 1), recipe.device) - one, 1e-9) / work.new

    demand = Demand(step_bytes(model, work, recipe), step_operations(model, work, recipe))
    return Prepared(sample, demand, lambda: generate(tokens, work.new + 1), lambda new: generate(tokens, new))


def _generate(side: Side, model: nn.Module) -> Callable[[Tensor, int], Tensor]:
    """Greedy decoding: (prompts [B T], N) -> new tokens [B N]."""
    if side.library == TRANSFORMERS:
        return _transformers_generate(side, model)
    wrapped = _wrapped(side, model)
    if side.library == X_TRANSFORMERS:
        return lambda tokens, new: wrapped.generate(tokens, new, temperature=0.0, cache_kv=True)
    return lambda tokens, new: wrapped.generate(tokens, new, temperature=0.0, compile=side.compiled)


def _transformers_generate(side: Side, model: Any) -> Callable[[Tensor, int], Tensor]:
    transformers = import_extra("transformers", "rows of transformers need", "bench")
    compiling = {}
    if side.compiled:
        compiling = {"cache_implementation": "static", "compile_config": transformers.CompileConfig()}
        compiling["compile_config"]._compile_all_devices = True  # by default it compiles on accelerators alone

    def generate(tokens: Tensor, new: int) -> Tensor:
        options = transformers.GenerationConfig(do_sample=False, max_new_tokens=new, pad_token_id=0, **compiling)
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=options)
        return out[:, tokens.shape[1] :]

    return generate


def _rotate(side: Side, work: Work, recipe: Recipe) -> Prepared:
    """Rotated queries [B H T D]."""
    shape = recipe.shape
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(work.batch, shape.heads, work.length, shape.dim // shape.heads, generator=generator)
    queries = queries.to(recipe.device, DTYPES[recipe.dtype])
    if side.library == OURS:
        rotary: Any = own_rotary.RotaryEmbedding(queries.shape[-1])
    else:
        peer = import_extra("rotary_embedding_torch", "rows of rotary-embedding-torch need", "bench")
        rotary = peer.RotaryEmbedding(queries.shape[-1])
    rotary = rotary.to(recipe.device)

    @torch.no_grad()
    def run() -> Tensor:
        return rotary.rotate_queries_or_keys(queries)

    return Prepared(lambda: seconds(run, recipe.device), Demand(2 * queries.nbytes, 0), run)


EMBEDDINGS, HEADS = ("token_emb.", "model.embed_tokens."), ("to_logits.", "lm_head.")
"""How the parameters of an embedding, and of a head of its own, begin in the three libraries."""


def _multiplied(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that every token reads: all but an embedding that is not also the head."""
    parameters = dict(model.named_parameters())
    untied = any(name.startswith(HEADS) for name in parameters)
    return {name: p for name, p in parameters.items() if not (untied and name.startswith(EMBEDDINGS))}


def weight_bytes(model: nn.Module) -> float:
    """Bytes of the parameters that every token reads."""
    return float(sum(p.nbytes for p in _multiplied(model).values()))


def step_bytes(model: nn.Module, work: Work, recipe: Recipe) -> float:
    """Bytes that one decoding step of all rows reads: the weights once, and the keys and values that are visible on average."""
    layers, width = cache_width(model, recipe)
    visible = work.length + (work.new + 1) / 2
    return weight_bytes(model) + work.batch * visible * layers * 2 * width * DTYPES[recipe.dtype].itemsize


def cache_width(model: nn.Module, recipe: Recipe) -> tuple[int, int]:
    """Layers, and channels of the keys of a layer."""
    config: Any = model.config if recipe.scheme == "smollm2" else None
    if config is None:
        return recipe.shape.depth, recipe.shape.dim
    if isinstance(model, x_positional.TransformerWrapper):
        layers = config.layers
        return layers.depth, (layers.kv_heads or layers.heads) * layers.head_dim
    return config.num_hidden_layers, config.num_key_value_heads * config.hidden_size // config.num_attention_heads


def step_operations(model: nn.Module, work: Work, recipe: Recipe) -> float:
    """Operations of matrix products in one decoding step of all rows."""
    layers, width = cache_width(model, recipe)
    return float(work.batch * (2 * _matrices(model) + 4 * layers * width * (work.length + (work.new + 1) / 2)))


def _matrices(model: nn.Module) -> int:
    """Weights that every token is multiplied with."""
    return sum(p.numel() for p in _multiplied(model).values() if p.ndim == 2)


def operations(model: nn.Module, work: Work, recipe: Recipe) -> float:
    """Operations of matrix products in a forward pass, or in a training step, which has three times as many: every weight
    once a token, and causal attention."""
    matrices = _matrices(model)
    layers, width = cache_width(model, recipe)
    attention = 2 * layers * width * work.length  # queries · keys and weights · values, each over half of the square
    passes = 3 if work.kind == "train" else 1
    return float(passes * work.batch * work.length * (2 * matrices + attention))
