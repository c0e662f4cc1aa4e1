"""Rendered text: words and short lines of eight scripts, turned by any angle, framed as the service frames a picture.

Crop i of a part is a function of the seed, the part and i alone. Families of fonts and real words belong to one part
each. What was drawn is kept in the data folder, under a name that follows from all that it depends on.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import PIL
import torch

from contract.manifest import InputSpec, Preprocessing
from contract.preprocess import prepare
from training.config import TextData
from training.datasets.images import LabelledImages, Splits
from training.datasets.storage import data_root, expanded
from training.datasets.text_crops import Look, draw_look, draw_mask, load_font, require_shaping, take_picture
from training.datasets.text_fonts import SCRIPTS, Part, Script, find_fonts
from training.datasets.text_words import MADE_UP, TEXTS, draw_text, vocabulary
from training.errors import DataError
from training.files import make_folder, write_atomically

__all__ = ["PREPROCESSING", "Crop", "Fonts", "crops", "load", "prepared"]

PREPROCESSING = Preprocessing(polarity="light", fit="circle", margin=0.04)
CHUNK = 1000  # crops a file
DRAWING = 2  # to be raised with every change to what is drawn
PARTS: tuple[Part, ...] = ("train", "validation", "test")
# Latin more often: the service's users send it more often. The others alike.
SHARES: dict[Script, float] = {script: 0.3 if script == "latin" else 0.1 for script in SCRIPTS}

Fonts = dict[Script, dict[str, tuple[Path | None, ...]]]
"""script -> family -> files; a file of None is Pillow's own font."""
Arrays = dict[str, npt.NDArray[Any]]
"""images uint8 [N,1,S,S], labels int64 [N], turns float32 [N]."""


class Crop(NamedTuple):
    """A picture uint8 [H,W] or [H,W,3] of text that is turned counter-clockwise by `degrees`, as seen."""

    pixels: npt.NDArray[np.uint8]
    degrees: float
    script: Script
    family: str
    text: str
    look: Look


def crops(
    fonts: Fonts,
    part: Part,
    count: int,
    seed: int,
    degrees: Sequence[float] | None = None,
    first: int = 0,
    made_up: float = MADE_UP,
    more: Mapping[str, float] | None = None,
) -> Iterator[Crop]:
    """Draw `count` crops of one part, from number `first` on.

    Args:
        degrees: angles that the crops take in turn; None: uniform over the circle.
        made_up: share of made-up words. more: script -> factor by which it is drawn more often.
    """
    scripts = [script for script in SCRIPTS if fonts.get(script)]
    weights = np.array([SHARES[script] * (more or {}).get(script, 1.0) for script in scripts])
    for index in range(first, first + count):
        rng = np.random.default_rng((seed, PARTS.index(part), index))
        script = scripts[int(rng.choice(len(scripts), p=weights / weights.sum()))]
        family = sorted(fonts[script])[int(rng.integers(len(fonts[script])))]
        files = fonts[script][family]
        look = draw_look(rng)
        font = load_font(files[int(rng.integers(len(files)))], look.size)
        text = "\n".join(draw_text(script, part, rng, made_up) for _ in range(look.lines))
        angle = float(rng.uniform(-180, 180)) if degrees is None else float(degrees[index % len(degrees)])
        pixels = take_picture(draw_mask(text, script, font, look), look, angle, rng)
        yield Crop(pixels, angle, script, family, text, look)


def prepared(drawn: Iterator[Crop], count: int, spec: InputSpec) -> LabelledImages:
    """Crops as the service hands them to a model; the labels are the scripts, `turns` the angles."""
    return _labelled(_draw(drawn, count, spec))


def _labelled(arrays: Arrays) -> LabelledImages:
    images, labels, turns = (torch.from_numpy(arrays[name]) for name in ("images", "labels", "turns"))
    return LabelledImages(images, labels, tuple(SCRIPTS), turns)


def _draw(drawn: Iterator[Crop], count: int, spec: InputSpec) -> Arrays:
    images = np.zeros((count, 1, spec.height, spec.width), np.uint8)
    labels, turns = np.zeros(count, np.int64), np.zeros(count, np.float32)
    for index, crop in enumerate(drawn):
        framed = prepare(crop.pixels, spec, PREPROCESSING, fit="content")
        images[index] = np.rint(framed.image * 255)
        labels[index], turns[index] = SCRIPTS.index(crop.script), math.radians(crop.degrees)
    return {"images": images, "labels": labels, "turns": turns}


def load(config: TextData) -> Splits:
    """Draw all three parts, or read what was drawn before.

    Raises:
        DataError: an unknown script, fonts are missing (the message names Debian's packages), or a file of what was
            drawn is damaged.
        RunError: the data folder cannot be written.
    """
    require_shaping()
    if unknown := sorted(set(config.more) - set(SCRIPTS)):
        raise DataError(f"text: data.more names {', '.join(unknown)}; the scripts are {', '.join(SCRIPTS)}")
    spec = InputSpec(channels=1, height=config.size, width=config.size)
    counts = {"train": config.train, "validation": config.validation, "test": config.test}
    parts = {part: _part(config, part, counts[part], spec) for part in PARTS}
    return Splits(
        name="text",
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        input=spec,
        preprocessing=PREPROCESSING,
    )


def _part(config: TextData, part: Part, count: int, spec: InputSpec) -> LabelledImages:
    """One part, `CHUNK` crops at a time: what was drawn before a kill, or for fewer crops, is not drawn again."""
    fonts: Fonts = {
        script: dict(families) for script, families in find_fonts(expanded(config.path), part, SCRIPTS).items()
    }
    key = _key(config, part, fonts)
    chunks: list[Arrays] = []
    options: dict[str, Any] = {"made_up": config.made_up, "more": config.more} if part == "train" else {}
    for first in range(0, count, CHUNK):
        size = min(CHUNK, count - first)
        path = data_root() / "text" / f"{part}-{key}-{first}-{first + size}.npz"
        if path.is_file():
            chunks.append(_read(path))
        else:
            chunks.append(_draw(crops(fonts, part, size, config.seed, first=first, **options), size, spec))
            _write(path, chunks[-1])
    return _labelled({name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})


def _read(path: Path) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in ("images", "labels", "turns")}
    except (OSError, ValueError, LookupError, EOFError, zlib.error, BadZipFile) as error:
        raise DataError(f"text: {path} is damaged ({error}): delete it, and it is drawn anew") from error


def _write(path: Path, stored: Arrays) -> None:
    make_folder(path.parent)
    archive = io.BytesIO()
    np.savez_compressed(archive, allow_pickle=False, **stored)
    write_atomically(path, archive.getvalue())


def _key(config: TextData, part: Part, fonts: Fonts) -> str:
    """All that the crops depend on, digested: the drawing, its options, the files of the fonts, the library."""
    files = sorted({file for families in fonts.values() for names in families.values() for file in names if file})
    what: dict[str, Any] = {
        "drawing": DRAWING,
        "pillow": PIL.__version__,
        "part": part,
        "seed": config.seed,
        "size": config.size,
        "preprocessing": PREPROCESSING.model_dump(mode="json"),
        "fonts": [(file.name, file.stat().st_size) for file in files],
    }
    if part == "train":
        what |= {"made_up": config.made_up, "more": config.more}
    if part != "test":
        what["words"] = [vocabulary(script, part) for script in TEXTS]  # CLDR's among them: as Babel's version has them
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
