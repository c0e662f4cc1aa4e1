"""scikit-learn's copy of the UCI optical digits: 1,797 grey pictures of 8x8, part of the library, no download."""

import torch
from sklearn.datasets import load_digits

from contract.manifest import InputSpec, Preprocessing
from training.datasets.images import LabelledImages, Splits, stratified_split

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.15


def load(seed: int) -> Splits:
    """20 % test and 15 % of the rest validation, each a share of every class chosen by the seed.

    The counts 0..16 of the source become 0..255. Its digits fill the frame from edge to edge, hence no margin.
    """
    source = load_digits()
    images = torch.from_numpy((source.images * 255 / 16).round().astype("uint8")).unsqueeze(1)
    whole = LabelledImages(images, torch.from_numpy(source.target).long(), tuple("0123456789"))
    rest, test = stratified_split(whole.labels, TEST_SHARE, seed)
    train, validation = stratified_split(whole.labels[rest], VALIDATION_SHARE, seed + 1)
    return Splits(
        name="digits",
        train=whole.subset(rest[train]),
        validation=whole.subset(rest[validation]),
        test=whole.subset(test),
        input=InputSpec(channels=1, height=8, width=8),
        preprocessing=Preprocessing(polarity="light", fit="box", margin=0.0),
    )
