"""Every keyword of x-transformers 2.31, each supported or refused with a reason; data only."""

from x_positional import (
    flag_table_attention,
    flag_table_calls,
    flag_table_feedforward,
    flag_table_layers,
    flag_table_positions,
    flag_table_wrappers,
)
from x_positional.flag_table_entry import Flag

FLAGS: tuple[Flag, ...] = (
    flag_table_positions.ENTRIES
    + flag_table_layers.ENTRIES
    + flag_table_attention.ENTRIES
    + flag_table_feedforward.ENTRIES
    + flag_table_wrappers.ENTRIES
    + flag_table_calls.ENTRIES
)


def _by_place() -> dict[str, dict[str, Flag]]:
    places: dict[str, dict[str, Flag]] = {}
    for flag in FLAGS:
        place = places.setdefault(flag.where, {})
        if flag.name in place:
            raise ValueError(f"{flag.where} lists {flag.name!r} twice; keep one entry")
        place[flag.name] = flag
    return places


PLACES: dict[str, dict[str, Flag]] = _by_place()
"""class or class.method -> keyword -> what becomes of it."""
