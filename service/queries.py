"""The query string of an inference request -> its options."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args
from urllib.parse import parse_qsl

from contract.preprocess import Fit, Polarity
from service.errors import InvalidParameter, UnknownParameter

Exif = Literal["apply", "ignore"]
Undo = Literal["rotation", "all"]
Expand = Literal["true", "false"]
Resample = Literal["bicubic", "bilinear", "nearest", "lanczos"]
Colour = tuple[int, int, int]

CHOICES: dict[str, tuple[str, ...]] = {
    "polarity": get_args(Polarity),
    "fit": get_args(Fit),
    "exif": get_args(Exif),
    "undo": get_args(Undo),
    "expand": get_args(Expand),
    "resample": get_args(Resample),
}
"""The words of each parameter that is one of a few; the first is the default."""
_NAMES = ("model", "version", "polarity", "fit", "exif")
_DRAWING_NAMES = (*_NAMES, "fill", "resample")
_NAMES_OF = {
    "canonicalize": (*_DRAWING_NAMES, "undo", "expand", "mode"),
    "augment": (*_DRAWING_NAMES, "n", "seed"),
}
MOST_VARIANTS = 256
MOST_SEED = 2**63 - 1
_COLOUR = re.compile("#?([0-9a-fA-F]{6})")
_LONGEST_QUERY = 2048


@dataclass(frozen=True, slots=True)
class UprightOptions:
    """How the user's own picture is brought upright.

    undo: the rotation alone, about the content's centre, or the whole transform. expand: grow the canvas so that all of
    the picture is on it, else keep the picture's size. fill: what shows where there is no picture; "auto" is the colour
    of the picture's border. resample: how values between pixels are found. mode: which of the modes is undone, 0 is
    the best one.
    """

    undo: Undo = "rotation"
    expand: bool = True
    fill: Literal["auto", "transparent"] | Colour = "auto"
    resample: Resample = "bicubic"
    mode: int = 0


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """n: variants of each picture. seed: of their noise; None where the request leaves it to chance."""

    n: int = 4
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """model, version: None where the request leaves the choice. polarity, fit: see `contract.preprocess.prepare`."""

    model: str | None = None
    version: int | None = None
    polarity: Polarity = "auto"
    fit: Fit = "auto"
    exif: Exif = "apply"
    upright: UprightOptions = UprightOptions()
    augment: AugmentOptions = AugmentOptions()


_DEFAULTS = Options()


def read_options(query: bytes, endpoint: str = "") -> Options:
    """Options of `model=...&polarity=...`, with those that the endpoint alone knows.

    Raises:
        UnknownParameter, InvalidParameter: with what is known or allowed.
    """
    return _read(query, _NAMES_OF.get(endpoint, _NAMES)) if query else _DEFAULTS


@lru_cache(maxsize=256)
def _read(query: bytes, names: tuple[str, ...]) -> Options:
    if len(query) > _LONGEST_QUERY:
        raise InvalidParameter(f"the query is longer than {_LONGEST_QUERY} bytes")
    given: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in names:
            raise UnknownParameter(f"{name[:100]!r} is not known here", parameter=name[:100], known=list(names))
        if name in given:
            raise InvalidParameter(f"{name} is given twice", parameter=name)
        if name in CHOICES and value not in CHOICES[name]:
            raise InvalidParameter(
                f"{name} is {value[:100]!r}, allowed are {', '.join(CHOICES[name])}",
                parameter=name,
                allowed=list(CHOICES[name]),
            )
        given[name] = value
    return Options(
        model=given.get("model"),
        version=_whole(given, "version", 1, 999_999_999),
        polarity=cast(Polarity, given.get("polarity", "auto")),
        fit=cast(Fit, given.get("fit", "auto")),
        exif=cast(Exif, given.get("exif", "apply")),
        upright=UprightOptions(
            undo=cast(Undo, given.get("undo", "rotation")),
            expand=given.get("expand", "true") == "true",
            fill=_fill(given.get("fill", "auto")),
            resample=cast(Resample, given.get("resample", "bicubic")),
            mode=_whole(given, "mode", 0, 999_999_999) or 0,
        ),
        augment=AugmentOptions(
            n=_whole(given, "n", 1, MOST_VARIANTS) or AugmentOptions().n, seed=_whole(given, "seed", 0, MOST_SEED)
        ),
    )


def _whole(given: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    """None where it is not given."""
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        raise InvalidParameter(
            f"{name} is {text[:100]!r}, it is a whole number from {least} to {most:,}", parameter=name
        )
    return int(text)


def _fill(text: str) -> Literal["auto", "transparent"] | Colour:
    if text in ("auto", "transparent"):
        return cast(Literal["auto", "transparent"], text)
    if colour := _COLOUR.fullmatch(text):
        red, green, blue = bytes.fromhex(colour[1])
        return red, green, blue
    hint = " (in a URL a # is written %23, or left out)" if not text else ""
    raise InvalidParameter(
        f"fill is {text[:100]!r}{hint}, allowed are auto, transparent and a colour like #ffffff", parameter="fill"
    )
