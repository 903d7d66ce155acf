"""The validator's rules about what a scheme reads of a layer: its keys and projections."""

from collections.abc import Iterator

from x_positional.config.validate.case import Case


def projections_of_positions_are_read(case: Case) -> Iterator[str]:
    """Queries and keys of positions are for a scheme that asks for them, and latent attention has none to give."""
    attn, reading = case.layers.attn, case.names(lambda s: s.capabilities().reads_layer)
    if attn.position_projections and not reading:
        yield (
            "attn.position_projections=True makes queries and keys of positions, and no scheme here asks for them. Use "
            "position='deberta', or leave it out."
        )
    if attn.mla is not None and reading:
        yield (
            f"position={', '.join(reading)} reads the projections of queries and keys, and attn.mla makes keys from a latent. "
            "Leave attn.mla out, or use rope."
        )
    if case.layers.kind == "cross_attender" and reading:
        yield (
            f"position={', '.join(reading)} reads the keys of self-attention, and a cross_attender has none. Leave it out, or use "
            "rope, alibi or dynamic."
        )
