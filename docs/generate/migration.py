"""Renders docs/migration.md: the prose from this file, the tables from the data that the flags are read with.

Run from the repository root: python docs/generate/migration.py
"""

from collections.abc import Iterable
from pathlib import Path

from x_positional.config.flags.entry import REQUIRED, Flag
from x_positional.config.flags.table import FLAGS, PLACES

PAGE = Path(__file__).parents[1] / "migration.md"
LAYERS = "AttentionLayers"

PROSE = """\
# Coming from x-transformers

The class names, the keyword flags and their defaults are those of x-transformers 2.31, where the feature exists.
This page says what to change. It is generated from the table that the flags are read with, so it cannot be out of date.

```python
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper

model = TransformerWrapper(
    num_tokens=256, max_seq_len=1024, attn_layers=Decoder(dim=512, depth=6, heads=8, rotary_pos_emb=True)
)
loss = AutoregressiveWrapper(model)(tokens)
```

## Four steps

1. Change the import. Leave the flags as they are.
2. Run it. One error names every flag that cannot be had, with the reason and what to use instead.
3. Bring weights with `from_x_transformers`, see below. Read "Where numbers differ" if you compare losses.
4. Rename arguments of calls: `pos=` is `positions=`, and `seq_start_pos=` is `mask=`. A cache is an object: make it
   with `model.new_cache(batch_size)`, pass it as `cache=`, and give each call the new tokens alone.

## How flags are read

- A flag keeps the default and the numbers of x-transformers. `rotary_pos_emb=True` turns half of each head in
  interleaved pairs, as there. `position="rope"` turns the whole head in half-split pairs, as in most published
  models.
- A flag is **supported** or **refused**. A refused flag that asks for nothing (its own default, `None`, `False`, `0`)
  is fine.
- An unknown flag is an error with the nearest name. `XTransformer` too refuses what has neither `enc_` nor `dec_`;
  x-transformers drops it silently.
- A setting whose main flag is off is an error: `rotary_emb_dim` without `rotary_pos_emb`, `alibi_num_heads` without
  `alibi_pos_bias`, `rel_pos_num_buckets` without `rel_pos_bias`, `attn_qk_norm_scale` without `attn_qk_norm`.
- Flags that make no sense together are an error: `rotary_pos_emb` with `polar_pos_emb`; any two of `alibi_pos_bias`,
  `rel_pos_bias`, `dynamic_pos_bias` and `attn_data_dependent_alibi`; `position=` with any of them.
- One value per flag. A tuple with one value per layer is refused.
- Cross-attention takes the settings of `attn_*`. A `cross_attn_*` flag may repeat them and may not change them;
  `cross_attn_dim_context` is the exception.

## Weights

A trained model becomes one of ours that gives the same outputs:

```python
import x_transformers
from x_positional import from_x_transformers
from x_positional.pretrained.x_transformers import form_of

theirs = x_transformers.TransformerWrapper(
    num_tokens=256, max_seq_len=64, attn_layers=x_transformers.Decoder(dim=64, depth=2, heads=4, alibi_pos_bias=True)
)
ours = from_x_transformers(theirs)
```

Or the class and the keywords, as they were given, beside the state dict; x-transformers need not be installed then:

```python
made_with = {"TransformerWrapper": {
    "num_tokens": 256, "max_seq_len": 64,
    "attn_layers": {"Decoder": {"dim": 64, "depth": 2, "heads": 4, "alibi_pos_bias": True}},
}}
ours = from_x_transformers(made_with, theirs.state_dict())
print(form_of(theirs))       # the keywords that a living model still knows
```

- Keywords mean there what they mean in x-transformers, also where "Where numbers differ" names a difference: tables stay
  where x-transformers keeps them, query heads and their slopes are reordered.
- It takes `TransformerWrapper`, `ContinuousTransformerWrapper`, `ViTransformerWrapper`, `XTransformer`,
  `AutoregressiveWrapper`, and a stack alone. A `TransformerWrapper` with `return_only_embed=True` becomes a model without a
  head.
- Every tensor is used and every parameter is filled, or `ConversionError` names what is not: flags that are refused here,
  attributes of a living model that are not those of x-transformers 2.31, hooks, changed tables, shared weights.
- Refused only here, because the outputs would differ: CoPE beside rotary embeddings, registers of images beside a position
  scheme, PoPE with fewer key heads, `attn_max_attend_past` that reaches cross-attention.

## One value for position

`position=` says everything the position flags say: a name, a config, a scheme of your own, or a list of them.
`from x_positional import Alibi, Rope, T5, XPos` gets the configs.

| x-transformers | here, the same numbers |
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

- **The absolute table.** x-transformers adds a learned table unless told not to: beside ALiBi, dynamic bias, CoPE and
  forget gates it stays on, and the model then cannot run past `max_seq_len`. Here it is on only where it is asked for
  or where no other scheme is chosen. `use_abs_pos_emb=True`, or `position=["absolute", "alibi"]`, keeps it.
- **A table beside RoPE, PoPE or T5.** x-transformers drops `use_abs_pos_emb=True` and `scaled_sinu_pos_emb=True`
  there without a word. Here that is an error; `disable_abs_pos_emb=False`, or a list in `position=`, asks for both.
- **T5.** x-transformers multiplies the learned bias by `head_dim ** 0.5`. The flag keeps that (`scale`);
  `position="t5"` adds the bias as it is, as T5 does.
- **ALiBi in an encoder** is symmetric, as there. `Alibi(variant="asymmetric")` gives the two sides slopes of their
  own.
- **Windows.** `attn_max_attend_past=n` sees n tokens back *and* the token itself, so it is `window=n + 1`. There it
  also cuts cross-attention by slot numbers; here a window is for self-attention alone. In an encoder there it bounds
  the past and leaves the future open, which is refused; `window=` bounds both sides.
- **Grouped queries.** With `attn_kv_heads=G` the query head h reads key head `h // (heads // G)`, as in most
  published models. x-transformers reads `h % G`. `from_x_transformers` reorders the query heads, and beside ALiBi its
  slopes too, which go by head.
- **Norms.** `use_rmsnorm`, `use_simple_rmsnorm` and `use_scalenorm` set `norm.eps=1e-12`, because x-transformers
  divides by the bare length. `norm="rms"` has the usual 1e-6.
- **Gated feedforward.** The gated projection of x-transformers has a bias even with `ff_no_bias=True`. The two flags
  together keep it (`ff.gate_bias`); `ff={"glu": True, "bias": False}` has none.
- **`attn_data_dependent_alibi`** decodes with the KV cache as it trains. In x-transformers cached decoding sees wrong
  gates. It is for causal models; a bidirectional one is refused.
- **RoPE with CoPE.** CoPE reads the query before rotation here, so moving all positions by a constant changes
  nothing.
- **`pre_norm=False`** has no final norm, as there.
- **Images.** x-transformers' `ViTransformerWrapper` adds its table beside every scheme; here it is on where no scheme is
  chosen, or with `disable_abs_pos_emb=False`. At another resolution it is resized; there its first rows are read in
  raster order. Registers stand before the patches, and no scheme rotates them; there they come after and are rotated.
- **`l2norm_embed=True`** makes token embeddings unit vectors. There the learned position table is normalised too;
  here it is not. With a scheme that has no table the two agree.
- **`polar_bias_uniform_init=True`** crashes there and works here. An odd `rotary_emb_dim` turns one channel more than
  it says there; here it is an error.
"""


def cell(text: str) -> str:
    """Text that does not end a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def row(flag: Flag) -> str:
    """One keyword as a row."""
    default = "required" if flag.default is REQUIRED else f"`{flag.default!r}`"
    if flag.verdict == "refused":
        return f"| `{flag.name}` | {default} | refused | {cell(flag.note)} |"
    field = "" if flag.field is None else f"`{flag.field}`: "
    return f"| `{flag.name}` | {default} | supported | {cell(field + flag.note)} |"


def section(title: str, flags: Iterable[Flag], level: str = "###") -> list[str]:
    """A heading and a table, supported keywords first."""
    ordered = sorted(flags, key=lambda flag: flag.verdict == "refused")
    return [
        f"{level} {title}",
        "",
        "| keyword | default | here | what it sets, or why not and what instead |",
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
    lines.append("The others take no value of their own: fine where one repeats its `attn_` flag, refused elsewhere.")
    lines += [", ".join(f"`{flag.name}`" for flag in repeated) + ".", ""]
    return lines + section("ff_: feedforward", ff)


def own_section() -> list[str]:
    """What x-transformers does not have."""
    lines = [
        "## Flags of this library",
        "",
        "Accepted beside the others by `Encoder`, `Decoder` and `CrossAttender`.",
        "",
    ]
    lines += ["| flag | sets | meaning |", "|---|---|---|"]
    return lines + [f"| `{f.name}` | `{f.field}` | {cell(f.note)} |" for f in FLAGS if f.own] + [""]


def render() -> str:
    """The whole page."""
    theirs = [flag for flag in FLAGS if not flag.own]
    supported = sum(flag.verdict == "supported" for flag in theirs)
    lines = [PROSE, *own_section(), "## Every keyword", ""]
    lines += [f"{len(theirs)} keywords and arguments: {supported} supported, {len(theirs) - supported} refused.", ""]
    lines += layer_sections()
    for place in sorted((p for p in PLACES if p != LAYERS), key=lambda p: "." in p):
        lines += section(place, PLACES[place].values())
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
