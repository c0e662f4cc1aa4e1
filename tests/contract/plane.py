"""Matrices for the tests, from what they do."""

import numpy as np

from contract import geometry
from contract.geometry import Matrix


def from_parts(
    rotation_degrees: float = 0.0,
    translation: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
    shear_degrees: float = 0.0,
) -> Matrix:
    """The matrix of these parts, see `geometry.Parts`; the inverse of `to_parts`."""
    shear = np.array([[1.0, np.tan(np.radians(shear_degrees))], [0.0, 1.0]])
    matrix = geometry.rotation(rotation_degrees)
    matrix[:, :2] = matrix[:, :2] @ shear @ np.diag(scale)
    matrix[:, 2] = 2.0 * np.asarray(translation)
    return matrix
