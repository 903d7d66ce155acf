"""Renders docs/migration.md: the prose from this file, the tables from the data that flags are read with.

Run from the repository root: python docs/generate/migration.py
"""

import textwrap
from collections.abc import Iterable
from pathlib import Path

from x_positional.config.flags.answers import PARAMETERS, flags_of_call, verdict
from x_positional.config.flags.entry import REQUIRED, Flag
from x_positional.config.flags.missing import ATTRIBUTES, CLASSES, LOADING
from x_positional.config.flags.table import FLAGS, PLACES
from x_positional.config.flags.transformers import WORDS

PAGE = Path(__file__).parents[1] / "migration.md"
LAYERS = "AttentionLayers"
WIDTH = 128
"""Columns of a line of prose."""

PROSE = """\
# Migrating from x-transformers

Class names, keyword flags and their defaults are those of x-transformers 2.31, wherever the feature exists. This page lists
what to change. It is generated from the table that flags are read with, so it is always up to date.

```python
import torch
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper

model = TransformerWrapper(
    num_tokens=256, max_seq_len=1024, attn_layers=Decoder(dim=512, depth=6, heads=8, rotary_pos_emb=True)
)
loss = AutoregressiveWrapper(model)(torch.randint(0, 256, (1, 128)))
```

## Four steps

1. Change the import. Keep the flags.
2. Run it. One error lists every unsupported flag, with the reason and what to use instead.
3. Convert weights with `from_x_transformers`, see below. Read "Where numbers differ" before you compare losses.
4. Rename arguments of calls: `pos=` is `positions=`, and `seq_start_pos=` is `mask=`. A cache is an object: create it
   with `model.new_cache(batch_size)`, pass it as `cache=`, and give each call only the new tokens. A call lists every
   keyword that it does not support, with the text of the tables below, before it computes anything.

## How flags are read

- A flag keeps the default and the numerics of x-transformers. `rotary_pos_emb=True` rotates half of each head in
  interleaved pairs, as x-transformers does. `position="rope"` rotates the whole head in half-split pairs, as most
  published models do.
- A flag is **supported** or **refused**. A refused flag is accepted at a value that switches it off (its default, `None`,
  `False`, `0`).
- An unknown flag is an error with the nearest name. So is a flag of `XTransformer` without `enc_` or `dec_`, which
  x-transformers drops silently.
- A setting whose main flag is off is an error: `rotary_emb_dim` without `rotary_pos_emb`, `alibi_num_heads` without
  `alibi_pos_bias`, `rel_pos_num_buckets` without `rel_pos_bias`, `attn_qk_norm_scale` without `attn_qk_norm`.
- Flags that cannot be combined are an error: `rotary_pos_emb` with `polar_pos_emb`; any two of `alibi_pos_bias`,
  `rel_pos_bias`, `dynamic_pos_bias` and `attn_data_dependent_alibi`; `position=` with any of them.
- One value per flag. A tuple with a value per layer is refused.
- Cross-attention shares the settings of `attn_*`. A `cross_attn_*` flag may repeat one and may not change it;
  `cross_attn_dim_context` is the exception.

## Weights

A trained model is converted to an x_positional model with the same outputs:

```python
import x_transformers
from x_positional import from_x_transformers
from x_positional.pretrained.x_transformers import form_of

theirs = x_transformers.TransformerWrapper(
    num_tokens=256, max_seq_len=64, attn_layers=x_transformers.Decoder(dim=64, depth=2, heads=4, alibi_pos_bias=True)
)
ours = from_x_transformers(theirs)
```

Or pass the class and its keywords together with a state dict; then x-transformers need not be installed:

```python
made_with = {"TransformerWrapper": {
    "num_tokens": 256, "max_seq_len": 64,
    "attn_layers": {"Decoder": {"dim": 64, "depth": 2, "heads": 4, "alibi_pos_bias": True}},
}}
ours = from_x_transformers(made_with, theirs.state_dict())
print(form_of(theirs))  # the keywords, recovered from a model instance
```

- Keywords have the meaning of x-transformers, even where "Where numbers differ" lists a difference: the absolute table is
  kept where x-transformers keeps it, and query heads and their slopes are reordered.
- It takes `TransformerWrapper`, `ContinuousTransformerWrapper`, `ViTransformerWrapper`, `XTransformer`,
  `AutoregressiveWrapper`, and a bare stack. A `TransformerWrapper` with `return_only_embed=True` becomes a model without a
  head.
- Every tensor is used and every parameter is filled; otherwise `ConversionError` lists the causes: refused flags,
  attributes that differ from those of x-transformers 2.31, hooks, modified tables, shared weights.
- Refused in conversion alone, because outputs would differ: CoPE beside rotary embeddings, image registers beside a
  position scheme, PoPE with fewer key heads, `attn_max_attend_past` that affects cross-attention.

## One value for position

`position=` replaces all position flags: a name, a config, your own scheme, or a list of them. The configs are
`from x_positional import Alibi, Rope, T5, XPos`.

| x-transformers | x_positional, same numbers |
|---|---|
| `rotary_pos_emb=True` | `position=Rope(dim=head_dim // 2, interleaved=True)` |
| `rotary_xpos=True` | `position=XPos(dim=head_dim // 2, interleaved=True)` |
| `polar_pos_emb=True` | `position="polar"` |
| `alibi_pos_bias=True` | `position=["absolute", "alibi"]` |
| `alibi_pos_bias=True`, `use_abs_pos_emb=False` | `position="alibi"` |
| `rel_pos_bias=True` | `position=T5(scale=head_dim ** 0.5)` |
| `dynamic_pos_bias=True` | `position=["absolute", "dynamic"]` |
| `attn_use_cope=True` | `position=["absolute", "cope"]` |
| `attn_data_dependent_alibi=True` | `position=["absolute", "forgetting"]` |
| `scaled_sinu_pos_emb=True` | `position="scaled_sinusoidal"` |
| `use_abs_pos_emb=False` alone | `position="none"` |
| nothing | nothing, or `position="absolute"` |

## Where numbers differ

- **The absolute table.** x-transformers adds a learned table by default: beside ALiBi, dynamic bias, CoPE and forget
  gates it stays on, and the model then cannot run past `max_seq_len`. x_positional adds it only on request or where no
  other scheme is chosen. `use_abs_pos_emb=True`, or `position=["absolute", "alibi"]`, keeps it.
- **A table beside RoPE, PoPE or T5.** x-transformers silently ignores `use_abs_pos_emb=True` and
  `scaled_sinu_pos_emb=True`. In x_positional that is an error; for both use `disable_abs_pos_emb=False`, or a list in
  `position=`.
- **T5.** x-transformers multiplies the learned bias by `head_dim ** 0.5`. The flag keeps that (`scale`);
  `position="t5"` adds the bias unscaled, as T5 does.
- **ALiBi in an encoder** is symmetric in both libraries. `Alibi(variant="asymmetric")` gives each side its own slopes.
- **Windows.** `attn_max_attend_past=n` sees n tokens back *and* the token itself, so it is `window=n + 1`. In
  x-transformers it also restricts cross-attention, by index; a window applies to self-attention alone. In an encoder it
  bounds the past and not the future, which is refused; `window=` bounds both sides.
- **Grouped queries.** With `attn_kv_heads=G` the query head h reads key head `h // (heads // G)`, as in most
  published models. x-transformers reads `h % G`. `from_x_transformers` reorders the query heads, and the
  per-head slopes of ALiBi with them.
- **Norms.** `use_rmsnorm`, `use_simple_rmsnorm` and `use_scalenorm` set `norm.eps=1e-12`, because x-transformers
  uses no eps. `norm="rms"` has the usual 1e-6.
- **Gated feedforward.** The gated projection of x-transformers has a bias even with `ff_no_bias=True`. The two flags
  together keep it (`ff.gate_bias`); `ff={"glu": True, "bias": False}` has none.
- **`attn_data_dependent_alibi`** gives the same outputs with and without a KV cache. In x-transformers cached decoding
  uses wrong gates. It needs a causal model; a bidirectional one is refused.
- **RoPE with CoPE.** CoPE reads the query before rotation, so adding a constant to all positions has no effect.
- **`pre_norm=False`** has no final norm in either library.
- **Images.** x-transformers' `ViTransformerWrapper` adds its table beside every scheme; x_positional only where no scheme
  is chosen, or with `disable_abs_pos_emb=False`. At another resolution the table is resized; x-transformers reads its
  first rows in raster order. Registers come before the patches and are not rotated; in x-transformers they come after and
  are rotated.
- **`temperature=0`** takes the most likely token that the filters keep; x-transformers runs no filter then. It makes a
  difference for functions of the caller and for `typical`.
- **`ContinuousAutoregressiveWrapper`** counts a target where it and the token before it are real; x-transformers counts the
  first padding token too, and divides by no channels with `equal_loss_weight_batch=True`.
- **`l2norm_embed=True`** normalises token embeddings to unit length; x-transformers normalises the learned position table
  too. With a scheme without a table the two agree.
- **`polar_bias_uniform_init=True`** works; it crashes in x-transformers. An odd `rotary_emb_dim` is an error; in
  x-transformers it rotates one channel more.
"""


def cell(text: str) -> str:
    """Text with characters escaped that would end a table cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def row(flag: Flag) -> str:
    """One keyword as a row."""
    default = "required" if flag.default is REQUIRED else f"`{flag.default!r}`"
    status, text = handled(flag)
    return f"| `{flag.name}` | {default} | {status} | {cell(text)} |"


def handled(flag: Flag, where: str | None = None) -> tuple[str, str]:
    """Supported or refused, and the last cell of a row: the text of the error. where: the call, if not `flag.where`."""
    status, text = verdict(flag, PARAMETERS.get(where or flag.where, frozenset()))
    field = flag.field if status == flag.verdict == "supported" else None
    return status, text if field is None else f"`{field}`: {text}"


def section(title: str, flags: Iterable[Flag], level: str = "###") -> list[str]:
    """A heading and a table, supported keywords first."""
    ordered = sorted(flags, key=lambda flag: handled(flag)[0] == "refused")
    return [
        f"{level} {title}",
        "",
        "| keyword | default | status | what it sets, or the reason and the alternative |",
        "|---|---|---|---|",
        *map(row, ordered),
        "",
    ]


def layer_sections() -> list[str]:
    """Encoder, Decoder and CrossAttender, by prefix."""
    flags = [flag for flag in PLACES[LAYERS].values() if not flag.own]
    cross = [f for f in flags if f.name.startswith("cross_attn_") and f.name != "cross_attn_tokens_dropout"]
    passed = [f for f in flags if f.name.startswith("attn_") and not f.name.startswith("attn_aggregated_")]
    ff = [f for f in flags if f.name.startswith("ff_")]
    rest = [f for f in flags if f not in cross + passed + ff]
    repeated = [f for f in cross if f.verdict == "refused"]
    lines = section("Encoder, Decoder, CrossAttender", rest) + section("attn_: attention", passed)
    lines += section("cross_attn_: cross-attention alone", [f for f in cross if f.verdict == "supported"])
    lines.append("The others are accepted where they repeat their `attn_` flag and refused elsewhere.")
    names = ", ".join(f"`{flag.name}`" for flag in repeated) + "."
    lines += [*textwrap.wrap(names, WIDTH, break_on_hyphens=False), ""]
    return lines + section("ff_: feedforward", ff)


def words_sections() -> list[str]:
    """The words of transformers, by call."""
    lines = [
        "## From transformers",
        "",
        "Its words are accepted where they mean the same, and refused with the reason and what to use instead where they do not.",
        "",
    ]
    for place in WORDS:
        flags = [flag for flag in flags_of_call(place).values() if flag in WORDS[place]]
        lines += [
            f"### {place}, from transformers",
            "",
            "| keyword | status | what it sets, or the reason |",
            "|---|---|---|",
        ]
        rows = [(flag.name, *handled(flag, place)) for flag in flags]
        rows.sort(key=lambda row: row[1] == "refused")
        lines += [f"| `{name}` | {status} | {cell(text)} |" for name, status, text in rows]
        lines.append("")
    return lines


def missing_sections() -> list[str]:
    """Classes and attributes that do not exist."""
    lines = ["## Classes that do not exist here", "", "Importing one is an error with this reason.", ""]
    lines += ["| class | what to use instead |", "|---|---|"]
    lines += [f"| `{name}` | {cell(text)} |" for name, text in CLASSES.items()]
    lines += ["", "## Attributes that do not exist here", "", "Reading one is an AttributeError with this reason.", ""]
    lines += ["| attribute | what to use instead |", "|---|---|"]
    for name, attributes in ATTRIBUTES.items():
        lines += [f"| `{name}.{attribute}` | {cell(text)} |" for attribute, text in attributes.items()]
    lines += ["", "## Keywords of transformers for loading", "", "`from_pretrained` answers them with this reason.", ""]
    lines += ["| keyword | what to use instead |", "|---|---|"]
    lines += [f"| `{name}` | {cell(text)} |" for name, text in LOADING.items()]
    return [*lines, ""]


def own_section() -> list[str]:
    """Flags that x-transformers does not have."""
    lines = [
        "## Flags that x-transformers does not have",
        "",
        "Accepted beside the others by `Encoder`, `Decoder` and `CrossAttender`.",
        "",
    ]
    lines += ["| flag | sets | meaning |", "|---|---|---|"]
    return lines + [f"| `{f.name}` | `{f.field}` | {cell(f.note)} |" for f in FLAGS if f.own] + [""]


def render() -> str:
    """The whole page."""
    theirs = [flag for flag in FLAGS if not flag.own]
    supported = sum(handled(flag)[0] == "supported" for flag in theirs)
    lines = [PROSE, *own_section(), *missing_sections(), *words_sections(), "## Every keyword", ""]
    lines += [f"{len(theirs)} keywords and arguments: {supported} supported, {len(theirs) - supported} refused.", ""]
    lines += layer_sections()
    for place in sorted((p for p in PLACES if p != LAYERS), key=lambda p: "." in p):
        lines += section(place, PLACES[place].values())
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
