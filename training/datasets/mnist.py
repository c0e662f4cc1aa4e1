"""MNIST (LeCun, Cortes and Burges, 1998): 60,000 and 10,000 grey digits of 28x28.

Read from a local `.npz` (`x_train`, `y_train`, `x_test`, `y_test`) or from the four idx files, packed or not;
what is not there is downloaded. Feige (2019) holds out the last 5,000 of the 60,000 as validation.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from contract.manifest import InputSpec, Preprocessing
from training.datasets.images import LabelledImages, Splits
from training.datasets.storage import ENVIRONMENT, data_root, download, expanded
from training.errors import DataError

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
# File name and MD5 of the packed file, in the order train images, train labels, test images, test labels.
FILES = (
    ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432"),
    ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3"),
    ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c"),
)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
VALIDATION = 5_000
ADVICE = (
    f"Put mnist.npz or the four idx files into a folder and name it with data.path or {ENVIRONMENT}, "
    "or use the digits data set, which needs no download."
)


def load(path: Path | None) -> Splits:
    """Train 55,000, validation 5,000 (the last of the 60,000), test 10,000."""
    x_train, y_train, x_test, y_test = _checked(*(_named(path) if path else _found(data_root())))
    names = tuple("0123456789")

    def part(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> LabelledImages:
        return LabelledImages(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)), names)

    return Splits(
        name="mnist",
        train=part(x_train[:-VALIDATION], y_train[:-VALIDATION]),
        validation=part(x_train[-VALIDATION:], y_train[-VALIDATION:]),
        test=part(x_test, y_test),
        input=InputSpec(channels=1, height=28, width=28),
        preprocessing=Preprocessing(polarity="light", fit="mass", margin=4 / 28),
    )


def _named(path: Path) -> tuple[NDArray[np.uint8], ...]:
    """A path that the user gave: what is missing there is an error, nothing is downloaded in its place."""
    path = expanded(path)
    if not path.exists():
        raise DataError(f"mnist: {path} does not exist. {ADVICE}")
    if path.is_file():
        return _read_npz(path)
    if (path / "mnist.npz").is_file():
        return _read_npz(path / "mnist.npz")
    files = [_idx_file(path, name) for name, _ in FILES]
    if missing := [name for (name, _), file in zip(FILES, files, strict=True) if file is None]:
        raise DataError(f"mnist: {path} holds neither mnist.npz nor {', '.join(missing)}. {ADVICE}")
    return tuple(_read_idx(file) for file in files if file is not None)


def _found(root: Path) -> tuple[NDArray[np.uint8], ...]:
    """The user's data folder, or a `mnist` folder in it; missing idx files are downloaded there."""
    for candidate in (root, root / "mnist"):
        if candidate.is_file() or (candidate / "mnist.npz").is_file():
            return _named(candidate)
    folder = root if _idx_file(root, FILES[0][0]) else root / "mnist"
    return tuple(
        _read_idx(_idx_file(folder, name) or download(f"{name}.gz", MIRRORS, checksum, folder, ADVICE))
        for name, checksum in FILES
    )


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file in any of its usual spellings: packed or not, with a dash or with a dot before `idx`."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for candidate in (folder / spelling, folder / f"{spelling}.gz"):
            if candidate.is_file():
                return candidate
    return None


def _read_npz(path: Path) -> tuple[NDArray[np.uint8], ...]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = archive.files
            arrays = {name: archive[name] for name in ARRAYS if name in held}
    except Exception as error:  # numpy and zipfile answer broken files with many kinds of exception
        raise DataError(f"mnist: {path} cannot be read as .npz: {error}") from error
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise DataError(f"mnist: {path} has no array {', '.join(missing)}; it holds {', '.join(held)}")
    return tuple(arrays.values())


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """The idx format: two zero bytes, type (8 = uint8), rank, the sizes as big-endian 32-bit numbers, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"mnist: {path} cannot be read: {error}; delete it to download it again") from error
    rank = content[3] if len(content) > 3 else 0
    if content[:3] != b"\0\0\x08" or rank > 3 or len(content) < 4 + 4 * rank:
        raise DataError(f"mnist: {path} is not an idx file of bytes in three dimensions at most")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, 4))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != math.prod(shape):
        raise DataError(f"mnist: {path} is cut short: {values.size:,} of {math.prod(shape):,} values")
    return values.reshape(shape).copy()


def _checked(
    x_train: NDArray[np.uint8], y_train: NDArray[np.uint8], x_test: NDArray[np.uint8], y_test: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], ...]:
    """A file of another data set in MNIST's format would train without a word; its sizes give it away."""
    arrays = dict(zip(ARRAYS, (x_train, y_train, x_test, y_test), strict=True))
    expected = ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))
    for (name, array), shape in zip(arrays.items(), expected, strict=True):
        if array.shape != shape or array.dtype != np.uint8:
            raise DataError(f"mnist: {name} is {array.dtype} {list(array.shape)}, expected uint8 {list(shape)}")
        if array.ndim == 1 and array.max() > 9:
            raise DataError(f"mnist: {name} holds the label {array.max()}; MNIST has 0 to 9")
    return tuple(arrays.values())
