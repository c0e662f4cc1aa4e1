"""Street View House Numbers (Netzer et al., 2011): cropped colour digits of 32x32, as published in MATLAB files.

`train_32x32.mat` and `test_32x32.mat` hold `X` uint8 [32,32,3,N] and `y` [N,1], in which 10 stands for the digit 0.
Feige (2019) trains on 70,000 of the 73,257 and validates on the last 3,257.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import loadmat

from contract.manifest import InputSpec, Preprocessing
from training.datasets.images import LabelledImages, Splits
from training.datasets.storage import ENVIRONMENT, data_root, download, expanded
from training.errors import DataError

MIRRORS = ("http://ufldl.stanford.edu/housenumbers/",)
FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
VALIDATION = 3_257
ADVICE = f"Put train_32x32.mat and test_32x32.mat into a folder and name it with data.path or {ENVIRONMENT}."


def load(path: Path | None) -> Splits:
    """Train 70,000, validation 3,257 (the last of the training file), test 26,032."""
    folder = expanded(path) if path else _default_folder()
    train_file, test_file = (_file(folder, name, may_download=path is None) for name in FILES)
    whole, test = _read(train_file), _read(test_file)
    if len(whole) <= VALIDATION:
        raise DataError(f"svhn: {train_file} holds {len(whole):,} images; {VALIDATION:,} alone are for validation")
    return Splits(
        name="svhn",
        train=whole.subset(torch.arange(len(whole) - VALIDATION)),
        validation=whole.subset(torch.arange(len(whole) - VALIDATION, len(whole))),
        test=test,
        input=InputSpec(channels=3, height=32, width=32),
        preprocessing=Preprocessing(polarity="none", fit="image", margin=0.0),
    )


def _default_folder() -> Path:
    root = data_root()
    return root if (root / "train_32x32.mat").is_file() else root / "svhn"


def _file(folder: Path, name: str, may_download: bool) -> Path:
    if (folder / name).is_file():
        return folder / name
    if not may_download:
        raise DataError(f"svhn: {folder} has no {name}. {ADVICE}")
    return download(name, MIRRORS, FILES[name], folder, ADVICE)


def _content(path: Path) -> dict[str, Any]:
    """What the file says of X and y, read in a process of its own, since some damaged files crash scipy (1.17)."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as reader:
        try:
            content: dict[str, Any] = reader.submit(loadmat, path, variable_names=("X", "y")).result()
        except BrokenProcessPool as error:
            reason = 'it is damaged, or a script of your own loads it outside of `if __name__ == "__main__":`'
            raise DataError(f"svhn: the process that read {path} as a MATLAB file died: {reason}") from error
        except Exception as error:  # scipy answers broken files with many kinds of exception, some of them undocumented
            raise DataError(f"svhn: {path} cannot be read as a MATLAB file: {error}") from error
    return content


def _read(path: Path) -> LabelledImages:
    content = _content(path)
    if not {"X", "y"} <= content.keys():
        raise DataError(f"svhn: {path} must hold the arrays X and y")
    images, labels = content["X"], content["y"]
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "uif":  # text, a cell, a struct, a sparse matrix
        raise DataError(f"svhn: y of {path} is no array of numbers")
    labels = labels.reshape(-1)
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise DataError(
            f"svhn: X of {path} is {images.dtype} {list(images.shape)}, expected uint8 [32, 32, 3, {len(labels)}]"
        )
    wrong = labels[~np.isin(labels, np.arange(1, 11))]
    if wrong.size:
        raise DataError(f"svhn: y of {path} holds the label {wrong[0]}, expected whole numbers from 1 to 10")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return LabelledImages(pixels, torch.from_numpy(labels.astype(np.int64) % 10), tuple("0123456789"))
