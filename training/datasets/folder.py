"""A folder with one folder of pictures a class: the user's own data.

    pictures/<class>/**/*                       split into training and validation by a seed
    pictures/train/<class>/... and test/<class>/...    the same, with a test set of its own
    pictures/unlabelled/**/*                    beside the classes or beside train: more pictures of the classes that
                                                nobody has sorted; unlabeled is the same name
    pictures/outliers/**/*                      in the same places: pictures of none of the classes, of which the same
                                                share is held out for validation; test/outliers/ for the test

Capitals make no difference to these four names.

A folder train that holds no folders, and has no test beside it, is a class of that name.

Every picture goes through the decoder and the framing that the service uses; other formats that Pillow reads become
PNG first. What cannot be used is listed with its reason and counted; names that begin with a dot are no part of it.
"""

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from contract.manifest import MAX_LABEL_LENGTH, InputSpec
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
from training.datasets.images import LabelledImages, Splits, stratified_split
from training.datasets.storage import expanded
from training.errors import DataError

# One image for validation and two for training: an image needs another of its class as its complement (EquiVAE, Eq. 2).
FEWEST_KEPT = 2
FEWEST_IMAGES = FEWEST_KEPT + 1
FEWEST_APART = 2  # unlabelled pictures, one of which has no deviation, and outliers, one of which validation gets
UNLABELLED, OUTLIERS = ("unlabelled", "unlabeled"), ("outliers",)
VALIDATION = ("val", "valid", "validation")
IN_TWO_CLASSES = "pictures that are in two classes, of which no model can tell which is meant"
IN_TEST_TOO = "pictures of test that are in training too, which makes its figures too good"
IN_OUTLIERS_TOO = "pictures of a class that are in outliers too"
OUTLIERS_TWICE = "copies among outliers, which make the figure of held-out ones too good"
TWICE = "copies of other pictures, which make validation's figures too good where it has one of the two"
READERS = 8  # threads, each of which may hold a photograph as large as any
PART = 64  # pictures that are read, or asked to be, before an interruption ends it
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


@dataclass
class _Skipped:
    """What cannot be used of the folder `root`, each as 'path in root: reason'."""

    root: Path
    listed: list[str] = field(default_factory=list)

    def add(self, path: Path, reason: str) -> None:
        self.listed.append(f"{self.name(path)}: {reason}")

    def name(self, path: Path) -> str:
        """In the root, on one line, also where the path is no text: names are bytes to a file system."""
        name = str(path.relative_to(self.root))
        return name if name.isprintable() else ascii(name)


def load(config: FolderData, limits: PictureLimits | None = None) -> Splits:
    """Read every picture into memory, in the order of the sorted names.

    Raises:
        DataError: no such folder, fewer than two classes, or a class with too few usable pictures.
    """
    limits = limits or PictureLimits()
    root = expanded(config.path)
    if not root.is_dir():
        raise DataError(f"folder: {root} {'is not a folder' if root.exists() else 'does not exist'}")
    # A folder train of pictures alone is a class, but train and test beside each other are never two.
    for_training, for_test = _named(root, "train"), _named(root, "test")
    divided = for_training.is_dir() and (_holds_folders(for_training) or for_test.is_dir())
    if not divided and _holds_folders(for_test):
        raise DataError(f"folder: {root} has a folder test but none named train: put the training classes into train")
    skipped = _Skipped(root)
    base = for_training if divided else root
    names = _class_names(base, skipped)
    whole = _read(base, _of_classes(base, names, skipped), names, config, limits, skipped)
    test, far_test = None, None
    if divided:
        for path in _visible(root):
            if path not in (for_training, for_test) and not _is_apart(path):
                hint = ": validation is drawn from train, see data.validation"
                skipped.add(path, "lies beside train, not in it" + hint * (path.name.lower() in VALIDATION))
    if divided and for_test.is_dir():
        for path in _visible(for_test):
            if path.name not in names and not _is_apart(path, OUTLIERS):
                skipped.add(path, "no class of train" if path.is_dir() else "lies in no class folder")
        read = _read(for_test, _of_classes(for_test, names, skipped), names, config, limits, skipped)
        far_test = _apart(OUTLIERS, (for_test,), names, config, limits, skipped)
        if len(read):
            test = replace(read, outliers=_images(far_test))
        elif far_test is not None:
            skipped.add(for_test, "outliers alone, and no picture of a class, are no test set")
    _require_enough(whole, skipped)
    train, validation = stratified_split(whole.labels, config.validation, config.split_seed, fewest_kept=FEWEST_KEPT)
    unsorted = _apart(UNLABELLED, (root, base), names, config, limits, skipped)
    far = _apart(OUTLIERS, (root, base), names, config, limits, skipped)
    kept = held_out = None
    if far is not None:
        kept, held_out = (
            far.images[rows] for rows in stratified_split(far.labels, config.validation, config.split_seed)
        )
    return Splits(
        name=root.resolve().name or "folder",
        train=replace(whole.subset(train), unlabelled=_images(unsorted), outliers=kept),
        validation=replace(whole.subset(validation), outliers=held_out),
        test=test,
        input=_input(config),
        preprocessing=config.preprocessing,
        skipped=tuple(skipped.listed),
        doubts=tuple(_repeated(whole, test, far, far_test)),
    )


def _repeated(
    whole: LabelledImages, test: LabelledImages | None, far: LabelledImages | None, far_test: LabelledImages | None
) -> Iterator[str]:
    """What is to be said of pictures that are equal as the model sees them; the last two are outliers."""
    seen: dict[bytes, tuple[bool, int, str]] = {}
    pairs: dict[str, list[str]] = {
        kind: [] for kind in (IN_TWO_CLASSES, IN_TEST_TOO, IN_OUTLIERS_TOO, OUTLIERS_TWICE, TWICE)
    }
    for part in (whole, test):
        for digest, label, file in _digests(part):
            in_test, first_label, first = seen.setdefault(digest, (part is test, label, file))
            if first == file:
                continue
            kind = IN_TWO_CLASSES if label != first_label else TWICE if part is whole else IN_TEST_TOO
            if not in_test:  # copies within the test set alone flatter nobody
                pairs[kind].append(f"{first} and {file}")
    seen_far: dict[bytes, str] = {}
    for part in (far, far_test):
        for digest, _, file in _digests(part):
            if digest in seen:
                pairs[IN_OUTLIERS_TOO].append(f"{seen[digest][2]} and {file}")
            if (first := seen_far.setdefault(digest, file)) != file:
                pairs[OUTLIERS_TWICE].append(f"{first} and {file}")
    return (f"{kind}: {len(found):,}, the first {found[0]}" for kind, found in pairs.items() if found)


def _digests(part: LabelledImages | None) -> Iterator[tuple[bytes, int, str]]:
    """Of each image its digest, label and file."""
    if part is not None and part.files is not None:
        for image, label, file in zip(part.images, part.labels.tolist(), part.files, strict=True):
            yield hashlib.sha256(image.numpy().data).digest(), label, file


def _apart(
    kinds: tuple[str, ...],
    places: tuple[Path, ...],
    names: tuple[str, ...],
    config: FolderData,
    limits: PictureLimits,
    skipped: _Skipped,
) -> LabelledImages | None:
    """The pictures of the folders of these names in these places, which are of no known class: all labels are 0."""
    folders = list(
        {path.resolve(): path for place in places for path in _visible(place) if _is_apart(path, kinds)}.values()
    )
    if not folders:
        return None
    files = [(path, 0) for folder in folders for path in _files(folder, skipped)]
    found = _read(folders[0], files, names, config, limits, skipped)
    if len(found) < FEWEST_APART:
        skipped.add(folders[0], f"{len(found)} usable pictures: fewer than {FEWEST_APART} tell nothing")
        return None
    return found


def _images(part: LabelledImages | None) -> Tensor | None:
    return None if part is None else part.images


def _input(config: FolderData) -> InputSpec:
    return InputSpec(channels=config.channels, height=config.size, width=config.size)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"folder: {folder} cannot be listed: {error.strerror}") from error


def _named(root: Path, name: str) -> Path:
    """The folder of that name, in capitals or not."""
    return next((path for path in _visible(root) if path.name.lower() == name and path.is_dir()), root / name)


def _is_apart(path: Path, kinds: tuple[str, ...] = UNLABELLED + OUTLIERS) -> bool:
    """Whether it is a folder of one of these names, and no class."""
    return path.name.lower() in kinds and path.is_dir()


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in _visible(folder))


def _class_names(base: Path, skipped: _Skipped) -> tuple[str, ...]:
    entries = _visible(base)
    names = tuple(path.name for path in entries if path.is_dir() and not _is_apart(path))
    if len(names) < 2:
        found = f"one class ({names[0]})" if names else "no folder"
        raise DataError(
            f"folder: {base} holds {found}: expected one folder a class, two classes at least; a folder unlabelled, "
            "unlabeled or outliers is no class"
        )
    for name in names:
        if not name.isprintable():
            raise DataError(f"folder: the class {name!a} of {base} is to be a label: its name is not printable text")
        if len(name) > MAX_LABEL_LENGTH:
            raise DataError(f"folder: the class {name} of {base} has a name of more than {MAX_LABEL_LENGTH} characters")
    for path in entries:
        if not path.is_dir():
            skipped.add(path, "lies in no class folder")
    return names


def _files(folder: Path, skipped: _Skipped) -> Iterator[Path]:
    """Files of a class in any depth. Links to files are followed, links to folders are not: they can go in circles."""

    def unlisted(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a class without test pictures
            skipped.add(Path(error.filename), f"a folder that cannot be listed: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=unlisted):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (Path(parent) / name).is_symlink():
                skipped.add(Path(parent) / name, "a link to a folder, not followed")
        yield from (Path(parent) / name for name in sorted(files) if not name.startswith("."))


def _of_classes(base: Path, names: tuple[str, ...], skipped: _Skipped) -> list[tuple[Path, int]]:
    return [(path, k) for k, name in enumerate(names) for path in _files(base / name, skipped)]


def _read(
    base: Path,
    files: list[tuple[Path, int]],
    names: tuple[str, ...],
    config: FolderData,
    limits: PictureLimits,
    skipped: _Skipped,
) -> LabelledImages:
    """The pictures among files, each with its label."""
    shape = (len(files), config.channels, config.size, config.size)
    if math.prod(shape) > _memory_bytes() // 3:  # to be divided they are copied
        size = f"{config.size} x {config.size} x {config.channels}"
        raise DataError(
            f"folder: {base} holds {len(files):,} files, as images of {size} {math.prod(shape) / 2**30:,.0f} GiB: "
            "more than a third of the memory there is; choose a smaller data.size"
        )
    images = torch.empty(shape, dtype=torch.uint8)
    labels: list[int] = []
    read: list[str] = []
    found = _pictures([path for path, _ in files], config, limits)
    for (path, label), image in zip(files, found, strict=True):
        if isinstance(image, str):
            skipped.add(path, image)
        else:
            images[len(labels)] = image
            labels.append(label)
            read.append(skipped.name(path))
    kept = images if len(labels) == len(files) else images[: len(labels)].clone()
    return LabelledImages(kept, torch.tensor(labels, dtype=torch.int64), names, files=tuple(read))


def _memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """This machine's, or the limit of the container (cgroup version 2 or 1), where that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such version; "max" is no limit
            found.append(int((cgroup / limit).read_text()))
    return min(found)


def _pictures(paths: list[Path], config: FolderData, limits: PictureLimits) -> Iterator[Tensor | str]:
    """`_picture` of each, in order."""
    with ThreadPoolExecutor(READERS) as side_by_side:  # Pillow decodes without the interpreter's lock
        for start in range(0, len(paths), PART):
            yield from side_by_side.map(lambda path: _picture(path, config, limits), paths[start : start + PART])


def _picture(path: Path, config: FolderData, limits: PictureLimits) -> Tensor | str:
    """uint8 [C,H,W], or the reason why there is none."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        limits.check_bytes(status.st_size)  # before reading it: a huge file must not fill the memory
        picture = _opened(path.read_bytes(), limits)
    except OSError as error:
        return "a broken link" if path.is_symlink() else (error.strerror or "cannot be read")
    except PictureError as error:
        return str(error)
    prepared = prepare(picture.pixels, _input(config), config.preprocessing)
    if not prepared.has_content:
        return "blank: no content was found in it"
    return torch.from_numpy(np.rint(prepared.image * 255).astype(np.uint8))


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


def _require_enough(images: LabelledImages, skipped: _Skipped) -> None:
    for name, members in zip(images.class_names, images.by_class, strict=True):
        if len(members) < FEWEST_IMAGES:
            left_out = skipped.listed
            reason = f"; {len(left_out)} files could not be used, the first: {left_out[0]}" if left_out else ""
            raise DataError(
                f"folder: the class {name!r} of {skipped.root} has {len(members)} usable pictures, "
                f"at least {FEWEST_IMAGES} are needed{reason}"
            )
