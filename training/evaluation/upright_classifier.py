"""A classifier of upright pictures, to read what a canonicaliser makes: a served model's graph, or a network here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from contract.manifest import ManifestError, read_verified, versions
from training.errors import RunError

__all__ = ["Classifier", "served_classifier"]

CHUNK = 500


@dataclass(frozen=True)
class Classifier:
    """A name for the report, and read: upright pictures [N,C,S,S] in [0,1] -> class indices int64 [N]."""

    name: str
    read: Callable[[Tensor], Tensor]


def served_classifier(folder: Path, names: Sequence[str], channels: int, side: int) -> Classifier:
    """The `classify` graph of a model folder, or of the highest version in a model's folder.

    Where its pictures are smaller than those to be read, it reads their middle.

    Raises:
        RunError: no such model folder, one that is not what its manifest says, or one whose labels or input do not fit.
    """
    try:
        version = folder if (folder / "manifest.json").is_file() else folder / str(max(versions(folder)))
        # By its whole path: the names of the folder and of the one above are held to the manifest.
        manifest, files = read_verified(version.absolute())
    except (OSError, ValueError, ManifestError) as error:
        raise RunError(f"{folder} is no model folder: {error}") from error
    if "classify" not in manifest.graphs or manifest.labels != tuple(names):
        raise RunError(f"{version} does not classify {', '.join(names)}")
    width = manifest.input.width
    if manifest.input.channels != channels or width > side or (side - width) % 2:
        raise RunError(
            f"{version} reads {manifest.input.channels} x {width} x {width}, not {channels} x {side} x {side}"
        )
    try:
        session = onnxruntime.InferenceSession(files[manifest.graphs["classify"].file])
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise RunError(f"{version}: its classify graph cannot be loaded: {error}") from error
    margin = (side - width) // 2

    def classify(images: Tensor) -> Tensor:
        cropped = images[:, :, margin : margin + width, margin : margin + width]
        found = [
            session.run(["probabilities"], {"image": part.contiguous().numpy()})[0].argmax(1)
            for part in torch.split(cropped, CHUNK)
        ]
        return torch.from_numpy(np.concatenate(found))

    return Classifier(f"{manifest.name} version {manifest.version}", classify)
