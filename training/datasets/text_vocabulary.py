"""Words of the names that CLDR gives in seventeen languages: far more than one text holds.

Of languages, scripts, countries, currencies, months, days, units, and time zones' cities. CLDR is the Unicode
Consortium's (Unicode licence 3), and Babel carries it (BSD 3-clause); which release follows from Babel's version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from training.datasets.text_fonts import Script
from training.errors import DataError

__all__ = ["FEWEST_LETTERS", "LETTERS", "MOST_LETTERS", "names"]

FEWEST_LETTERS, MOST_LETTERS = 3, 18  # a line; the shortest has a top and a bottom for a reader too

# What nearly every font of the script has.
LETTERS: dict[Script, str] = {
    "latin": "a-zà-öø-ÿ",
    "greek": "ά-ώ",
    "cyrillic": "а-яёєіїґ",
    "hebrew": "\u05d0-\u05ea",
    "arabic": "\u0621-\u063a\u0641-\u064a",
    "devanagari": "\u0900-\u0903\u0905-\u0939\u093c\u093e-\u094d",
}
LOCALES: dict[Script, tuple[str, ...]] = {
    "latin": ("en", "fr", "de", "es", "it", "pt", "nl", "sv", "fi", "id"),
    "greek": ("el",),
    "cyrillic": ("ru", "uk", "bg"),
    "hebrew": ("he",),
    "arabic": ("ar",),
    "devanagari": ("hi",),
}
KINDS = (
    "languages",
    "scripts",
    "territories",
    "variants",
    "currency_names",
    "months",
    "days",
    "quarters",
    "eras",
    "day_periods",
    "date_fields",
    "time_zones",
    "meta_zones",
    "unit_display_names",
    "unit_patterns",
)
BETWEEN_WORDS = re.compile(r"[\s\u200e\u200f\u202a-\u202e\-–—/(),.;:·&{}\d]+")


@lru_cache(maxsize=16)
def names(script: Script) -> tuple[str, ...]:
    """Every word once that has 3 to 18 letters, all of the script: lower case, in sorted order.

    Raises:
        DataError: Babel is not installed.
    """
    try:
        from babel import localedata
    except ModuleNotFoundError as error:
        raise DataError("text: CLDR's words need Babel, of the extra training: pip install '.[training]'") from error
    word = re.compile(f"[{LETTERS[script]}]{{{FEWEST_LETTERS},{MOST_LETTERS}}}")
    found = (name.lower() for locale in LOCALES[script] for name in _texts(_of_kinds(localedata.load(locale))))
    return tuple(sorted({part for name in found for part in BETWEEN_WORDS.split(name) if word.fullmatch(part)}))


def _of_kinds(data: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: data[kind] for kind in KINDS if kind in data}


def _texts(data: Mapping[Any, Any]) -> Iterator[str]:
    """Every text of nested mappings; CLDR's references to what stands elsewhere are passed over."""
    for value in data.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _texts(value)
