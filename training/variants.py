"""Plausible variants of a picture, for a pipeline of training pictures: what `POST /augment` draws, in Python."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from contract import geometry
from contract.geometry import Matrix
from contract.manifest import ManifestError, verify
from contract.picture_pixels import depth_of, to_pixels
from contract.preprocess import prepare
from training.errors import TrainingError

__all__ = ["DrawVariant", "VariantsError"]

SLACK = 1e-3  # what a filter may have added to floats in [0,1]


class VariantsError(TrainingError):
    """A folder from which no variants can be drawn."""


class DrawVariant:
    """A picture as it may plausibly lie, drawn anew at every call from p(eta|x^) of a symmetry-transformation model.

    It takes and gives a PIL image of any mode, of which the model sees what the service would show it, or a tensor
    [C,H,W] (uint8, or floats in [0,1]; C 1 or 3), of any size, as the transforms of torchvision do, so that it stands
    among them in a `Compose`. What comes in from outside the picture has the median colour of its border.

    Args:
        folder: of a version of a model in a store, shipped (`model_store/symmetry-mnist/1`) or exported.
        seed: of a generator of its own (at least 0), whose draws can be repeated in one process; several workers of a
            loader have a copy each, draw the same, and begin anew whenever they are started. None: torch's global
            generator, which a loader seeds anew for every worker and epoch, as torchvision's transforms have it.

    Raises:
        VariantsError: the folder holds no whole model, or one that draws no variants.
    """

    def __init__(self, folder: Path | str, seed: int | None = None) -> None:
        folder = Path(folder)
        try:
            self.manifest = verify(folder)
        except ManifestError as error:
            raise VariantsError(f"{folder} is no version of a model: {error}") from error
        if "augment" not in self.manifest.graphs:
            raise VariantsError(f"{folder} draws no variants: it has {', '.join(self.manifest.graphs)}")
        self.graph = folder / self.manifest.graphs["augment"].file
        # NumPy's: a torch.Generator does not arrive in a process that is spawned (torch 2.13).
        self.source = None if seed is None else np.random.default_rng(seed)

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # loaders have a process a core
        return onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])

    def __getstate__(self) -> dict[str, Any]:
        """Without the session: each process of a loader makes its own."""
        return {name: value for name, value in vars(self).items() if name != "_session"}

    def __call__(self, picture: Image.Image | Tensor) -> Image.Image | Tensor:
        if isinstance(picture, Image.Image):
            return self._of_image(picture)
        if isinstance(picture, Tensor) and picture.ndim == 3 and picture.shape[0] in (1, 3) and _is_scaled(picture):
            return self._of_tensor(picture)
        raise TypeError(
            "expected a PIL image or a tensor [C,H,W] of 1 or 3 channels, uint8 or floats in [0,1], "
            f"not {_described(picture)}"
        )

    def _of_image(self, picture: Image.Image) -> Image.Image:
        # Pillow counts pixels from their corners.
        (a, b, x), (c, d, y) = geometry.compose(
            [[1, 0, 0.5], [0, 1, 0.5]],
            self._matrix(to_pixels(picture, depth_of(picture))),
            [[1, 0, -0.5], [0, 1, -0.5]],
        )
        mode = picture.mode if picture.mode not in ("1", "P") else "RGB"
        # Pillow's bicubic filter takes samples of 16 bits for two of 8.
        shown = picture.convert("I" if mode.startswith("I;16") else mode)
        samples = np.asarray(shown)
        fill = tuple(np.atleast_1d(np.median(_border(samples), axis=0)).astype(samples.dtype).tolist())
        drawn = shown.transform(
            picture.size,
            Image.Transform.AFFINE,
            (a, b, x, c, d, y),
            Image.Resampling.BICUBIC,
            fillcolor=fill if len(fill) > 1 else fill[0],
        )
        return drawn.convert(mode)

    def _of_tensor(self, picture: Tensor) -> Tensor:
        values = picture.float() / 255 if picture.dtype == torch.uint8 else picture.float()
        pixels = (255 * values).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        height, width = pixels.shape[:2]
        own = geometry.frame(0, 0, width, height)
        matrix = self._matrix(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        where = torch.from_numpy(geometry.compose(geometry.inverse(own), matrix, own)).to(values)
        fill = values.new_tensor(np.median(_border(pixels), axis=0) / 255)[:, None, None]
        grid = F.affine_grid(where[None], [1, 1, height, width], align_corners=False)
        drawn = F.grid_sample((values - fill)[None], grid, mode="bicubic", align_corners=False)[0] + fill
        drawn = drawn.clamp(0, 1)
        return (255 * drawn).round().byte() if picture.dtype == torch.uint8 else drawn.to(picture)

    def _matrix(self, pixels: np.ndarray) -> Matrix:
        """From pixels of a variant to pixels of the picture uint8 [H,W] or [H,W,3]."""
        prepared = prepare(pixels, self.manifest.input, self.manifest.preprocessing)
        shape = 1, *self.manifest.graphs["augment"].inputs[1].row_shape
        if self.source is None:
            noise = torch.randn(shape).numpy()
        else:
            noise = self.source.standard_normal(shape, np.float32)
        (matrices,) = self._session.run(["matrices"], {"image": prepared.image[None], "noise": noise})
        return geometry.compose(prepared.frame, matrices[0, 0].astype(np.float64), geometry.inverse(prepared.frame))


def _border(samples: np.ndarray) -> np.ndarray:
    """The outermost pixels of a picture [H,W] or [H,W,C], in a row."""
    return np.concatenate([samples[0], samples[-1], samples[:, 0], samples[:, -1]])


def _is_scaled(picture: Tensor) -> bool:
    """Whether type and values say what white is: not those of a picture that is normalised already, or not yet."""
    if picture.is_floating_point():
        return bool(((picture >= -SLACK) & (picture <= 1 + SLACK)).all())
    return picture.dtype == torch.uint8


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    reach = f" from {float(value.min()):.3g} to {float(value.max()):.3g}" if value.numel() else ""
    return f"a tensor {list(value.shape)} of {value.dtype}{reach}"
