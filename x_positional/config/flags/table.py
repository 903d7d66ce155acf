"""Every keyword of x-transformers 2.31, each supported or refused with a reason; data only."""

from x_positional.config.flags import calls, keywords
from x_positional.config.flags.entry import Flag
from x_positional.errors import ArgumentError

FLAGS: tuple[Flag, ...] = keywords.ENTRIES + calls.ENTRIES


def _by_place() -> dict[str, dict[str, Flag]]:
    places: dict[str, dict[str, Flag]] = {}
    for flag in FLAGS:
        place = places.setdefault(flag.where, {})
        if flag.name in place:
            raise ArgumentError(f"{flag.where} lists {flag.name!r} twice; keep one entry")
        place[flag.name] = flag
    return places


PLACES: dict[str, dict[str, Flag]] = _by_place()
"""class or class.method -> keyword -> how it is handled."""
