"""Digits as people send them: dark ink somewhere on a light page, drawn clean or as a camera sees it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from contract.manifest import InputSpec, Preprocessing
from contract.preprocess import prepare

__all__ = ["PAGES", "Page", "draw_page", "draw_photograph", "read_from_pages"]

PAPER_LEVEL = 240
DARKEST = (0.6, 0.9)  # light in the darkest corner of a photograph, as a share of the lightest's
NOISE = 4.0  # standard deviation in grey levels
JPEG_QUALITY = 85


def draw_page(picture: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A light-on-dark square picture uint8 [S,S] as dark ink on paper uint8 [height,width].

    Its side takes a fifth to a half of the page's shorter one, and margins are left on all sides.
    """
    side = min(height, width)
    length = round(side * rng.uniform(0.2, 0.5))
    resized = Image.fromarray(picture).resize((length, length), Image.Resampling.BICUBIC)
    ink = np.asarray(resized, np.float32) / 255 * PAPER_LEVEL
    margin = round(0.1 * side)
    top = rng.integers(margin, height - length - margin + 1)
    left = rng.integers(margin, width - length - margin + 1)
    page = np.full((height, width), PAPER_LEVEL, np.uint8)
    page[top : top + length, left : left + length] = np.round(PAPER_LEVEL - ink).astype(np.uint8)
    return page


def draw_photograph(picture: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Such a page, uint8 [height,width], in light that falls off in one direction, with noise and JPEG's artefacts."""
    page = draw_page(picture, height, width, rng)
    across, down = rng.uniform(-1, 1, 2)
    reach = abs(across) + abs(down)
    columns, rows = (np.linspace(-1, 1, size, dtype=np.float32) for size in (width, height))
    shade = np.float32(across / reach) * columns + np.float32(down / reach) * rows[:, None]  # -1 to 1
    loss = np.float32(1 - rng.uniform(*DARKEST)) / 2
    # In place: a photograph has tens of millions of bytes.
    seen = rng.standard_normal(page.shape, np.float32)
    seen *= NOISE
    seen += page * (1 - loss - loss * shade)
    np.clip(np.rint(seen, out=seen), 0, 255, out=seen)
    file = io.BytesIO()
    Image.fromarray(seen.astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(file))


class Page(NamedTuple):
    """One kind of page; sizes in pixels."""

    height: int
    width: int
    draw: Callable[[np.ndarray, int, int, np.random.Generator], np.ndarray]
    how: str


PAGES = {
    "page": Page(300, 300, draw_page, "dark ink on a clean page"),
    "photograph": Page(
        3000, 4000, draw_photograph, "dark ink on a page in uneven light, with noise and JPEG's artefacts"
    ),
}


def read_from_pages(images: Tensor, kind: Page, spec: InputSpec, preprocessing: Preprocessing, seed: int) -> Tensor:
    """Draw every image [N,1,H,W] uint8 on a page and bring it back to the model's size [N,C,H,W] in [0,1]."""
    rng = np.random.default_rng(seed)
    pages = (kind.draw(image[0].numpy(), kind.height, kind.width, rng) for image in images)
    return torch.from_numpy(np.stack([prepare(page, spec, preprocessing).image for page in pages]))
