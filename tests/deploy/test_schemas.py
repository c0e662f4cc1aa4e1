"""Every object against the schema of its kind: Kubernetes' own, and of custom resources what a package carries."""

import copy
import importlib
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest.mock import patch

import jsonschema
import kubernetes_validate
import pydantic
import pytest
import yaml
from kubernetes_validate import utils

from tests.deploy.kserve import SCHEMA
from tests.deploy.manifests import K8S, OVERLAYS, Object, load, of_kind, pods

VERSION = "1.35"
"""The oldest Kubernetes with image volumes on by default; everything else here is older."""
CUSTOM = ("serving.kserve.io", "monitoring.coreos.com")


@pytest.fixture(scope="module", autouse=True)
def schemas_read_once() -> Iterator[None]:
    """Not for every object: one file of a megabyte and more has all definitions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", cache(utils.schema_contents))
        yield


def objects_of(overlay: str) -> list[Object]:
    return [item for item in load(overlay) if not item["apiVersion"].startswith(CUSTOM)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str) -> None:
    for item in objects_of(overlay):
        kubernetes_validate.validate(item, VERSION, strict=True)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ["spec", "strategie"], {}),
        ("Deployment", ["spec", "template", "spec", "containers"], "equipoise"),
        ("Service", ["spec", "ports"], [{"port": "eighty"}]),
        ("Ingress", ["spec", "rules"], [{"http": {}}]),
    ],
)
def test_a_wrong_object_is_refused(kind: str, path: list[str], value: Any) -> None:
    item = copy.deepcopy(of_kind(load("cpu"), kind)[0])
    place = item
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, VERSION, strict=True)


KSERVE = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}


@cache
def kserve_validator(kind: str) -> jsonschema.protocols.Validator:
    schema = json.loads(SCHEMA.read_text()) | {"$ref": f"#/$defs/{KSERVE[kind]}"}
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return validator(schema)


def validate_kserve(item: Object) -> None:
    kserve_validator(item["kind"]).validate(item)


@pytest.mark.parametrize("kind", KSERVE)
def test_the_objects_of_kserve_are_valid(kind: str) -> None:
    (item,) = of_kind(load("kserve"), kind)
    validate_kserve(item)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("InferenceService", ["spec", "predictor", "minReplica"], 2),
        ("InferenceService", ["spec", "predictor", "model", "storageURI"], "pvc://models"),
        ("InferenceService", ["spec", "predictor", "minReplicas"], "two"),
        ("ServingRuntime", ["spec", "supportedModelFormats"], ["equipoise"]),
    ],
)
def test_a_wrong_object_of_kserve_is_refused(kind: str, path: list[str], value: Any) -> None:
    (item,) = of_kind(load("kserve"), kind)
    place = item
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate_kserve(item)


def test_the_containers_of_the_kserve_runtime_are_valid() -> None:
    """KServe's schema leaves them open: they are those of a pod, and are checked as such."""
    (pod,) = pods(load("kserve"))
    made = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "runtime"},
        "spec": {
            "containers": pod.spec["containers"],
            "terminationGracePeriodSeconds": pod.spec["terminationGracePeriodSeconds"],
        },
    }
    kubernetes_validate.validate(made, VERSION, strict=True)


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor", "PrometheusRule"])
def test_the_prometheus_operator_understands_all_of_its_objects(kind: str) -> None:
    """Its models drop what they do not know: what comes back is what was written."""
    (item,) = of_kind(load("observability"), kind)
    assert understood("prometheus_operator.v1", item) == item


@pytest.mark.parametrize("place", [("spec",), ("spec", "endpoints", 0)])
def test_a_misspelt_field_of_the_operator_is_found_out(place: tuple[str | int, ...]) -> None:
    (item,) = of_kind(load("observability"), "ServiceMonitor")
    there: Any = item
    for step in place:
        there = there[step]
    there["intervall"] = "15s"
    assert understood("prometheus_operator.v1", item) != item


def test_keda_understands_the_autoscaler_of_the_page() -> None:
    page = (K8S.parent / "docs" / "deploy.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    item = yaml.safe_load(block)
    assert understood("keda.v1alpha1", item) == item
    item["spec"]["triggers"][0]["metadat"] = {}
    assert understood("keda.v1alpha1", item) != item


def understood(module: str, item: Object) -> Object:
    # A thousand classes are made when it is imported: only the process that runs these tests shall wait for it, and for
    # the validators of those alone that are asked.
    with patch.dict(pydantic.BaseModel.model_config, defer_build=True):
        kind = getattr(importlib.import_module(f"cloudcoil.models.{module}"), item["kind"])
    read: Object = kind.model_validate(item).model_dump(by_alias=True, exclude_unset=True, mode="json")
    return read
