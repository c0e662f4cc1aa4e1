"""POST /transform: how the content of a picture lies, and how sure that is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter

from contract import geometry
from contract.geometry import COEFFICIENTS, GeometryError
from service.catalogue import LoadedModel
from service.engine import Array
from service.errors import InternalError
from service.images import ModelInput
from service.inference import Inference
from service.routes.pictures import add_picture_route
from service.schemas import Batch, TransformAnswer

LEAST_WEIGHT = 1e-4  # of a mode that is worth an answer
_AS_IT_IS = np.eye(2, 3, dtype=np.float32)


def render(model: LoadedModel, item: ModelInput, outputs: Mapping[str, Array], row: int) -> dict[str, Any]:
    """The fields of schemas.Transform, see `inference.Render`. Where there is no content it lies in no way: the model's
    uncertainty stays, and nothing is to be undone.

    Raises:
        InternalError: the model's answer is no transform.
    """
    group = model.manifest.group
    assert group is not None  # the manifest holds every model that estimates a pose to it
    matrix, weights = outputs["matrix"][row], outputs["weights"][row]
    # Other modes fill up the tensor or lie beyond the model's range, and come last.
    modes = [
        (weight, mode) for weight, mode in zip(weights, outputs["modes"][row], strict=True) if weight >= LEAST_WEIGHT
    ]
    if not item.description["has_content"]:
        modes, matrix = [(np.float32(1), _AS_IT_IS)], _AS_IT_IS
    if not modes:
        raise InternalError(f"the model {model.name} gave no transform for this picture: no mode has any weight")
    try:
        return {
            "group": group,
            "matrix": matrix,
            **_parts(matrix),
            "uncertainty": _uncertainty(dict(zip(COEFFICIENTS[group], outputs["coefficients_std"][row], strict=True))),
            "modes": [{"weight": weight, "matrix": mode, **_parts(mode)} for weight, mode in modes],
            "frame": item.frame,
        }
    except GeometryError as error:
        raise InternalError(f"the model {model.name} gave no transform for this picture: {error}") from None


def of_mode(found: Mapping[str, Any], mode: int) -> dict[str, Any]:
    """`render`'s answer with the matrix and parts of one of its modes in the place of the best one's."""
    return {**found, **{name: value for name, value in found["modes"][mode].items() if name != "weight"}}


def _parts(matrix: npt.ArrayLike) -> dict[str, Any]:
    parts = geometry.to_parts(matrix)
    return {
        "rotation_degrees": np.float32(parts.rotation_degrees),
        "translation": _pair(*parts.translation),
        "scale": _pair(*parts.scale),
        "shear_degrees": np.float32(parts.shear_degrees),
    }


def _uncertainty(deviation: Mapping[str, np.float32]) -> dict[str, Any]:
    """schemas.Uncertainty from the standard deviations of a group's coefficients."""
    fields: dict[str, Any] = {"rotation_degrees": np.degrees(deviation["rotation"])}
    if "x" in deviation:
        fields["translation"] = _pair(deviation["x"] / 2, deviation["y"] / 2)
    if "log_scale" in deviation:
        fields["scale"] = _pair(deviation["log_scale"], deviation["log_scale"])
    if "log_scale_x" in deviation:
        fields["scale"] = _pair(deviation["log_scale_x"], deviation["log_scale_y"])
    if "shear" in deviation:
        fields["shear_degrees"] = np.degrees(deviation["shear"])
    return fields


def _pair(x: Any, y: Any) -> dict[str, np.float32]:
    return {"x": np.float32(x), "y": np.float32(y)}


def add(router: APIRouter, inference: Inference) -> None:
    add_picture_route(
        router,
        inference,
        "transform",
        render,
        one=TransformAnswer,
        batch=Batch[TransformAnswer],
        summary="Tell how the content of pictures lies",
    )
