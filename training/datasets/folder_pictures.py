"""The pictures of the user's folder as images.

Every picture goes through the decoder and the framing that the service uses; other formats that Pillow reads become
PNG first.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from contract.manifest import InputSpec
from contract.picture import Picture, open_picture
from contract.picture_header import (
    CorruptPictureError,
    NotAPictureError,
    PictureError,
    PictureLimits,
    UnsupportedPictureError,
)
from contract.preprocess import prepare
from training.config import FolderData
from training.datasets.images import LabelledImages
from training.errors import DataError

__all__ = ["Reader", "Skipped"]

READERS = 8  # threads, each of which may hold a photograph as large as any
PART = 64  # pictures that are read, or asked to be, before an interruption ends it
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


class Skipped:
    """What cannot be used of the folder `root`, each as 'path in root: reason'."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: list[str] = []

    def add(self, path: Path, reason: str) -> None:
        self.listed.append(f"{self.name(path)}: {reason}")

    def name(self, path: Path) -> str:
        """In the root, on one line, also where the path is no text: names are bytes to a file system."""
        name = str(path.relative_to(self.root))
        return name if name.isprintable() else ascii(name)


class Reader:
    """Reads files as the images that the configuration asks for. What it cannot use goes to `skipped`.

    names: of the classes.
    """

    def __init__(self, config: FolderData, limits: PictureLimits, names: tuple[str, ...], skipped: Skipped) -> None:
        self.input = InputSpec(channels=config.channels, height=config.size, width=config.size)
        self.names = names
        self.skipped = skipped
        self._preprocessing = config.preprocessing
        self._limits = limits

    def read(self, base: Path, files: list[tuple[Path, int]]) -> LabelledImages:
        """The pictures among files in `base`, each with its label.

        Raises:
            DataError: they would take more memory than there is.
        """
        shape = (len(files), self.input.channels, self.input.height, self.input.width)
        if math.prod(shape) > _memory_bytes() // 3:  # to be divided they are copied
            size = f"{self.input.width} x {self.input.height} x {self.input.channels}"
            raise DataError(
                f"folder: {base} holds {len(files):,} files, as images of {size} {math.prod(shape) / 2**30:,.0f} GiB: "
                "more than a third of the memory there is; choose a smaller data.size"
            )
        images = torch.empty(shape, dtype=torch.uint8)
        labels: list[int] = []
        read: list[str] = []
        for (path, label), image in zip(files, self._pictures([path for path, _ in files]), strict=True):
            if isinstance(image, str):
                self.skipped.add(path, image)
            else:
                images[len(labels)] = image
                labels.append(label)
                read.append(self.skipped.name(path))
        kept = images if len(labels) == len(files) else images[: len(labels)].clone()
        return LabelledImages(kept, torch.tensor(labels, dtype=torch.int64), self.names, files=tuple(read))

    def _pictures(self, paths: list[Path]) -> Iterator[Tensor | str]:
        """`_picture` of each, in order."""
        with ThreadPoolExecutor(READERS) as side_by_side:  # Pillow decodes without the interpreter's lock
            for start in range(0, len(paths), PART):
                yield from side_by_side.map(self._picture, paths[start : start + PART])

    def _picture(self, path: Path) -> Tensor | str:
        """uint8 [C,H,W], or the reason why there is none."""
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return "not a regular file"
            self._limits.check_bytes(status.st_size)  # before reading it: a huge file must not fill the memory
            picture = _opened(path.read_bytes(), self._limits)
        except OSError as error:
            return "a broken link" if path.is_symlink() else (error.strerror or "cannot be read")
        except PictureError as error:
            return str(error)
        prepared = prepare(picture.pixels, self.input, self._preprocessing)
        if not prepared.has_content:
            return "blank: no content was found in it"
        return torch.from_numpy(np.rint(prepared.image * 255).astype(np.uint8))


def _memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """This machine's, or the limit of the container (cgroup version 2 or 1), where that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such version; "max" is no limit
            found.append(int((cgroup / limit).read_text()))
    return min(found)


def _opened(data: bytes, limits: PictureLimits) -> Picture:
    try:
        return open_picture(data, limits=limits)
    except (UnsupportedPictureError, NotAPictureError) as refused:
        return open_picture(_as_png(data, limits, refused), limits=limits)


def _as_png(data: bytes, limits: PictureLimits, refused: PictureError) -> bytes:
    """A picture of a format that the service refuses (PPM, TGA, JPEG 2000, AVIF, ...), upright by EXIF."""
    encoded = BytesIO()
    try:
        with Image.open(BytesIO(data)) as image:
            limits.check_size(*image.size)
            upright = ImageOps.exif_transpose(image)
            (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(encoded, "PNG", compress_level=1)
    except UnidentifiedImageError:
        raise refused from None
    except PictureError:
        raise
    except Exception as error:  # whatever a plug-in's parsing trips over
        raise CorruptPictureError(f"the file is cut short or damaged: {error}") from error
    return encoded.getvalue()
