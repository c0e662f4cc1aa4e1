"""The query string of an inference request -> its options."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args
from urllib.parse import parse_qsl

from contract.preprocess import Fit, Polarity
from service.errors import InvalidParameter, UnknownParameter

Exif = Literal["apply", "ignore"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "polarity": get_args(Polarity),
    "fit": get_args(Fit),
    "exif": get_args(Exif),
}
_NAMES = ("model", "version", *_CHOICES)
_LONGEST_QUERY = 2048


@dataclass(frozen=True, slots=True)
class Options:
    """model, version: None where the request leaves the choice. The rest as `contract.preprocess.prepare`."""

    model: str | None = None
    version: int | None = None
    polarity: Polarity = "auto"
    fit: Fit = "auto"
    exif: Exif = "apply"


_DEFAULTS = Options()


def read_options(query: bytes) -> Options:
    """Options of `model=...&polarity=...`.

    Raises:
        UnknownParameter, InvalidParameter: with what is known or allowed.
    """
    return _read(query) if query else _DEFAULTS


@lru_cache(maxsize=256)
def _read(query: bytes) -> Options:
    if len(query) > _LONGEST_QUERY:
        raise InvalidParameter(f"the query is longer than {_LONGEST_QUERY} bytes")
    given: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in _NAMES:
            raise UnknownParameter(f"{name[:100]!r} is not known here", parameter=name[:100], known=list(_NAMES))
        if name in given:
            raise InvalidParameter(f"{name} is given twice", parameter=name)
        if name in _CHOICES and value not in _CHOICES[name]:
            raise InvalidParameter(
                f"{name} is {value[:100]!r}, allowed are {', '.join(_CHOICES[name])}",
                parameter=name,
                allowed=list(_CHOICES[name]),
            )
        given[name] = value
    return Options(
        model=given.get("model"),
        version=_version(given.get("version")),
        polarity=cast(Polarity, given.get("polarity", "auto")),
        fit=cast(Fit, given.get("fit", "auto")),
        exif=cast(Exif, given.get("exif", "apply")),
    )


def _version(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise InvalidParameter(f"version is {text[:100]!r}, it is a positive integer", parameter="version")
    return int(text)
