"""Random changes of a whole batch of images in a few tensor operations; the caller's generator draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from training.augment_config import AugmentConfig

__all__ = ["augment", "blurred", "distorted_grid", "uniform"]

WIDEST_BLUR = 0.07  # of the frame: two pixels of 28, where people still read most digits
FEWEST, MOST = 0.3, 0.7  # of the frame's pixels a side: 8 and 20 of 28


def uniform(shape: tuple[int, ...], limit: float, generator: torch.Generator) -> Tensor:
    """Even over [-limit, limit]."""
    return (2 * torch.rand(shape, generator=generator) - 1) * limit


def _affine(count: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Random output -> input matrices [N,2,3] in normalised coordinates: rotation . shear . scale, then the shift."""
    angle = uniform((count,), math.radians(config.rotation_degrees), generator)
    shear = torch.tan(uniform((count,), math.radians(config.shear_degrees), generator))
    scale = 1 / (1 + uniform((count, 2), config.scale, generator))
    shift = uniform((count, 2), 2 * config.shift, generator)
    cos, sin = torch.cos(angle), torch.sin(angle)
    first = torch.stack([cos * scale[:, 0], (cos * shear - sin) * scale[:, 1], shift[:, 0]], 1)
    second = torch.stack([sin * scale[:, 0], (sin * shear + cos) * scale[:, 1], shift[:, 1]], 1)
    return torch.stack([first, second], 1)


def _smooth_field(count: int, height: int, width: int, cells: int, generator: torch.Generator) -> Tensor:
    """Gaussian fields [N,2,H,W] of about unit variance: knots on a coarse grid, bicubic between them."""
    knots = torch.randn((count, 2, cells, cells), generator=generator)
    return F.interpolate(knots, size=(height, width), mode="bicubic", align_corners=True)


def distorted_grid(count: int, height: int, width: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Where `F.grid_sample` finds each pixel of turned, sheared, scaled, shifted and bent pictures: [N,H,W,2]"""
    matrices = _affine(count, config, generator)
    grid = F.affine_grid(matrices, [count, 1, height, width], align_corners=False)
    if config.elastic:
        field = _smooth_field(count, height, width, config.elastic_cells, generator)
        pixels = torch.tensor([2 / width, 2 / height]).view(1, 2, 1, 1)
        grid = grid + (field * pixels * config.elastic).permute(0, 2, 3, 1)
    return grid


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of images [N,C,H,W] by `sigma` [N,1,1,1], in shares of the frame's height."""
    height, width = images.shape[2:]
    for length, axis in ((height, 2), (width, 3)):
        places = torch.arange(length, dtype=images.dtype)
        apart = (places[:, None] - places[None]) / (sigma.view(-1, 1, 1) * height).clamp_min(0.3)
        kernel = torch.softmax(-(apart**2) / 2, 2)
        images = kernel[:, None] @ images if axis == 2 else images @ kernel[:, None].transpose(2, 3)
    return images


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Turn, shear, scale, shift, bend, blur, coarsen, re-expose, recolour, cross and erase each image by its own draws.

    Args:
        images: [N,C,H,W] in [0,1]; what comes in from outside the frame is 0.
        generator: a CPU generator; the result is a function of its state.
    Returns:
        [N,C,H,W] in [0,1]
    """
    count, _, height, width = images.shape

    def some(share: float) -> Tensor:
        return torch.rand((count, 1, 1, 1), generator=generator) < share

    grid = distorted_grid(count, height, width, config, generator)
    changed = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if config.blur:
        chosen = some(config.blur)
        sigma = WIDEST_BLUR * torch.rand((count, 1, 1, 1), generator=generator)
        changed = torch.where(chosen, blurred(changed, sigma), changed)
    if config.coarse:
        changed = torch.where(some(config.coarse), _enlarged(changed, generator), changed)
    if config.contrast:
        power = torch.exp(uniform((count, 1, 1, 1), config.contrast, generator))
        changed = changed.clamp_min(1e-6) ** power
    if config.colours:
        changed = torch.where(some(config.colours), _recoloured(changed, generator), changed)
    if config.strokes:
        ink = _strokes(count, height, width, generator) * changed.amax((2, 3), keepdim=True)
        changed = torch.where(some(config.strokes), torch.maximum(changed, ink), changed)
    if config.erase:
        changed = changed * _squares(count, height, width, config.erase, generator)
    changed = changed.clamp(0, 1)
    if config.unchanged:
        # Resampling softens every picture. Batch statistics and outlier rejection learnt on such pictures alone do not
        # fit crisp ones: a share of clean validation digits was rejected.
        changed = torch.where(some(config.unchanged), images, changed)
    return changed


def _enlarged(images: Tensor, generator: torch.Generator) -> Tensor:
    """Reduced to fewer pixels and enlarged again, smoothly; how many is one draw for all of them."""
    height, width = images.shape[2:]
    share = FEWEST + (MOST - FEWEST) * float(torch.rand((), generator=generator))
    few = F.interpolate(images, size=(max(2, round(share * height)), max(2, round(share * width))), mode="area")
    return F.interpolate(few, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def _recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image's channels in a random order, each of them a negative or not: [N,C,H,W] -> [N,C,H,W]"""
    count, channels = images.shape[:2]
    order = torch.rand((count, channels), generator=generator).argsort(1)
    shuffled = images.gather(1, order[..., None, None].expand_as(images))
    negative = torch.rand((count, channels, 1, 1), generator=generator) < 0.5
    return torch.where(negative, 1 - shuffled, shuffled)


def _strokes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Masks [N,1,H,W] of one straight line, 0.7 to 2 pixels wide and a fifth to half of the frame long, at any angle
    about its middle: 1 in it, less where it covers a part of a pixel.
    """
    rows, columns = torch.linspace(-1, 1, height).view(1, height, 1), torch.linspace(-1, 1, width).view(1, 1, width)
    size = (count, 1, 1)
    y, x = (uniform(size, 0.4, generator) for _ in range(2))
    angle = uniform(size, math.pi / 2, generator)
    length = 0.2 + 0.3 * torch.rand(size, generator=generator)
    thickness = (0.7 + 1.3 * torch.rand(size, generator=generator)) / width
    along = torch.cos(angle) * (columns - x) + torch.sin(angle) * (rows - y)
    across = torch.cos(angle) * (rows - y) - torch.sin(angle) * (columns - x)
    inside = torch.minimum(length - along.abs(), thickness - across.abs())
    return (0.5 + inside * width / 2).clamp(0, 1).unsqueeze(1)


def _squares(count: int, height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """Masks [N,1,H,W]: 0 on one random square (a seventh to two sevenths of the side) for `share` of the images."""
    centre = torch.rand((count, 2, 1, 1), generator=generator)
    half = (1 + torch.rand((count, 1, 1), generator=generator)) / 14
    chosen = torch.rand((count, 1, 1), generator=generator) < share
    rows = (torch.arange(height) + 0.5).view(1, height, 1) / height
    columns = (torch.arange(width) + 0.5).view(1, 1, width) / width
    inside = ((rows - centre[:, 0]).abs() < half) & ((columns - centre[:, 1]).abs() < half)
    return (~(inside & chosen)).float().unsqueeze(1)
