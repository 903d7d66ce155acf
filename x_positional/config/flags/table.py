"""Every keyword of x-transformers 2.31, each supported or refused with a reason; data only."""

from x_positional.config.flags import calls, keywords
from x_positional.config.flags.entry import Flag
from x_positional.errors import ArgumentError
from x_positional.schemes.suggest import ELSEWHERE

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


def keyword_hint(name: str) -> str | None:
    """Where a keyword flag that was used as a field of a config belongs; None for other names."""
    for place in PLACES.values():
        flag = place.get(name)
        if flag is not None and flag.verdict == "supported" and flag.field is not None:
            return f"it is a keyword flag; in a config use {flag.field}."
        if flag is not None:
            return f"it is a keyword flag of x-transformers. {flag.note}"
    return None


ELSEWHERE.append(keyword_hint)
