"""Connected components of a mask, by runs: all of numpy, so that a noisy page costs no more than a clean one."""

import numpy as np
import numpy.typing as npt


def label_components(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], int]:
    """Labels [H,W] of the 8-connected components of `mask` [H,W] (0 outside, then 1, 2, ...), and their number.

    Every row is cut into runs; runs of neighbouring rows that touch are joined by propagating the least index with
    pointer jumping (Shiloach and Vishkin 1982), which takes a logarithmic number of sweeps.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    edges = np.diff(padded, axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]  # exclusive
    count = len(rows)
    labels = np.zeros((height, width), np.intp)
    if count == 0:
        return labels, 0

    # On one axis, rows lie further apart than a run can reach: a run touches those of the row above in [first, last).
    stride = width + 2
    above = (rows - 1) * stride
    first = np.searchsorted(rows * stride + ends, above + starts, side="left")
    last = np.searchsorted(rows * stride + starts, above + ends, side="right")
    touching = np.maximum(last - first, 0)
    lower = np.repeat(np.arange(count), touching)
    upper = np.arange(len(lower)) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)

    root = np.arange(count)
    while True:
        least = np.minimum(root[lower], root[upper])
        before = root.copy()
        np.minimum.at(root, root[lower], least)
        np.minimum.at(root, root[upper], least)
        root = root[root]
        if np.array_equal(root, before):
            break
    _, of_run = np.unique(root, return_inverse=True)

    runs = np.repeat(of_run + 1, ends - starts)
    labels[mask] = runs
    return labels, int(of_run.max()) + 1
