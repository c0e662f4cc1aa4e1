"""The rendered Kubernetes objects, and what a rule needs to find in them."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.stem for path in (K8S / "rendered").glob("*.yaml"))

Object = dict[str, Any]

DOCKERFILE = (K8S.parent / "docker" / "Dockerfile").read_text()
# What the images of servers set of the service's variables, a line each.
IMAGE_ENVIRONMENT = dict(re.findall(r"^ +(EQUIPOISE_(?!DEVICE)\w+)=(\S+)", DOCKERFILE, re.MULTILINE))


@dataclass(frozen=True)
class Pod:
    """A pod specification and the object that it stands in."""

    owner: Object
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.owner['kind']}/{self.owner['metadata']['name']}"

    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def servers(self) -> list[dict[str, Any]]:
        """The containers that run the service."""
        return [container for container in self.spec["containers"] if container.get("ports")]


def load(overlay: str) -> list[Object]:
    """The caller's own, to be changed; read once, which takes a tenth of a second."""
    return copy.deepcopy(_read(overlay))


@cache
def _read(overlay: str) -> list[Object]:
    return list(yaml.safe_load_all((K8S / "rendered" / f"{overlay}.yaml").read_text()))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [item for item in objects if item["kind"] in kinds]


def pods(objects: list[Object]) -> Iterator[Pod]:
    for item in objects:
        if item["kind"] in ("Deployment", "Job"):
            template = item["spec"]["template"]
            yield Pod(item, template["metadata"]["labels"], template["spec"])
        elif item["kind"] == "Pod":
            yield Pod(item, item["metadata"]["labels"], item["spec"])
        elif item["kind"] == "ServingRuntime":
            # KServe puts the predictor's pod fields and the runtime's containers together
            services = of_kind(objects, "InferenceService")
            service = next(one for one in services if _runtime(one) == item["metadata"]["name"])
            # InferenceServicePodLabelKey of KServe's pkg/constants/constants.go
            labels = {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}
            yield Pod(item, labels, {**service["spec"]["predictor"], **item["spec"]})


def _runtime(service: Object) -> str:
    return str(service["spec"]["predictor"]["model"]["runtime"])


def claims(objects: list[Object], pod: Pod) -> Iterator[str]:
    """The names of the volume claims that a pod has mounted, by itself or by KServe."""
    for volume in pod.spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield volume["persistentVolumeClaim"]["claimName"]
    if uri := pod.spec.get("model", {}).get("storageUri", ""):
        if uri.startswith("pvc://"):
            yield uri.removeprefix("pvc://").partition("/")[0]


def environment(objects: list[Object], container: dict[str, Any]) -> dict[str, str]:
    """What a container's process finds in its environment, from the manifests alone."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        wanted = source["configMapRef"]["name"]
        for config in of_kind(objects, "ConfigMap"):
            if config["metadata"]["name"] == wanted:
                found |= config["data"]
    return found | {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def runs_the_image(container: dict[str, Any]) -> bool:
    """One of a server, whose environment lies below the container's own."""
    image = str(container["image"]).rpartition("/")[2]
    return image.startswith("equipoise:") and not image.endswith("-training")


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def quantity(text: str | int) -> float:
    """`500m`, `2Gi`, `4` as a number."""
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1e3, "M": 1e6, "G": 1e9}
    value = str(text)
    for suffix, factor in units.items():
        if value.endswith(suffix):
            return float(value.removesuffix(suffix)) * factor
    return float(value)
