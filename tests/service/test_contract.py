"""The OpenAPI document against what is really answered."""

import base64
import re
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from service import schemas
from service.errors import Problem, problem_types
from tests.service import tiny

PICTURE = base64.b64encode(tiny.png()).decode()
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    response = client.get("/openapi.json")
    assert response.status_code == 200
    return response.json()  # type: ignore[no-any-return]


ANSWERS: list[tuple[str, dict[str, Any], type[BaseModel]]] = [
    ("/embed", {"content": tiny.png(), "headers": PNG}, schemas.EmbedAnswer),
    ("/classify", {"content": tiny.png(), "headers": PNG}, schemas.ClassifyAnswer),
    ("/recombine", {"files": {"content": tiny.png(), "style": tiny.png()}}, schemas.RecombineAnswer),
    ("/embed", {"json": {"images": [{"data": PICTURE}, {"data": "?"}]}}, schemas.Batch[schemas.EmbedAnswer]),
    ("/classify", {"json": {"images": [{"data": PICTURE}, {"data": "?"}]}}, schemas.Batch[schemas.ClassifyAnswer]),
    ("/classify", {"content": b"?", "headers": PNG}, schemas.Problem),
]


@pytest.mark.parametrize(("path", "request_", "schema"), ANSWERS)
def test_real_answers_are_what_the_schemas_say(
    client: httpx.Client, path: str, request_: dict[str, Any], schema: type[BaseModel]
) -> None:
    body = client.post(path, **request_).content
    answer = schema.model_validate_json(body)
    # Every documented field is there: what the model writes back is what was received.
    assert answer.model_dump(mode="json", exclude_none=True) == httpx.Response(200, content=body).json()


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/models", schemas.ModelsAnswer),
        ("/startupz", schemas.Started),
        ("/healthz", schemas.Alive),
        ("/readyz", schemas.Ready),
    ],
)
def test_resources_are_what_the_schemas_say(client: httpx.Client, path: str, schema: type[BaseModel]) -> None:
    schema.model_validate_json(client.get(path).content)


def test_every_path_is_described_and_every_reference_resolves(document: dict[str, Any]) -> None:
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == {
        ("/embed", "post"),
        ("/classify", "post"),
        ("/transform", "post"),
        ("/canonicalize", "post"),
        ("/augment", "post"),
        ("/recombine", "post"),
        ("/models", "get"),
        ("/startupz", "get"),
        ("/healthz", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
        ("/v2", "get"),
        ("/v2/health/live", "get"),
        ("/v2/health/ready", "get"),
        ("/v2/models/{model}", "get"),
        ("/v2/models/{model}/ready", "get"),
        ("/v2/models/{model}/infer", "post"),
        ("/v2/models/{model}/versions/{version}", "get"),
        ("/v2/models/{model}/versions/{version}/ready", "get"),
        ("/v2/models/{model}/versions/{version}/infer", "post"),
        ("/v2/repository/index", "post"),
        ("/v2/repository/models/{model}/load", "post"),
        ("/v2/repository/models/{model}/unload", "post"),
    }

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*(references(value) for value in node.values()))
        return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known


def test_the_described_requests_are_accepted(client: httpx.Client, document: dict[str, Any]) -> None:
    for path in ("/embed", "/classify", "/transform", "/canonicalize", "/augment", "/recombine"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        for name in ("image/*", "application/octet-stream"):
            assert (name in content) == (path != "/recombine")
        for name in ("multipart/form-data", "application/json"):
            assert name in content
    parameters = {entry["name"]: entry["schema"] for entry in document["paths"]["/classify"]["post"]["parameters"]}
    for name, schema in parameters.items():
        for value in schema.get("enum", []):
            response = client.post(f"/classify?{name}={value}", content=tiny.png(), headers=PNG)
            assert response.status_code in (200, 422), response.text
            assert "invalid-parameter" not in response.text


def test_the_example_picture_works_when_pasted(client: httpx.Client, document: dict[str, Any]) -> None:
    (example,) = document["components"]["schemas"]["EncodedImage"]["properties"]["data"]["examples"]
    answer = client.post("/classify", json={"images": [{"data": example}]}).json()
    assert "label" in answer["results"][0], answer
    assert client.post("/recombine", json={"content": {"data": example}, "style": {"data": example}}).status_code == 200


def test_every_problem_is_documented_once(document: dict[str, Any]) -> None:
    slugs = [kind.slug for kind in problem_types()]
    assert len(set(slugs)) == len(slugs)
    for kind in problem_types():
        assert f"| `{kind.slug}` | {kind.status} | {kind.title} |" in document["info"]["description"]


@pytest.mark.parametrize("path", ["/classify", "/embed", "/transform", "/canonicalize", "/augment", "/recombine"])
def test_a_route_describes_every_problem_it_can_answer(document: dict[str, Any], path: str) -> None:
    responses = document["paths"][path]["post"]["responses"]
    described = {
        (slug, int(status))
        for status, response in responses.items()
        for slug in re.findall(r"`([a-z0-9-]+)`: ", response["description"])
    }
    elsewhere = {"not-found", "method-not-allowed", "model-refused", "invalid-tensor", "unauthorized", "forbidden"}
    elsewhere |= {"too-many-connections", "not-alive", "malformed-request", "head-too-large", "head-timeout"}
    elsewhere |= set() if path in ("/recombine", "/canonicalize") else {"not-acceptable"}
    elsewhere |= set() if path == "/canonicalize" else {"no-such-mode"}
    assert described == {(kind.slug, kind.status) for kind in problem_types() if kind.slug not in elsewhere}


def test_the_documentation_page_opens_without_a_network(client: httpx.Client) -> None:
    response = client.get("/docs")
    assert response.status_code == 200
    links = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert "docs/swagger-ui-bundle.js" in links
    for link in links:
        if not link.startswith("data:"):
            file = client.get(f"/{link}")
            assert file.status_code == 200 and len(file.content) > 50, link
    assert "://" not in response.text
    assert "script-src 'self';" in response.headers["content-security-policy"]


def test_files_of_the_documentation_are_read_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that have asked and do not read would each hold its megabytes."""
    first = client.get("/docs/swagger-ui-bundle.js")
    monkeypatch.setattr("service.routes.docs.files", None)
    assert client.get("/docs/swagger-ui-bundle.js").content == first.content


def test_a_problem_keeps_its_standard_members_last_word() -> None:
    class Example(Problem):
        slug, title, status = "example", "An example", 418

    document = Example("it happened", extra=[1]).document("id-1")
    assert document == {
        "type": "urn:equipoise:problem:example",
        "title": "An example",
        "status": 418,
        "detail": "it happened",
        "instance": "urn:request:id-1",
        "extra": [1],
    }
