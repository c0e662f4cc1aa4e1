"""Pictures that show no class of the data, against which `novelty` is measured.

Every kind is float32 [N,C,S,S] in [0,1] and a function of the seed alone. "photographs" are real pictures, new to
every model but those whose training pictures lie over the same ones (`training.datasets.colour`); the others are drawn,
and the stripes, plaid and clouds among "textures", noise, blanks, rings and checkerboards are much like the outliers
that a training makes up (`training.outliers`), where it does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from contract.manifest import InputSpec

__all__ = ["KINDS", "draw"]


def draw(kind: str, spec: InputSpec, count: int, seed: int = 0) -> Tensor:
    """`count` pictures [N,C,S,S] of one of `KINDS` at the model's size."""
    return KINDS[kind](spec, count, np.random.default_rng(seed))


def _stack(planes: list[np.ndarray], spec: InputSpec) -> Tensor:
    """[S,S] planes in [0,1] -> [N,C,S,S], the same plane in every channel."""
    images = torch.from_numpy(np.stack(planes)).float().clamp(0, 1)
    return images[:, None].expand(-1, spec.channels, -1, -1).contiguous()


def _photographs(spec: InputSpec, count: int, rng: np.random.Generator) -> Tensor:
    """Square crops of scikit-learn's two sample photographs, 1 to 12 times the model's side, resized with antialias."""
    mode = "L" if spec.channels == 1 else "RGB"
    photographs = [Image.fromarray(pixels).convert(mode) for pixels in load_sample_images().images]
    patches = []
    for _ in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        crop = min(round(spec.height * 12 ** rng.random()), *photograph.size)
        left, top = (int(rng.integers(length - crop + 1)) for length in photograph.size)
        patch = photograph.resize((spec.width, spec.height), Image.Resampling.BOX, (left, top, left + crop, top + crop))
        patches.append(np.atleast_3d(np.asarray(patch, np.float32) / 255).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(patches))


def _plane(spec: InputSpec) -> tuple[np.ndarray, np.ndarray]:
    """Row and column coordinates [S,S] of the pixel centres in [-1,1]."""
    centres = (np.arange(spec.height) + 0.5) / spec.height * 2 - 1
    rows, columns = np.meshgrid(centres, centres, indexing="ij")
    return rows, columns


def _textures(spec: InputSpec, count: int, rng: np.random.Generator) -> Tensor:
    """In turn: stripes, plaid, clouds (1/f noise), cells (distance to the nearest of random points)."""
    rows, columns = _plane(spec)
    planes = []
    for index in range(count):
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        frequency = rng.uniform(1.0, spec.height / 4)
        along = np.cos(angle) * columns + np.sin(angle) * rows
        across = np.cos(angle) * rows - np.sin(angle) * columns
        if index % 4 == 0:
            plane = 0.5 + 0.5 * np.sin(np.pi * frequency * along + phase)
        elif index % 4 == 1:
            plane = 0.5 + 0.25 * (np.sin(np.pi * frequency * along + phase) + np.sin(np.pi * frequency * across))
        elif index % 4 == 2:
            plane = _clouds(spec.height, rng)
        else:
            points = rng.uniform(-1, 1, (rng.integers(4, 16), 2))
            distances = np.hypot(rows[..., None] - points[:, 0], columns[..., None] - points[:, 1]).min(-1)
            plane = distances / distances.max()
        planes.append(plane)
    return _stack(planes, spec)


def _clouds(side: int, rng: np.random.Generator) -> np.ndarray:
    """[side,side] noise with amplitude 1/frequency, stretched to [0,1]."""
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequencies[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequencies
    plane = np.fft.irfft2(spectrum, (side, side))
    return (plane - plane.min()) / np.ptp(plane)


def _noise(spec: InputSpec, count: int, rng: np.random.Generator) -> Tensor:
    """In turn: uniform, Gaussian about mid-grey, sparse white dots on black."""
    shape = (spec.channels, spec.height, spec.width)
    images = np.empty((count, *shape))
    images[0::3] = rng.random(images[0::3].shape)
    images[1::3] = 0.5 + 0.25 * rng.standard_normal(images[1::3].shape)
    dots = rng.uniform(0.02, 0.5, (len(images[2::3]), 1, 1, 1))
    images[2::3] = rng.random(images[2::3].shape) < dots
    return torch.from_numpy(images).float().clamp(0, 1)


def _blanks(spec: InputSpec, count: int, rng: np.random.Generator) -> Tensor:
    """Flat grey, black and white among it."""
    levels = np.linspace(0, 1, max(count, 2))[:count]
    return _stack([np.full((spec.height, spec.width), level) for level in levels], spec)


def _rings(spec: InputSpec, count: int, rng: np.random.Generator) -> Tensor:
    """Two or three concentric circles, light on dark: one alone may well be somebody's zero."""
    rows, columns = _plane(spec)
    planes = []
    for _ in range(count):
        centre = rng.uniform(-0.1, 0.1, 2)
        radius = np.hypot(rows - centre[0], columns - centre[1])
        period = rng.uniform(0.3, 0.45)
        wave = np.cos(2 * np.pi * (radius / period + rng.random()))
        planes.append(np.where(radius < 1, np.clip(0.5 + wave * spec.height / 16, 0, 1), 0))
    return _stack(planes, spec)


def _checkerboards(spec: InputSpec, count: int, rng: np.random.Generator) -> Tensor:
    """Squares of 1 to S/3 pixels at any offset, full contrast, either colour first."""
    pixels = np.arange(spec.height)
    planes = []
    for _ in range(count):
        cell = int(rng.integers(1, spec.height // 3 + 1))
        top, left = rng.integers(0, 2 * cell, 2)
        planes.append((((pixels + top) // cell)[:, None] + ((pixels + left) // cell)[None]) % 2.0)
    return _stack(planes, spec)


KINDS: dict[str, Callable[[InputSpec, int, np.random.Generator], Tensor]] = {
    "photographs": _photographs,
    "textures": _textures,
    "noise": _noise,
    "blanks": _blanks,
    "rings": _rings,
    "checkerboards": _checkerboards,
}
