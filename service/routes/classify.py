"""POST /classify: the class of a picture, how sure, and whether it is like anything seen in training."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
from fastapi import APIRouter

from service.catalogue import LoadedModel
from service.engine import Array
from service.images import ModelInput
from service.inference import Inference, to_json
from service.routes.pictures import add_picture_route
from service.schemas import Batch, ClassifyAnswer

NOVEL_ABOVE = 0.99


def render(model: LoadedModel, item: ModelInput, outputs: Mapping[str, Array], row: int) -> dict[str, Any]:
    """The fields of schemas.ClassifyAnswer, see `inference.Render`."""
    labels = model.manifest.labels
    probabilities = outputs["probabilities"][row]
    best = int(probabilities.argmax())
    score = outputs["novelty"][row]
    return {
        "label": labels[best],
        "probability": probabilities[best],
        "probabilities": _by_label(labels, probabilities),
        "distances": _by_label(labels, outputs["distances"][row]),
        "novelty": {"score": score, "is_novel": bool(score > NOVEL_ABOVE)},
    }


def _by_label(labels: tuple[str, ...], values: Array) -> orjson.Fragment:
    """An object of the values [K] by their labels. To make K NumPy numbers of them first would take longer."""
    return orjson.Fragment(_template(labels) % tuple(to_json(values)[1:-1].split(b",")))


@lru_cache(maxsize=64)
def _template(labels: tuple[str, ...]) -> bytes:
    return b"{%b}" % b",".join(to_json(label).replace(b"%", b"%%") + b":%b" for label in labels)


def add(router: APIRouter, inference: Inference) -> None:
    add_picture_route(
        router,
        inference,
        "classify",
        render,
        one=ClassifyAnswer,
        batch=Batch[ClassifyAnswer],
        summary="Classify pictures",
    )
