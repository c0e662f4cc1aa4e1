"""Which media type answers an `Accept` header (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence
from functools import lru_cache

from service.errors import NotAcceptable


def choose(accept: bytes, offered: Sequence[str]) -> str:
    """The offered type with the highest quality; among equals the more specific range, then the first offered.

    Raises:
        NotAcceptable: none is accepted.
    """
    if not accept:
        return offered[0]
    ranges = _read_ranges(accept)
    best: tuple[float, int] = (0.0, 0)
    chosen = None
    for media_type in offered:
        # RFC 9110: the most specific range that matches decides the quality of a type
        matching = [(specificity, quality) for name, specificity, quality in ranges if _matches(name, media_type)]
        if not matching:
            continue
        specificity, quality = max(matching)
        if quality > 0 and (quality, specificity) > best:
            best, chosen = (quality, specificity), media_type
    if chosen is None:
        raise NotAcceptable(f"this can be answered as {', '.join(offered)}", offered=list(offered))
    return chosen


@lru_cache(maxsize=16)  # a request may ask twice, and a client always sends the same
def _read_ranges(accept: bytes) -> list[tuple[str, int, float]]:
    """Name, how specific it is, and quality of each range."""
    return [_read_range(part) for part in accept.decode("latin-1").split(",") if part.strip()]


def _read_range(text: str) -> tuple[str, int, float]:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                quality = 0.0
    specificity = 0 if name == "*/*" else 1 if name.endswith("/*") else 2
    return name, specificity, quality


def _matches(media_range: str, media_type: str) -> bool:
    return media_range in ("*/*", media_type) or (
        media_range.endswith("/*") and media_type.startswith(media_range[:-1])
    )
