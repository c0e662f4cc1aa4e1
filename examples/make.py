"""Makes the pictures of this folder from scikit-learn's handwritten digits: `python examples/make.py`."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent


def digit(label: int, index: int) -> npt.NDArray[np.uint8]:
    """The `index`-th picture of a class as uint8 [8,8], light on dark."""
    digits = load_digits()
    return np.rint(digits.images[digits.target == label][index] * (255 / 16)).astype(np.uint8)


def photograph(picture: npt.NDArray[np.uint8], side: int, seed: int, degrees: float = 0.0) -> Image.Image:
    """A digit as dark ink somewhere on a page of 1200 x 900 pixels, lit from one side, with the grain of a camera;
    written at an angle, counter-clockwise.
    """
    generator = np.random.default_rng(seed)
    height, width = 900, 1200
    ink = np.zeros((height, width), np.float32)
    left, top = int(generator.integers(100, width - side - 100)), int(generator.integers(50, height - side - 50))
    written = enlarged(np.pad(picture, 1), side).rotate(degrees, Image.Resampling.BICUBIC)
    soft = np.asarray(written, np.float32) / 255
    ink[top : top + side, left : left + side] = np.clip(3 * soft - 1, 0, 1)  # the edge of a pen's stroke
    x, y = np.linspace(-1, 1, width)[None, :], np.linspace(-1, 1, height)[:, None]
    light = 1 - 0.15 * x + 0.1 * y - 0.12 * (x**2 + y**2)
    paper = np.array([228, 222, 208])
    pen = np.array([38, 44, 82])
    page = (paper + (pen - paper) * ink[..., None]) * light[..., None]
    return Image.fromarray(np.clip(page + generator.normal(0, 4, page.shape), 0, 255).astype(np.uint8))


def enlarged(picture: npt.NDArray[np.uint8], side: int) -> Image.Image:
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)


def main() -> None:
    Image.fromarray(digit(7, 0)).save(FOLDER / "digit-7.png", optimize=True)
    Image.fromarray(digit(4, 12)).save(FOLDER / "digit-4.png", optimize=True)
    enlarged(digit(2, 7), 160).save(FOLDER / "large-2.png", optimize=True)
    photograph(digit(3, 6), 420, seed=3).save(FOLDER / "page-3.jpg", quality=80)
    photograph(digit(3, 6), 520, seed=8, degrees=35).save(FOLDER / "turned-3.jpg", quality=80)


if __name__ == "__main__":
    main()
