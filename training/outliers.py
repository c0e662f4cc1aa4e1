"""Made-up images that belong to no class, for outlier exposure (Hendrycks et al. 2019).

A whole batch comes from a few tensor operations, square, as all input of models is; the caller's generator draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from training.augment import blurred, uniform
from training.moments import moments

__all__ = ["outliers"]

LEAST_CIRCLE = 16  # pixels a side: in fewer, zeros are circles too
SOLID = 0.15  # of full ink: what is fainter is outside the content's box


def outliers(images: Tensor, generator: torch.Generator, as_content: float = 0.0) -> Tensor:
    """One image that belongs to no class for each given one.

    Drawn in equal shares: smooth noise of random coarseness and contrast, from grain to clouds; waves and checks of
    random period and angle; rings, discs and ripples; small drawings of one circle, enlarged (where there are pixels
    enough to tell one from a zero); scattered dots; flat grey; the given images with their quarters shuffled; and pairs
    of them laid over each other, moved apart by a quarter of the frame each.

    Args:
        images: [N,C,S,S] in [0,1]
        as_content: the share of the first six that comes as the content of a larger picture does, heaps of shapes
            among them: what differs from its paper is ink, softened, and brought to the size of the data's. Quarters
            and pairs of the data would be much like the data by that.
    Returns:
        [N,C,S,S] in [0,1]
    """
    count, channels, height, width = images.shape
    made_up = [_clouds(images, generator), _waves(images, generator), _rings(images, generator)]
    if height >= LEAST_CIRCLE:
        made_up.append(_enlarged_circles(images, generator))
    made_up += [
        _dots(images, generator),
        torch.rand((count, channels, 1, 1), generator=generator).expand_as(images),
    ]
    if as_content:
        made_up.append(_heaps(images, generator))
    kinds = torch.stack([*made_up, _shuffled(images, generator), _overlaid(images, generator)])
    kind = torch.randint(len(kinds), (count,), generator=generator)
    chosen = kinds[kind, torch.arange(count)]
    if not as_content:
        return chosen
    brought = (kind < len(made_up)) & (torch.rand(count, generator=generator) < as_content)
    return torch.where(brought.view(-1, 1, 1, 1), _as_content(chosen, generator), chosen)


def _as_content(images: Tensor, generator: torch.Generator) -> Tensor:
    """Much as `contract.preprocess.prepare` brings the content of a page: what is brighter or darker than some
    shade of the picture is ink; it is blurred by up to a tenth of the frame, and its box is brought to 0.6 to 0.8 of
    the frame, with its centre of mass in the middle or, by up to a pixel before it is enlarged, beside it.
    """
    count, channels, height, width = images.shape
    grey = images.mean(1, keepdim=True)
    size = (count, 1, 1, 1)
    flat = grey.flatten(1).sort(1).values
    place = (torch.rand((count, 1), generator=generator) * (flat.shape[1] - 1)).round().long()
    paper = flat.gather(1, place).view(size)
    above, below = (grey - paper).clamp_min(0), (paper - grey).clamp_min(0)
    ink = torch.where((above**2).sum((1, 2, 3), True) > (below**2).sum((1, 2, 3), True), above, below)
    ink = blurred(ink, 0.1 * torch.rand(size, generator=generator) ** 2)
    strength = ink.flatten(1).quantile(0.95, 1).view(size).clamp_min(1e-3)
    ink = (ink / strength).clamp(0, 1)
    solid = (ink > SOLID).squeeze(1)
    extent = torch.maximum(_extent(solid.any(1)), _extent(solid.any(2)))
    scale = extent.clamp_min(0.1) / (0.6 + 0.2 * torch.rand(count, generator=generator))
    theta = torch.zeros((count, 2, 3))
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = moments(ink.squeeze(1)).centre + uniform((count, 2), 2 / width, generator)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    framed = F.grid_sample(ink, grid, mode="bilinear", align_corners=False)
    return framed.expand(-1, channels, -1, -1)


def _extent(occupied: Tensor) -> Tensor:
    """From the first to the last that is True, both included, as a share of the length: [N,L] -> [N], 0 without any."""
    length = occupied.shape[1]
    place = torch.arange(length)
    first = torch.where(occupied, place, length).amin(1)
    last = torch.where(occupied, place, -1).amax(1)
    return (last - first + 1).clamp_min(0) / length


def _heaps(images: Tensor, generator: torch.Generator) -> Tensor:
    """Discs, bars and half-planes of random shades upon each other, as a photograph has edges (dead leaves)."""
    count, _, height, width = images.shape
    rows, columns = _plane(images)
    size = (count, 1, 1, 1)
    heap = torch.rand(size, generator=generator).expand(count, 1, height, width)
    for _ in range(8):
        angle = math.pi * torch.rand(size, generator=generator)
        y, x = (uniform(size, 1.0, generator) for _ in range(2))
        reach = torch.rand(size, generator=generator)
        along = torch.cos(angle) * (columns - x) + torch.sin(angle) * (rows - y)
        across = torch.cos(angle) * (rows - y) - torch.sin(angle) * (columns - x)
        kind = torch.rand(size, generator=generator)
        disc = reach - torch.sqrt(along**2 + across**2)
        bar = torch.minimum(reach / 3 - across.abs(), reach - along.abs())
        edge = torch.where(kind < 0.3, disc, torch.where(kind < 0.7, bar, along.expand_as(bar)))
        inside = (0.5 + edge * height / 2).clamp(0, 1)
        heap = heap + inside * (torch.rand(size, generator=generator) - heap)
    return heap.expand_as(images)


def _clouds(images: Tensor, generator: torch.Generator) -> Tensor:
    count, channels, height, width = images.shape
    total = torch.zeros_like(images)
    for cells in (3, 6, 12, max(height, width)):
        weight = torch.rand((count, 1, 1, 1), generator=generator) ** 3
        noise = torch.randn((count, channels, cells, cells), generator=generator)
        total = total + weight * F.interpolate(noise, size=(height, width), mode="bilinear", align_corners=True)
    spread = 2 * torch.rand((count, 1, 1, 1), generator=generator)
    level = uniform((count, 1, 1, 1), 1.0, generator)
    scale = total.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    return torch.sigmoid(2 * (total / scale * spread + level))


def _plane(images: Tensor) -> tuple[Tensor, Tensor]:
    height, width = images.shape[2:]
    rows = torch.linspace(-1, 1, height).view(1, 1, height, 1)
    columns = torch.linspace(-1, 1, width).view(1, 1, 1, width)
    return rows, columns


def _waves(images: Tensor, generator: torch.Generator) -> Tensor:
    count = images.shape[0]
    rows, columns = _plane(images)
    size = (count, 1, 1, 1)
    angle = math.pi * torch.rand(size, generator=generator)
    angle = torch.where(
        torch.rand(size, generator=generator) < 0.5, torch.round(angle * 2 / math.pi) * math.pi / 2, angle
    )
    period = 2 / (1 + (images.shape[2] / 2 - 1) * torch.rand(size, generator=generator) ** 2)
    along = torch.cos(angle) * columns + torch.sin(angle) * rows
    across = torch.cos(angle) * rows - torch.sin(angle) * columns
    phase = 2 * math.pi * torch.rand((count, 2, 1, 1), generator=generator)
    first = torch.sin(2 * math.pi * along / period + phase[:, :1])
    second = torch.sin(2 * math.pi * across / period + phase[:, 1:])
    checks = torch.rand(size, generator=generator) < 0.5
    wave = torch.where(checks, first * second, first)
    hardness = 10 ** uniform(size, 1.0, generator)
    level = torch.rand(size, generator=generator)
    return (level * torch.sigmoid(3 * hardness * wave)).expand_as(images)


def _rings(images: Tensor, generator: torch.Generator) -> Tensor:
    """One ring, one disc, or ripples from the centre outwards."""
    count = images.shape[0]
    rows, columns = _plane(images)
    size = (count, 1, 1, 1)
    centre = uniform((count, 2, 1, 1), 0.3, generator)
    radius = 0.15 + 0.8 * torch.rand(size, generator=generator)
    thickness = 0.04 + 0.25 * torch.rand(size, generator=generator)
    distance = torch.sqrt((rows - centre[:, :1]) ** 2 + (columns - centre[:, 1:]) ** 2)
    ring = thickness - (distance - radius).abs()
    ripples = thickness / 2 * torch.cos(2 * math.pi * (distance - radius) / (2 * thickness + 0.15))
    kind = torch.rand(size, generator=generator)
    edge = torch.where(kind < 0.4, ring, torch.where(kind < 0.7, radius - distance, ripples))
    level = 0.3 + 0.7 * torch.rand(size, generator=generator)
    return (level * _filled(edge, images.shape[2] / 2, generator)).expand_as(images)


def _filled(edge: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """1 within an edge and 0 outside; `edge` [N,1,H,W] is how far within, in units of `pixels`. In half of the pictures
    the edge is one pixel wide, as an antialiased drawing has it; in the others pixels are either on or off.
    """
    sharpness = torch.where(torch.rand((len(edge), 1, 1, 1), generator=generator) < 0.5, 1.0, 1e3)
    return (0.5 + sharpness * edge * pixels).clamp(0, 1)


def _enlarged_circles(images: Tensor, generator: torch.Generator) -> Tensor:
    """One circle a picture, drawn 0.3 to 0.8 of the frame wide and resized to 0.65 to 0.85 of it, as a request's is.

    How coarse it is, its size and its place are one draw for all.
    """
    count, channels, height, width = images.shape
    coarse, share, smooth, top, left = torch.rand(5, generator=generator).tolist()
    cells = round((0.3 + 0.5 * coarse) * height)
    place = torch.arange(cells) - (cells - 1) / 2
    distance = torch.sqrt(place.view(1, 1, cells, 1) ** 2 + place.view(1, 1, 1, cells) ** 2)
    thickness = 0.7 + (cells / 2 - 1) * torch.rand((count, 1, 1, 1), generator=generator)
    ring = thickness / 2 - (distance - (cells - thickness) / 2).abs()
    small = _filled(ring, 1.0, generator)
    side = round((0.65 + 0.2 * share) * height)
    mode = "bicubic" if smooth < 0.5 else "bilinear"
    circles = F.interpolate(small, size=(side, side), mode=mode, align_corners=False).clamp(0, 1)
    rows, columns = (round((length - side) * (0.4 + 0.2 * at)) for length, at in ((height, top), (width, left)))
    framed = F.pad(circles, (columns, width - side - columns, rows, height - side - rows))
    return framed.expand_as(images)


def _dots(images: Tensor, generator: torch.Generator) -> Tensor:
    share = 0.5 * torch.rand((images.shape[0], 1, 1, 1), generator=generator)
    return (torch.rand(images.shape, generator=generator) < share).float()


def _shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
    height, width = images.shape[2] // 2, images.shape[3] // 2
    quarters = [
        images[:, :, :height, :width],
        images[:, :, :height, -width:],
        images[:, :, -height:, :width],
        images[:, :, -height:, -width:],
    ]
    order = torch.randperm(4, generator=generator).tolist()
    if order == [0, 1, 2, 3]:
        order = [3, 2, 1, 0]
    quarters = [quarters[index] for index in order]
    mixed = torch.cat([torch.cat(quarters[:2], 3), torch.cat(quarters[2:], 3)], 2)
    return F.interpolate(mixed, size=images.shape[2:]) if mixed.shape != images.shape else mixed


def _overlaid(images: Tensor, generator: torch.Generator) -> Tensor:
    other = images[torch.randperm(len(images), generator=generator)]
    side = images.shape[3] // 4
    return torch.maximum(torch.roll(images, side, 3), torch.roll(other, -side, 2))
