"""POST /embed: the representation of a picture."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from service.catalogue import LoadedModel
from service.engine import Array
from service.images import ModelInput
from service.inference import Inference
from service.routes.pictures import add_picture_route
from service.schemas import Batch, EmbedAnswer


def render(model: LoadedModel, item: ModelInput, outputs: Mapping[str, Array], row: int) -> dict[str, Any]:
    """The field of schemas.EmbedAnswer, see `inference.Render`."""
    return {"embedding": outputs["embedding"][row]}


def add(router: APIRouter, inference: Inference) -> None:
    add_picture_route(
        router, inference, "embed", render, one=EmbedAnswer, batch=Batch[EmbedAnswer], summary="Embed pictures"
    )
