"""Every object against the schema of its kind: Kubernetes' own, and of custom resources what a package carries."""

import copy
from typing import Any

import kubernetes_validate
import pytest

from tests.deploy.manifests import OVERLAYS, Object, load, of_kind, pods

VERSION = "1.35"
"""The oldest Kubernetes with image volumes on by default; everything else here is older."""
CUSTOM = ("serving.kserve.io", "monitoring.coreos.com")


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


def test_the_containers_of_the_kserve_runtime_are_valid() -> None:
    """No package here carries KServe's schemas: its containers are those of a pod, and are checked as such."""
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
