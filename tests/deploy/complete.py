"""What has to be there at all, and what has to fit between objects: rules beside those of rules.py, which judge what is
written.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from service.settings import ENV_PREFIX
from tests.deploy.manifests import Object, Pod, environment, load, of_kind, pods, quantity
from tests.deploy.rules import Service, rule, settings_of

BESIDE_A_DEPLOYMENT = (
    "Namespace", "ServiceAccount", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Ingress",
)  # fmt: skip
BESIDE_KSERVE = ("Namespace", "PodDisruptionBudget")
SPREAD = {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
GPU = "nvidia.com/"
OF_KSERVE = "/mnt/models"  # where KServe mounts what storageUri names


def _mounts(pod: Pod, container: dict[str, Any]) -> dict[str, Object]:
    """Path -> volume."""
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in container.get("volumeMounts", [])}


@rule
def what_settings_name_is_mounted(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers():
            if f"{ENV_PREFIX}MODEL_STORE" not in environment(objects, container):
                continue
            settings, mounts = settings_of(objects, container), _mounts(pod, container)
            store = str(settings.model_store)
            if "model" in pod.spec and store != OF_KSERVE:
                yield f"{pod.name}/{container['name']}: looks for models in {store}, KServe mounts them on {OF_KSERVE}"
            delivered = "models" in {volume["name"] for volume in pod.spec.get("volumes", [])}
            if delivered and mounts.get(store, {}).get("name") != "models":
                yield f"{pod.name}/{container['name']}: looks for models in {store}, where they are not mounted"
            if "emptyDir" not in mounts.get("/tmp", {}):
                yield f"{pod.name}/{container['name']}: no place for files that come and go"
        for container in pod.servers():
            if keys := settings_of(objects, container).api_keys:
                secret = _mounts(pod, container).get(str(keys.parent), {}).get("secret", {})
                # docs/deploy.md makes the Secret with this one entry
                if (secret.get("secretName"), keys.name) != ("equipoise-api-keys", "keys"):
                    yield f"{pod.name}: no keys in {keys}"


@rule
def failures_are_in_the_log(objects: list[Object], service: Service) -> Iterator[str]:
    """EquipoiseFailing and docs/oncall.md send people there, for an answer's request id."""
    for pod in pods(objects):
        for container in pod.servers():
            if not settings_of(objects, container).access_log_every:
                yield f"{pod.name}: only exceptions are logged, no 503 and no 504"


@rule
def volumes_are_of_the_user(objects: list[Object], service: Service) -> Iterator[str]:
    """A Secret that not everybody reads, and a new claim, are of the group fsGroup."""
    for pod in pods(objects):
        for volume in pod.spec.get("volumes", []):
            hidden = "secret" in volume and not volume["secret"].get("defaultMode", 0o644) & 0o004
            written = "persistentVolumeClaim" in volume and not volume["persistentVolumeClaim"].get("readOnly")
            if (hidden or written) and "fsGroup" not in pod.spec["securityContext"]:
                yield f"{pod.name}: the user may not use {volume['name']}"


@rule
def an_image_of_models_fits_both_ways(objects: list[Object], service: Service) -> Iterator[str]:
    """The same image can be mounted and copied from: the folders of models are in its /models."""
    for pod in pods(objects):
        for container in pod.containers():
            if "-models@" in container["image"] and container["command"][:3] != ["cp", "-r", "/models/."]:
                yield f"{pod.name}/{container['name']}: {container['command']}"
            mounted = {volume["name"] for volume in pod.spec.get("volumes", []) if "image" in volume}
            for mount in container.get("volumeMounts", []):
                if mount["name"] in mounted and mount.get("subPath") != "models":
                    yield f"{pod.name}/{container['name']}: mounts {mount.get('subPath', 'the root')} of the image"


@rule
def delivered_models_are_checked(objects: list[Object], service: Service) -> Iterator[str]:
    """What comes from another image is verified before the service starts; a claim's models are as they are loaded."""
    for pod in pods(objects):
        models = [volume for volume in pod.spec.get("volumes", []) if volume["name"] == "models"]
        if any("image" in volume or "emptyDir" in volume for volume in models):
            before = pod.spec.get("initContainers", [])
            if not before or before[-1].get("args", [""])[0] != "check":
                yield f"{pod.name}: serves models that nobody has verified"


@rule
def a_job_survives_eviction(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        if pod.owner["kind"] != "Job":
            continue
        if pod.spec["restartPolicy"] != "Never":
            yield f"{pod.name}: {pod.spec['restartPolicy']} leaves no failed pod for podFailurePolicy to judge"
        ignored = [each for each in pod.owner["spec"]["podFailurePolicy"]["rules"] if each["action"] == "Ignore"]
        if not any(
            condition == {"type": "DisruptionTarget", "status": "True"}
            for each in ignored
            for condition in each.get("onPodConditions", [])
        ):
            yield f"{pod.name}: an eviction counts as a failure"
        trainings = [each for each in pod.containers() if "train" in each["args"] and "--check" not in each["args"]]
        if not trainings or not all("--resume" in each["args"] for each in trainings):
            yield f"{pod.name}: begins anew"
        for container in pod.containers():
            claimed = [path for path, volume in _mounts(pod, container).items() if "persistentVolumeClaim" in volume]
            for path in _paths(objects, container):
                if not any(PurePosixPath(path).is_relative_to(there) for there in [*claimed, "/configs"]):
                    yield f"{pod.name}/{container['name']}: {path} is lost with the pod"


@rule
def a_job_is_of_one_run(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        if pod.owner["kind"] == "Job":
            paths = {path for container in pod.containers() for path in _paths(objects, container)}
            configurations = {path for path in paths if path.endswith(".yaml")}
            runs = {path for path in paths - configurations if re.match("/runs/(?!data)", path)}
            if len(configurations) != 1 or len(runs) != 1:
                yield f"{pod.name}: {configurations}, {runs}"


def _paths(objects: list[Object], container: dict[str, Any]) -> list[str]:
    words = [*container["args"], *environment(objects, container).values()]
    return [word for word in words if word.startswith("/")]


@rule
def kserve_serves_what_the_job_trains(objects: list[Object], service: Service) -> Iterator[str]:
    """It has the model's name, and on a new claim there is no other model."""
    jobs = load("training-cpu")
    trained = {PurePosixPath(path).stem for pod in pods(jobs) for path in _paths(jobs, pod.containers()[0])}
    for inference in of_kind(objects, "InferenceService"):
        if inference["metadata"]["name"] not in trained:
            yield f"InferenceService/{inference['metadata']['name']}: trained is {trained}"


@rule
def a_process_for_every_gpu(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers() if pod.owner["kind"] == "Job" else []:
            if "train" in container["args"] and "--check" not in container["args"]:
                gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", 1))
                started = re.search(r"--nproc-per-node=(\d+)", " ".join(container.get("command", [])))
                set_ = environment(objects, container).get("EQUIPOISE_TRAINING_SET", "")
                joined = re.search(r"fit\.devices=(\d+)", set_)
                numbers = [gpus, *(int(found[1]) if found else 1 for found in (started, joined))]
                if len({*numbers}) != 1:
                    yield f"{pod.name}: GPUs, processes and devices are {numbers}"


@rule
def gpu_nodes_are_found(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        if any(name.startswith(GPU) for each in pod.containers() for name in each["resources"]["limits"]):
            # a taint has any value, which only Exists tolerates
            tolerated = {(each.get("key"), each.get("operator")) for each in pod.spec.get("tolerations", [])}
            if ("nvidia.com/gpu", "Exists") not in tolerated:
                yield f"{pod.name}: the taint of GPU nodes keeps it away"
            if pod.owner["kind"] == "Deployment" and not any(
                each.get("values") for term in _node_terms(pod) for each in term.get("matchExpressions", [])
            ):
                yield f"{pod.name}: no kind of node is chosen"


def _node_terms(pod: Pod) -> list[dict[str, Any]]:
    affinity = pod.spec.get("affinity", {}).get("nodeAffinity", {})
    terms: list[dict[str, Any]] = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get(
        "nodeSelectorTerms", []
    )
    return terms


@rule
def kserve_finds_the_runtime(objects: list[Object], service: Service) -> Iterator[str]:
    """It compares what the model is said to be with what the runtime takes, and knows the container by its name."""
    for runtime in of_kind(objects, "ServingRuntime"):
        takes = [(each.get("name"), each.get("version")) for each in runtime["spec"].get("supportedModelFormats", [])]
        if [each["name"] for each in runtime["spec"]["containers"]] != ["kserve-container"]:
            yield f"{runtime['metadata']['name']}: no kserve-container"
        if not all(each.get("ports") for each in runtime["spec"]["containers"]):
            yield f"{runtime['metadata']['name']}: no port to send requests to"
        for inference in of_kind(objects, "InferenceService"):
            model = inference["spec"]["predictor"]["model"]
            if (model["modelFormat"]["name"], model["modelFormat"].get("version")) not in takes:
                yield f"{inference['metadata']['name']}: a model of {model['modelFormat']}, taken are {takes}"
            if model.get("protocolVersion") not in runtime["spec"].get("protocolVersions", []):
                yield f"{inference['metadata']['name']}: protocol {model.get('protocolVersion')}"
            if not model.get("storageUri"):
                yield f"{inference['metadata']['name']}: no models"
            mode = inference["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode")
            if mode != "Standard":  # Knative has no preStop, no autoscaler of this kind and other labels
                yield f"{inference['metadata']['name']}: deployed as {mode}"


@rule
def what_belongs_to_a_deployment_is_there(objects: list[Object], service: Service) -> Iterator[str]:
    present = {item["kind"] for item in objects}
    for pod in pods(objects):
        if pod.owner["kind"] == "Deployment":
            yield from (f"{pod.name}: no {kind}" for kind in BESIDE_A_DEPLOYMENT if kind not in present)
            keys = {each["topologyKey"] for each in pod.spec.get("topologySpreadConstraints", [])}
            if missing := SPREAD - keys:
                yield f"{pod.name}: not spread over {missing}"
    for ingress in of_kind(objects, "Ingress"):
        hosts = {each["host"] for each in ingress["spec"]["rules"]}
        if hosts != {host for each in ingress["spec"].get("tls", []) for host in each["hosts"]}:
            yield f"Ingress: {hosts} without TLS"
    if "InferenceService" in present:
        yield from (f"InferenceService: no {kind}" for kind in BESIDE_KSERVE if kind not in present)


@rule
def pods_are_added_before_they_refuse(objects: list[Object], service: Service) -> Iterator[str]:
    """A slow pod refuses what would be beyond two batches (`Budget`), so it never holds more; its autoscaler does
    nothing within a tenth of the target.
    """
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        metrics = [each["pods"] for each in scaler["spec"]["metrics"] if each["type"] == "Pods"]
        targets = [quantity(each["target"]["averageValue"]) for each in metrics]
        for pod in pods(objects):
            for container in pod.servers():
                held = 2 * settings_of(objects, container).max_batch
                if not targets or max(targets) * 1.1 >= held:
                    yield f"{pod.name}: refuses from {held} pictures on, the autoscaler's target is {targets}"
