"""What we hold our own Kubernetes objects to, beside their schemas. A rule takes the objects of one overlay and the
running service, and gives its complaints; none means that the rule holds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.memory import memory_needed
from service.settings import ENV_PREFIX, TRAINING_PREFIX, Settings, SettingsError, load_settings
from tests.deploy.manifests import (
    IMAGE_ENVIRONMENT,
    Object,
    claims,
    environment,
    load,
    of_kind,
    pods,
    quantity,
    runs_the_image,
    selects,
)

MADE_BY_HAND = {"equipoise-tls", "equipoise-api-keys"}  # secrets: docs/deploy.md creates them, no file holds them
CONTROLLER = "ingress-nginx-controller"  # its ConfigMap, as the manifest and the chart of ingress-nginx name it


@dataclass(frozen=True)
class Service:
    """The running service, as far as a rule asks it. status_without_model: of one that waits for its first model;
    status_while_loading: of one whose models are being loaded.
    """

    status: Callable[[str], int]
    status_without_model: Callable[[str], int]
    status_while_loading: Callable[[str], int]
    metrics: frozenset[str]
    training_variables: frozenset[str]


Rule = Callable[[list[Object], Service], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(check: Rule) -> Rule:
    RULES[check.__name__] = check
    return check


def settings_of(objects: list[Object], container: dict[str, Any]) -> Settings:
    given = (IMAGE_ENVIRONMENT if runs_the_image(container) else {}) | environment(objects, container)
    fields = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in given.items()
        if name.startswith(ENV_PREFIX) and not name.startswith(TRAINING_PREFIX)
    }
    return load_settings(fields)


def listened_on(settings: Settings) -> set[int]:
    return {settings.port} | ({settings.probe_port} if settings.probe_port else set())


def _probes(container: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if kind in container:
            yield kind, container[kind]


@rule
def probes_are_answered(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.servers():
            ports = {port.get("name"): port["containerPort"] for port in container["ports"]}
            listening = listened_on(settings_of(objects, container))
            for kind, probe in _probes(container):
                asked = probe["httpGet"]
                if ports.get(asked["port"], asked["port"]) not in listening:
                    yield f"{pod.name}: {kind} asks port {asked['port']}, the service listens on {listening}"
                if service.status(asked["path"]) != 200:
                    yield f"{pod.name}: {kind} asks {asked['path']}, which answers {service.status(asked['path'])}"


@rule
def probes_are_answered_whatever_the_load(objects: list[Object], service: Service) -> Iterator[str]:
    """At its limit on connections the service refuses all on the port of requests, a probe's too."""
    for pod in pods(objects):
        for container in pod.servers():
            ports = {port.get("name"): port["containerPort"] for port in container["ports"]}
            for kind, probe in _probes(container):
                asked = probe["httpGet"]["port"]
                if ports.get(asked, asked) != settings_of(objects, container).probe_port:
                    yield f"{pod.name}: {kind} asks the port of requests"


GOOD = {"startupProbe": (False, True), "readinessProbe": (False, False), "livenessProbe": (True, True)}
"""Whether a probe is content with a pod that is loading its models, and with one that has found none: the first is
waited for, the second is mended by no restart.
"""


@rule
def probes_mean_different_things(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.servers():
            probes = dict(_probes(container))
            if len(probes) != 3:
                yield f"{pod.name}: has only {sorted(probes)}"
                continue
            for kind, (loading, without_model) in GOOD.items():
                path = probes[kind]["httpGet"]["path"]
                if (service.status_while_loading(path) == 200) != loading:
                    yield f"{pod.name}: {kind} gets {service.status_while_loading(path)} while models are loaded"
                if (service.status_without_model(path) == 200) != without_model:
                    yield f"{pod.name}: {kind} gets {service.status_without_model(path)} where there is no model"
            patience = {kind: probe["periodSeconds"] * probe["failureThreshold"] for kind, probe in probes.items()}
            if patience["startupProbe"] < 300:
                yield f"{pod.name}: only {patience['startupProbe']} s to load its models"
            if patience["livenessProbe"] < 30 or patience["readinessProbe"] >= patience["livenessProbe"]:
                yield f"{pod.name}: seconds of patience: {patience}"


@rule
def container_ports_are_listened_on(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.servers():
            declared = {port["containerPort"] for port in container["ports"]}
            listening = listened_on(settings_of(objects, container))
            if declared != listening:
                yield f"{pod.name}: declares {declared}, the service listens on {listening}"


@rule
def environment_names_are_settings(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers():
            for name in environment(objects, container):
                if name == "NVIDIA_VISIBLE_DEVICES":
                    continue
                if name.startswith(TRAINING_PREFIX):
                    known = name in service.training_variables
                else:
                    known = (
                        name.startswith(ENV_PREFIX) and name.removeprefix(ENV_PREFIX).lower() in Settings.model_fields
                    )
                if not known:
                    yield f"{pod.name}: {name} is no setting"


@rule
def settings_can_be_used(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers():
            try:
                settings_of(objects, container)
            except SettingsError as error:
                yield f"{pod.name}: {error}"


@rule
def names_refer_to_objects(objects: list[Object], service: Service) -> Iterator[str]:
    present = {(item["kind"], item["metadata"]["name"]) for item in objects}
    if of_kind(objects, "Job"):  # it writes to the claim of the service that takes its models up
        present |= {(item["kind"], item["metadata"]["name"]) for item in load("cpu-pvc")}
    for owner, kind, name in _references(objects):
        if (kind, name) not in present and not (kind == "Secret" and name in MADE_BY_HAND):
            yield f"{owner}: no {kind} {name}"


def _references(objects: list[Object]) -> Iterator[tuple[str, str, str]]:
    for pod in pods(objects):
        if account := pod.spec.get("serviceAccountName"):
            yield pod.name, "ServiceAccount", account
        for container in pod.containers():
            for source in container.get("envFrom", []):
                yield pod.name, "ConfigMap", source["configMapRef"]["name"]
        for claim in claims(objects, pod):
            yield pod.name, "PersistentVolumeClaim", claim
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume:
                yield pod.name, "Secret", volume["secret"]["secretName"]
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        yield "HorizontalPodAutoscaler", target["kind"], target["name"]
    for ingress in of_kind(objects, "Ingress"):
        for each in ingress["spec"]["rules"]:
            for path in each["http"]["paths"]:
                yield "Ingress", "Service", path["backend"]["service"]["name"]
        for secret in ingress["spec"].get("tls", []):
            yield "Ingress", "Secret", secret["secretName"]
    for inference in of_kind(objects, "InferenceService"):
        yield "InferenceService", "ServingRuntime", inference["spec"]["predictor"]["model"]["runtime"]


@rule
def everything_is_in_the_namespace(objects: list[Object], service: Service) -> Iterator[str]:
    """Left out it would be the one that kubectl happens to be set to."""
    for item in objects:
        wanted = "ingress-nginx" if item["metadata"]["name"] == CONTROLLER else "equipoise"
        if item["kind"] != "Namespace" and item["metadata"].get("namespace") != wanted:
            yield f"{item['kind']}/{item['metadata']['name']}: namespace {item['metadata'].get('namespace')}"


@rule
def an_empty_claim_is_waited_for(objects: list[Object], service: Service) -> Iterator[str]:
    """A claim that is made beside its readers has no model yet, and several nodes mount it."""
    modes = {
        item["metadata"]["name"]: item["spec"]["accessModes"] for item in of_kind(objects, "PersistentVolumeClaim")
    }
    for pod in pods(objects):
        for container in pod.servers():
            for claim in claims(objects, pod):
                if not settings_of(objects, container).wait_for_models:
                    yield f"{pod.name}: ends at once on {claim} while it is empty"
                if "ReadWriteMany" not in modes.get(claim, []):
                    yield f"{pod.name}: {claim} can be mounted on one node only"


@rule
def cuda_is_asked_for_with_a_gpu(objects: list[Object], service: Service) -> Iterator[str]:
    """The gpu image sets EQUIPOISE_DEVICE=cuda, and it and training's NVIDIA_VISIBLE_DEVICES=all; a container of them
    without a GPU has to say otherwise, and one with a GPU leaves the variable to the device plugin.
    """
    for pod in pods(objects):
        for container in pod.containers():
            has_gpu = any(name.startswith("nvidia.com/") for name in container["resources"]["limits"])
            says_cpu = container.get("args", [])[-2:] == ["--device", "cpu"]
            if container["image"].endswith("-gpu") and not has_gpu and not says_cpu:
                yield f"{pod.name}/{container['name']}: CUDA without a GPU"
            seen = environment(objects, container).get("NVIDIA_VISIBLE_DEVICES")
            if container["image"].endswith(("-gpu", "-training")) and seen != (None if has_gpu else "void"):
                yield f"{pod.name}/{container['name']}: NVIDIA_VISIBLE_DEVICES is {seen}"


@rule
def a_wrong_configuration_fails_the_job(objects: list[Object], service: Service) -> Iterator[str]:
    """`training` ends with 2 for it; torchrun with 1 for everything, so `train --check` runs before it."""
    for job in of_kind(objects, "Job"):
        failing = [each for each in job["spec"]["podFailurePolicy"]["rules"] if each["action"] == "FailJob"]
        codes = [each["onExitCodes"] for each in failing]
        if not any("containerName" not in each and 2 in each["values"] for each in codes):
            yield "a wrong configuration is tried again"
        first = job["spec"]["template"]["spec"]["initContainers"][0]
        if "torchrun" in str(first.get("command")):
            yield "torchrun hides that the configuration is wrong"


@rule
def labels_match(objects: list[Object], service: Service) -> Iterator[str]:
    running = [pod for pod in pods(objects) if pod.labels]
    for owner, selector in _selectors(objects):
        if not selector:
            yield f"{owner}: selects by nothing"
        if not any(selects(selector, pod.labels) for pod in running):
            yield f"{owner}: selects no pod with {selector}"
    for pod in running:
        for spread in pod.spec.get("topologySpreadConstraints", []):
            if not selects(spread["labelSelector"]["matchLabels"], pod.labels):
                yield f"{pod.name}: spreads by labels that it has not"
    for deployment in of_kind(objects, "Deployment"):
        if not selects(
            deployment["spec"]["selector"]["matchLabels"], deployment["spec"]["template"]["metadata"]["labels"]
        ):
            yield f"Deployment/{deployment['metadata']['name']}: does not select its own pods"


def _selectors(objects: list[Object]) -> Iterator[tuple[str, dict[str, str]]]:
    for item in of_kind(objects, "Service"):
        yield f"Service/{item['metadata']['name']}", item["spec"]["selector"]
    for item in of_kind(objects, "PodDisruptionBudget"):
        yield f"PodDisruptionBudget/{item['metadata']['name']}", item["spec"]["selector"]["matchLabels"]
    for item in of_kind(objects, "NetworkPolicy"):
        if "ingress" in item["spec"] or "egress" in item["spec"]:  # one that allows nothing may be for every pod
            yield f"NetworkPolicy/{item['metadata']['name']}", item["spec"]["podSelector"].get("matchLabels", {})


@rule
def service_ports_exist(objects: list[Object], service: Service) -> Iterator[str]:
    services = {item["metadata"]["name"]: item for item in of_kind(objects, "Service")}
    for name, item in services.items():
        for pod in pods(objects):
            if pod.labels and selects(item["spec"]["selector"], pod.labels):
                names = {port["name"] for container in pod.servers() for port in container["ports"]}
                for port in item["spec"]["ports"]:
                    if port["targetPort"] not in names:
                        yield f"Service/{name}: {pod.name} has no port {port['targetPort']}"
    for ingress in of_kind(objects, "Ingress"):
        for each in ingress["spec"]["rules"]:
            for path in each["http"]["paths"]:
                backend = path["backend"]["service"]
                known = {
                    port["name"] for port in services.get(backend["name"], {"spec": {"ports": []}})["spec"]["ports"]
                }
                if backend["port"]["name"] not in known:
                    yield f"Ingress: Service/{backend['name']} has no port {backend['port']['name']}"


@rule
def grace_covers_the_drain(objects: list[Object], service: Service) -> Iterator[str]:
    """preStop, the drain, and a request that was accepted last, all before the kubelet kills."""
    for pod in pods(objects):
        for container in pod.servers():
            settings = settings_of(objects, container)
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            grace = pod.spec.get("terminationGracePeriodSeconds", 30)
            if sleep + settings.drain_seconds < 10:
                yield f"{pod.name}: answers for {sleep + settings.drain_seconds} s after its end was decided"
            if grace < sleep + settings.drain_seconds + settings.request_timeout_seconds + 5:
                yield f"{pod.name}: killed after {grace} s; preStop {sleep} s, drain {settings.drain_seconds} s"


@rule
def rollouts_lose_nothing(objects: list[Object], service: Service) -> Iterator[str]:
    for deployment in of_kind(objects, "Deployment"):
        rolling = deployment["spec"]["strategy"]["rollingUpdate"]
        if rolling["maxSurge"] + rolling["maxUnavailable"] < 1 or rolling["maxUnavailable"] > 1:
            yield f"rolling update with {rolling}"
        if "replicas" in deployment["spec"]:
            yield "replicas would be set back at every apply: the autoscaler sets them"
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        surge = [item["spec"]["strategy"]["rollingUpdate"]["maxSurge"] for item in of_kind(objects, "Deployment")]
        if surge == [0] and scaler["spec"]["minReplicas"] < 2:
            yield "one replica without surge: away during every rollout"
    for budget in of_kind(objects, "PodDisruptionBudget"):
        if budget["spec"].get("maxUnavailable") != 1:
            yield "the disruption budget is not one pod at a time"


@rule
def images_are_pinned(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        images = [container["image"] for container in pod.containers()]
        images += [volume["image"]["reference"] for volume in pod.spec.get("volumes", []) if "image" in volume]
        for image in images:
            tag = image.rpartition("/")[2].partition(":")[2]
            if "/" not in image or not tag or tag == "latest":
                yield f"{pod.name}: {image}"


@rule
def resources_are_bounded(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers():
            resources = container.get("resources", {})
            for kind in ("requests", "limits"):
                for resource in ("cpu", "memory"):
                    if resource not in resources.get(kind, {}):
                        yield f"{pod.name}/{container['name']}: no {resource} in {kind}"
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.name}: emptyDir {volume['name']} may fill the node"


@rule
def memory_holds_the_queue(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.servers():
            limit = quantity(container.get("resources", {}).get("limits", {}).get("memory", 0))
            needed = memory_needed(settings_of(objects, container))
            if limit < needed:
                yield f"{pod.name}: {limit / 2**20:.0f} MiB, full queues take {needed / 2**20:.0f} MiB"


@rule
def threads_come_from_the_limit(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.servers():
            if settings_of(objects, container).inference_threads != 0:
                yield f"{pod.name}: a fixed number of threads, whatever the CPU limit is"


def decoders_beside(cpus: float, *, gpu: bool) -> int:
    """Threads for large pictures that a CPU limit has room for beside the event loop, and beside the thread that waits
    for a GPU; where all together want more, the limit stops the event loop too.
    """
    return int(cpus) - 1 - gpu


@rule
def decoders_fit_the_limit(objects: list[Object], service: Service) -> Iterator[str]:
    """Beside a GPU decoding takes the time of large pictures, so there all of the room is used."""
    for pod in pods(objects):
        for container in pod.servers():
            limits = container["resources"]["limits"]
            gpu = any(name.startswith("nvidia.com/") for name in limits)
            room, threads = (
                decoders_beside(quantity(limits["cpu"]), gpu=gpu),
                settings_of(objects, container).decode_threads,
            )
            if threads > room or (gpu and threads < room):
                yield f"{pod.name}: {threads} threads that decode, there is room for {room}"


@rule
def scaling_metrics_exist(objects: list[Object], service: Service) -> Iterator[str]:
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "Pods" and metric["pods"]["metric"]["name"] not in service.metrics:
                yield f"no metric {metric['pods']['metric']['name']}"


@rule
def no_secret_is_in_a_file(objects: list[Object], service: Service) -> Iterator[str]:
    """Secrets are made in the cluster and mounted as whole folders: a key rotated there arrives without a restart."""
    for item in of_kind(objects, "Secret"):
        yield f"Secret/{item['metadata']['name']} in the files"
    for pod in pods(objects):
        secret = {volume["name"] for volume in pod.spec.get("volumes", []) if "secret" in volume}
        for container in pod.containers():
            for mount in container.get("volumeMounts", []):
                if mount["name"] in secret and ("subPath" in mount or not mount.get("readOnly")):
                    yield f"{pod.name}: secret {mount['name']} mounted by subPath, or writable"
            for entry in container.get("env", []):
                if "secretKeyRef" in entry.get("valueFrom", {}):
                    yield f"{pod.name}: secret in {entry['name']}"
