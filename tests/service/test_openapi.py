"""The OpenAPI document over the live service: made-up requests by schemathesis, and the examples as they are pasted."""

import base64
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import requests
import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.transport.serialization import Binary

from service.deadlines import TIMEOUT_HEADER
from service.queries import CHOICES, Options, read_options
from service.settings import Settings
from tests.server import part_of_store, running_server
from tests.service import tiny, tiny_pose


def no_failure(context: object, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """No 5xx, but for a deadline that the request itself set."""
    assert response.status_code < 500 or (response.status_code == 504 and TIMEOUT_HEADER in case.headers)


CHECKS = [
    no_failure,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
STORE = Path(__file__).parents[2] / "model_store"
_PNG = base64.b64encode(tiny.png()).decode()
BODIES: dict[str, Any] = {
    "/recombine": {"content": {"data": _PNG}, "style": {"data": _PNG}},
    "/v2/models/{model}/infer": {
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [_PNG]}],
    },
}
PATHS = {"model": ["tiny", "tiny.embed", "tiny.recombine", "tiny.transform"], "version": ["1", "2"]}


def meaningful(case: schemathesis.Case, turn: int) -> None:
    """Made-up names reach no model and made-up bytes are no picture: of two requests, one has good ones."""
    if turn % 2 == 0:
        for name, good in PATHS.items():
            if name in case.path_parameters:
                case.path_parameters[name] = good[turn // 2 % len(good)]
        for name in ("model", "version"):
            case.query.pop(name, None)
        if isinstance(case.body, Binary):
            case.body = Binary(tiny.png(turn))
        elif case.media_type == "application/json":
            case.body = BODIES.get(case.path, case.body)


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """One for all requests: to make one takes longer than most answers."""
    with requests.Session() as opened:
        opened.trust_env = False
        yield opened


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_answer_is_undocumented(able_url: str, session: requests.Session, mode: str) -> None:
    schema = schemathesis.openapi.from_url(f"{able_url}/openapi.json")
    seen: Counter[int] = Counter()
    answered: set[str] = set()
    turns = itertools.count()
    for result in schema.get_all_operations():
        operation = result.ok()
        has_input = bool(operation.body or list(operation.iter_parameters()))
        if mode == "negative" and (operation.method == "get" or not has_input):
            continue  # any string is a good path parameter

        @hypothesis.seed(20)
        @hypothesis.settings(
            max_examples={"positive": 14, "negative": 7}[mode] if has_input else 1,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def probe(case: schemathesis.Case) -> None:
            meaningful(case, next(turns))
            status = case.call_and_validate(checks=CHECKS, timeout=10, session=session).status_code
            seen[status] += 1
            if status == 200:
                answered.add(case.path)

        probe()
    for status in (200, 400, 404, 422) if mode == "positive" else (400, 422):
        assert seen[status] >= 3, seen
    if mode == "positive":
        assert {"/classify", "/embed", "/transform", "/canonicalize", "/augment", *BODIES} <= answered


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The shipped models that the examples name, and a small one for poses."""
    store = part_of_store(STORE, ["equivae-digits", "equivae-mnist"], tmp_path_factory.mktemp("shipped"))
    tiny_pose.write(store, augment=True)
    with (
        running_server(Settings(model_store=store)) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=20) as client,
    ):
        yield client


def test_every_example_works_when_pasted(shipped: httpx.Client) -> None:
    pasted = []
    for path, methods in shipped.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            names = {
                item["name"]: item.get("example") for item in operation.get("parameters", ()) if item["in"] == "path"
            }
            if "admin key" in operation.get("description", ""):
                continue
            content: dict[str, Any] = operation.get("requestBody", {}).get("content", {})
            assert method == "get" or "example" in content["application/json"], path
            for body in [content["application/json"]["example"]] if content else [None]:
                response = shipped.request(method, path.format(**names), json=body)
                assert response.status_code == 200, (path, response.text)
                assert "problem" not in response.text[:200]
                pasted.append(path)
    assert {"/classify", "/canonicalize", "/recombine", "/v2/models/{model}/infer", "/v2/repository/index"} <= set(
        pasted
    )


def test_the_first_word_of_a_choice_is_its_default() -> None:
    asked = "&".join(f"{name}={words[0]}" for name, words in CHOICES.items())
    assert read_options(asked.encode(), "canonicalize") == Options()
