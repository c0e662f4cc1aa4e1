"""GET /models: what serves, what was refused and why, and the defaults."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.call import CALL
from service.catalogue import LoadedModel
from service.errors import CapabilityNotFound, ModelNotFound, NotReady
from service.model_store import ModelStore
from service.routes.direct import DirectRoute
from service.schemas import ModelDescription, ModelsAnswer, RefusedModel


def describe(model: LoadedModel) -> ModelDescription:
    manifest = model.manifest
    return ModelDescription(
        name=manifest.name,
        version=manifest.version,
        kind=manifest.kind,
        capabilities=list(manifest.graphs),
        input=manifest.input,
        preprocessing=manifest.preprocessing,
        labels=list(manifest.labels),
        metrics=manifest.metrics,
        data=manifest.data,
        licence=manifest.licence,
        created=manifest.created.isoformat(),
    )


def add(router: APIRouter, store: ModelStore) -> None:
    async def models(request: Request) -> Response:
        request.scope[CALL].endpoint = "models"
        answer = ModelsAnswer(
            models=[describe(model) for model in store.serving.models.values()],
            refused=[
                RefusedModel(model=refusal.model, version=refusal.version, reason=refusal.reason)
                for refusal in store.refused
            ],
            defaults={capability: _default(store, capability) for capability in store.defaults},
        )
        return Response(answer.model_dump_json(), media_type="application/json")

    router.add_api_route(
        "/models",
        models,
        name="models",
        summary="Models that serve, and model folders that were refused",
        response_model=ModelsAnswer,
        route_class_override=DirectRoute,
    )


def _default(store: ModelStore, capability: str) -> str | None:
    try:
        return store.select(capability, None, None).name
    except (CapabilityNotFound, ModelNotFound, NotReady):
        return None
