"""Makes the turned line of text of this folder: `python examples/make_text.py`.

Needs Debian's fonts-ebgaramond (OFL 1.1), a family that upright-text was not trained with.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from training.datasets.text_crops import Look, draw_mask, load_font, take_picture

FOLDER = Path(__file__).parent
FONT = "EBGaramond12-Regular.otf"
TEXT, DEGREES = "born free and equal", 143.0
LOOK = Look(
    size=72,
    lines=1,
    spacing=0.2,
    align="left",
    ink=(38.0, 44.0, 82.0),
    paper=(233.0, 226.0, 210.0),
    shade=0.3,
    towards=(0.8, 0.6),
    blur=0.7,
    noise=4.0,
    quality=85,
    margin=60,
)


def draw(fonts: Path) -> Image.Image:
    """The line of text on paper, turned counter-clockwise by DEGREES."""
    (file,) = fonts.rglob(FONT)
    mask = draw_mask(TEXT, "latin", load_font(file, LOOK.size), LOOK)
    return Image.fromarray(take_picture(mask, LOOK, DEGREES, np.random.default_rng(0)))


if __name__ == "__main__":
    draw(Path("/usr/share/fonts")).save(FOLDER / "turned-text.jpg", quality=80)
