"""POST /classify: the class of a picture, how sure, and whether it is like anything seen in training."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from service.engine import Array
from service.images import ModelInput
from service.inference import Inference
from service.model_store import LoadedModel
from service.routes.pictures import add_picture_route
from service.schemas import Batch, ClassifyAnswer

NOVEL_ABOVE = 0.99


def render(model: LoadedModel, item: ModelInput, outputs: Mapping[str, Array], row: int) -> dict[str, Any]:
    labels = model.manifest.labels
    probabilities = outputs["probabilities"][row]
    best = int(probabilities.argmax())
    score = outputs["novelty"][row]
    return {
        "label": labels[best],
        "probability": probabilities[best],
        "probabilities": dict(zip(labels, probabilities, strict=True)),
        "distances": dict(zip(labels, outputs["distances"][row], strict=True)),
        "novelty": {"score": score, "is_novel": bool(score > NOVEL_ABOVE)},
    }


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
