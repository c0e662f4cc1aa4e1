"""A folder with one folder of pictures a class: the user's own data.

    pictures/<class>/**/*                       split into training and validation by a seed
    pictures/train/<class>/... and test/<class>/...    the same, with a test set of its own
    pictures/unlabelled/**/*                    beside the classes or beside train: more pictures of the classes that
                                                nobody has sorted; unlabeled is the same name
    pictures/outliers/**/*                      in the same places: pictures of none of the classes, of which the same
                                                share is held out for validation; test/outliers/ for the test

Capitals make no difference to these four names.

A folder train that holds no folders, and has no test beside it, is a class of that name.

What cannot be used is listed with its reason and counted; names that begin with a dot are no part of it.
folder_pictures.py reads the files, folder_copies.py tells pictures that are there twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from contract.manifest import MAX_LABEL_LENGTH
from contract.picture_header import PictureLimits
from training.config import FolderData
from training.datasets.folder_copies import doubts
from training.datasets.folder_pictures import Reader, Skipped
from training.datasets.images import LabelledImages, Splits, stratified_split
from training.datasets.storage import expanded
from training.errors import DataError

__all__ = ["load"]

# One image for validation and two for training: an image needs another of its class as its complement (EquiVAE, Eq. 2).
FEWEST_KEPT = 2
FEWEST_IMAGES = FEWEST_KEPT + 1
FEWEST_APART = 2  # unlabelled pictures, one of which has no deviation, and outliers, one of which validation gets
UNLABELLED, OUTLIERS = ("unlabelled", "unlabeled"), ("outliers",)
VALIDATION = ("val", "valid", "validation")


def load(config: FolderData, limits: PictureLimits | None = None) -> Splits:
    """Read every picture into memory, in the order of the sorted names.

    Raises:
        DataError: no such folder, fewer than two classes, or a class with too few usable pictures.
    """
    root = expanded(config.path)
    if not root.is_dir():
        raise DataError(f"folder: {root} {'is not a folder' if root.exists() else 'does not exist'}")
    layout = _layout(root)
    skipped = Skipped(root)
    names = _class_names(layout.classes, skipped)
    reader = Reader(config, limits or PictureLimits(), names, skipped)
    whole = reader.read(layout.classes, _of_classes(layout.classes, names, skipped))
    _list_strays(layout, names, skipped)
    test, far_test = _test(layout, reader)
    _require_enough(whole, skipped)
    train, validation = stratified_split(whole.labels, config.validation, config.split_seed, fewest_kept=FEWEST_KEPT)
    unsorted = _apart(UNLABELLED, (root, layout.classes), reader)
    far = _apart(OUTLIERS, (root, layout.classes), reader)
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
        input=reader.input,
        preprocessing=config.preprocessing,
        skipped=tuple(skipped.listed),
        doubts=tuple(doubts(whole, test, far, far_test)),
    )


@dataclass(frozen=True)
class _Layout:
    """Where the parts of the folder `root` lie.

    classes: what holds the folders of the training classes, `root` itself or its folder train.
    test: what holds those of the test set. None where there is none.
    """

    root: Path
    classes: Path
    test: Path | None


def _layout(root: Path) -> _Layout:
    """A folder train of pictures alone is a class, but train and test beside each other are never two.

    Raises:
        DataError: there is a test set but nothing to train on.
    """
    train, test = _named(root, "train"), _named(root, "test")
    if train.is_dir() and (_holds_folders(train) or test.is_dir()):
        return _Layout(root, train, test if test.is_dir() else None)
    if _holds_folders(test):
        raise DataError(f"folder: {root} has a folder test but none named train: put the training classes into train")
    return _Layout(root, root, None)


def _named(root: Path, name: str) -> Path:
    """The folder of that name, in capitals or not."""
    return next((path for path in _visible(root) if path.name.lower() == name and path.is_dir()), root / name)


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in _visible(folder))


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"folder: {folder} cannot be listed: {error.strerror}") from error


def _is_apart(path: Path, kinds: tuple[str, ...] = UNLABELLED + OUTLIERS) -> bool:
    """Whether it is a folder of one of these names, and no class."""
    return path.name.lower() in kinds and path.is_dir()


def _class_names(base: Path, skipped: Skipped) -> tuple[str, ...]:
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


def _list_strays(layout: _Layout, names: tuple[str, ...], skipped: Skipped) -> None:
    """List what lies beside train, and in test what is of no class of train."""
    if layout.classes == layout.root:
        return
    for path in _visible(layout.root):
        if path not in (layout.classes, layout.test) and not _is_apart(path):
            hint = ": validation is drawn from train, see data.validation"
            skipped.add(path, "lies beside train, not in it" + hint * (path.name.lower() in VALIDATION))
    for path in _visible(layout.test) if layout.test is not None else ():
        if path.name not in names and not _is_apart(path, OUTLIERS):
            skipped.add(path, "no class of train" if path.is_dir() else "lies in no class folder")


def _test(layout: _Layout, reader: Reader) -> tuple[LabelledImages | None, LabelledImages | None]:
    """The test set with its outliers, and those once more by themselves, with their files."""
    if layout.test is None:
        return None, None
    test = reader.read(layout.test, _of_classes(layout.test, reader.names, reader.skipped))
    far = _apart(OUTLIERS, (layout.test,), reader)
    if len(test):
        return replace(test, outliers=_images(far)), far
    if far is not None:
        reader.skipped.add(layout.test, "outliers alone, and no picture of a class, are no test set")
    return None, far


def _apart(kinds: tuple[str, ...], places: tuple[Path, ...], reader: Reader) -> LabelledImages | None:
    """Read the pictures of no known class: those in the folders in `places` that have one of the names `kinds`.

    Their labels are all 0. A folder that is reached in two ways, by a link, is read once.

    Returns:
        None where there is no such folder, or where too few of its pictures can be used.
    """
    folders = list(
        {path.resolve(): path for place in places for path in _visible(place) if _is_apart(path, kinds)}.values()
    )
    if not folders:
        return None
    found = reader.read(folders[0], [(path, 0) for folder in folders for path in _files(folder, reader.skipped)])
    if len(found) < FEWEST_APART:
        reader.skipped.add(folders[0], f"{len(found)} usable pictures: fewer than {FEWEST_APART} tell nothing")
        return None
    return found


def _images(part: LabelledImages | None) -> Tensor | None:
    return None if part is None else part.images


def _of_classes(base: Path, names: tuple[str, ...], skipped: Skipped) -> list[tuple[Path, int]]:
    return [(path, k) for k, name in enumerate(names) for path in _files(base / name, skipped)]


def _files(folder: Path, skipped: Skipped) -> Iterator[Path]:
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


def _require_enough(images: LabelledImages, skipped: Skipped) -> None:
    for name, members in zip(images.class_names, images.by_class, strict=True):
        if len(members) < FEWEST_IMAGES:
            left_out = skipped.listed
            reason = f"; {len(left_out)} files could not be used, the first: {left_out[0]}" if left_out else ""
            raise DataError(
                f"folder: the class {name!r} of {skipped.root} has {len(members)} usable pictures, "
                f"at least {FEWEST_IMAGES} are needed{reason}"
            )
