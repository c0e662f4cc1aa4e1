"""Capital letters as a folder of pictures: python -m training.symmetry_experiments.letters runs/letters

Printed letters have symmetries that handwriting has not: H, I, N, O, S, X and Z are the same upside down in many fonts.
Each picture is one letter in one of the DejaVu fonts, white on black, its box in the middle, stretched and slanted at
random, which leaves such a symmetry as it is. `training/configs/symmetry-letters.yaml` trains on the folder.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, LARGE = 28, 224
HEIGHT = 0.6  # of a letter, as a share of the side
STRETCH, SLANT = 0.2, 0.15  # of the width, and of x by y, at most


def draw(letter: str, font: Path, source: np.random.Generator) -> Image.Image:
    """One letter, 28 x 28."""
    face = ImageFont.truetype(font, round(HEIGHT * LARGE))
    left, top, right, bottom = face.getbbox(letter)
    page = Image.new("L", (LARGE, LARGE))
    at = ((LARGE - left - right) / 2, (LARGE - top - bottom) / 2)
    ImageDraw.Draw(page).text(at, letter, fill=255, font=face)
    width = np.exp(source.uniform(-STRETCH, STRETCH))
    size = source.uniform(0.9, 1.15)
    slant = source.uniform(-SLANT, SLANT)
    middle = LARGE / 2
    linear = np.array([[size * width, slant], [0.0, size]])
    shift = middle - linear @ (middle, middle)
    values = (linear[0, 0], linear[0, 1], shift[0], linear[1, 0], linear[1, 1], shift[1])
    moved = page.transform((LARGE, LARGE), Image.Transform.AFFINE, values, Image.Resampling.BICUBIC)
    return moved.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"))
    parser.add_argument("--each", type=int, default=20, help="pictures of a letter in one font (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    files = sorted(options.fonts.rglob("DejaVuS*.ttf"))
    if not files:
        parser.error(f"{options.fonts} has no DejaVu fonts; on Debian: apt-get install fonts-dejavu")
    source = np.random.default_rng(options.seed)
    for letter in string.ascii_uppercase:
        folder = options.output / letter
        folder.mkdir(parents=True, exist_ok=True)
        for font in files:
            for index in range(options.each):
                draw(letter, font, source).save(folder / f"{font.stem}-{index}.png")
    print(f"{len(files)} fonts, {26 * len(files) * options.each} pictures in {options.output}")


if __name__ == "__main__":
    main()
