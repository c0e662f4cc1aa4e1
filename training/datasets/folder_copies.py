"""Pictures of the user's folder that are there twice: equal as the model sees them, whatever their files are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from training.datasets.images import LabelledImages

__all__ = ["doubts"]

IN_TWO_CLASSES = "pictures that are in two classes, of which no model can tell which is meant"
IN_TEST_TOO = "pictures of test that are in training too, which makes its figures too good"
IN_OUTLIERS_TOO = "pictures of a class that are in outliers too"
OUTLIERS_TWICE = "copies among outliers, which make the figure of held-out ones too good"
TWICE = "copies of other pictures, which make validation's figures too good where it has one of the two"


def doubts(
    whole: LabelledImages, test: LabelledImages | None, far: LabelledImages | None, far_test: LabelledImages | None
) -> Iterator[str]:
    """A line for each kind of copy: how many there are, and the first two files.

    Args:
        whole: training and validation together.
        far: the outliers of both; far_test: those of the test.
    """
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
