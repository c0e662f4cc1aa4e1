"""Digits as people send them: dark ink somewhere on a light page, many times the model's size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from contract.manifest import InputSpec, Preprocessing
from contract.preprocess import prepare

__all__ = ["PAGES", "draw_page", "read_from_pages"]

# Name of the page -> height and width in pixels.
PAGES = {"page": (300, 300), "photograph": (3000, 4000)}
PAPER_LEVEL = 240


def draw_page(picture: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A light-on-dark picture uint8 [h,w] as dark ink on paper uint8 [height,width].

    Its longer side takes a fifth to a half of the page's shorter one, and margins are left on all sides.
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


def read_from_pages(
    images: Tensor, height: int, width: int, spec: InputSpec, preprocessing: Preprocessing, seed: int
) -> Tensor:
    """Draw every image [N,1,H,W] uint8 on a page and bring it back to the model's size [N,C,H,W] in [0,1]."""
    rng = np.random.default_rng(seed)
    pages = (draw_page(image[0].numpy(), height, width, rng) for image in images)
    return torch.from_numpy(np.stack([prepare(page, spec, preprocessing).image for page in pages]))
