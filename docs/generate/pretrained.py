"""Renders the list of families in docs/pretrained.md from `FAMILIES`.

Run from the repository root: python docs/generate/pretrained.py
"""

from pathlib import Path

from x_positional.pretrained import FAMILIES
from x_positional.pretrained.families import NESTED, TOWERS
from x_positional.pretrained.families.refused import REFUSED
from x_positional.pretrained.gguf.architectures import ARCHITECTURES
from x_positional.pretrained.nested import NestedModel

PAGE = Path(__file__).parents[2] / "docs" / "pretrained.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
KINDS = {
    "decoder": "Decoders: `TransformerWrapper`, logits of the next token",
    "encoder": "Encoders: `TransformerWrapper`, or `TokenEncoder` without a head, which returns hidden states",
    "seq2seq": "Encoder-decoders: `XTransformer`, `logits(src, tgt, mask)`",
    "vision": "Images: `ViTransformerWrapper`, `pixel_values [B, C, H, W]`",
}


def rows() -> list[str]:
    """One table per kind of model."""
    gguf_names = {architecture.model_type: name for name, architecture in ARCHITECTURES.items()}
    lines = []
    for kind in dict.fromkeys(family.kind for family in FAMILIES.values()):
        families = {name: family for name, family in FAMILIES.items() if family.kind == kind}
        gguf = any(name in gguf_names for name in families)
        lines += ["", f"{KINDS[kind]}.", "", f"| `model_type` | in transformers |{' in GGUF |' if gguf else ''}"]
        lines += ["|---|---|---|" if gguf else "|---|---|"]
        for name, family in sorted(families.items()):
            more = (f" `{gguf_names[name]}` |" if name in gguf_names else " |") if gguf else ""
            lines.append(f"| `{name}` | `{family.architecture or family.body_architecture}` |{more}")
    nested = [f"`{name}` (as {_texts(model)})" for name, model in sorted(NESTED.items())]
    lines += ["", f"Of multimodal models only the text model is read: {', '.join(nested)}."]
    towers = [
        f"`{name}` (as {' or '.join(f'`{tower.family.model_type}`' for tower in parts)})"
        for name, parts in sorted(TOWERS.items())
    ]
    lines += [
        "",
        f"Of models of two towers one is read, `from_pretrained(folder, model_type=...)`: {', '.join(towers)}.",
    ]
    saved = [f"`{name}` as `{f.written_as.model_type}`" for name, f in sorted(FAMILIES.items()) if f.written_as]
    lines += ["", f"Saved under the name that transformers has a class for: {', '.join(saved)}."]
    lines += ["", "Refused with the reason, because the block lacks a mechanism:", ""]
    for reason in dict.fromkeys(REFUSED.values()):
        lines.append(f"- {', '.join(f'`{name}`' for name, why in REFUSED.items() if why == reason)}: {reason}.")
    return lines


def _texts(model: NestedModel) -> str:
    """The families that the text model may belong to."""
    return " or ".join(f"`{family.model_type}`" for family in (model.family, *model.others))


def render(text: str) -> str:
    """The page with its list regenerated."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{chr(10).join(rows()).strip()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
