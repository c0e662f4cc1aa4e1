"""The data sets: `load` reads the one that a configuration names."""

from typing import assert_never

from training.config import DataConfig, DigitsData, FolderData, MnistData, SvhnData, TextData
from training.datasets import digits, folder, mnist, svhn, text
from training.datasets.colour import over_photographs
from training.datasets.images import LabelledImages, Splits

__all__ = ["LabelledImages", "Splits", "load"]


def load(config: DataConfig) -> Splits:
    """Read, split and, where asked, leave out classes, hide labels, pad the pictures and lay them over photographs.

    Raises:
        DataError: the data is absent, broken or too small; the message says what to do.
    """
    match config:
        case DigitsData():
            splits = digits.load(config.split_seed)
        case MnistData():
            splits = mnist.load(config.path)
        case SvhnData():
            splits = svhn.load(config.path)
        case FolderData():
            splits = folder.load(config)
        case TextData():
            splits = text.load(config)
        case _:
            assert_never(config)
    splits = splits.without(config.exclude).with_few_labels(config.labels, config.label_seed)
    splits = splits if config.canvas is None else splits.on_canvas(config.canvas)
    return splits if config.photograph_seed is None else over_photographs(splits, config.photograph_seed)
