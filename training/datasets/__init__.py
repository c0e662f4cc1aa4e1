"""The data sets: `load` reads the one that a configuration names and imports no other, as some take long to import."""

from typing import assert_never

from training.config import DataConfig, DigitsData, FolderData, MnistData, SvhnData, TextData
from training.datasets.images import LabelledImages, Splits

__all__ = ["LabelledImages", "Splits", "load"]


def load(config: DataConfig) -> Splits:
    """Read, split and, where asked, leave out classes, hide labels, pad the pictures and lay them over photographs.

    Raises:
        DataError: the data is absent, broken or too small; the message says what to do.
    """
    match config:
        case DigitsData():
            from training.datasets import digits

            splits = digits.load(config.split_seed)
        case MnistData():
            from training.datasets import mnist

            splits = mnist.load(config.path)
        case SvhnData():
            from training.datasets import svhn

            splits = svhn.load(config.path)
        case FolderData():
            from training.datasets import folder

            splits = folder.load(config)
        case TextData():
            from training.datasets import text

            splits = text.load(config)
        case _:
            assert_never(config)
    splits = splits.without(config.exclude).with_few_labels(config.labels, config.label_seed)
    splits = splits if config.canvas is None else splits.on_canvas(config.canvas)
    if config.photograph_seed is None:
        return splits
    from training.datasets.colour import over_photographs

    return over_photographs(splits, config.photograph_seed)
