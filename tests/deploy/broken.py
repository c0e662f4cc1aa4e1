"""For every rule at least one way to break it: (rule, overlay, change), made to a copy of good objects."""

from collections.abc import Callable
from typing import Any

from tests.deploy.complete import BESIDE_A_DEPLOYMENT, BESIDE_KSERVE
from tests.deploy.manifests import Object, of_kind

Change = Callable[[list[Object]], None]


def _one(objects: list[Object], kind: str) -> Object:
    return of_kind(objects, kind)[0]


def _pod(objects: list[Object]) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(objects, "Deployment", "Job")[0]["spec"]["template"]["spec"]
    return spec


def _container(objects: list[Object]) -> dict[str, Any]:
    container: dict[str, Any] = _pod(objects)["containers"][0]
    return container


def at(kind: str, path: str, value: object) -> Change:
    """Set what stands at `path` (dots; numbers index lists; `~` for a dot) of the first object of a kind;
    `...` removes it.
    """

    def change(objects: list[Object]) -> None:
        place: Any = {"pod": _pod, "container": _container}.get(kind, lambda items: _one(items, kind))(objects)
        *way, last = [int(step) if step.isdigit() else step.replace("~", ".") for step in path.split(".")]
        for step in way:
            place = place[step] if isinstance(place, list) else place.setdefault(step, {})
        if value is ...:
            del place[last]
        elif isinstance(last, int) and last == len(place):
            place.append(value)
        else:
            place[last] = value

    return change


def remove(kind: str) -> Change:
    def change(objects: list[Object]) -> None:
        objects.remove(_one(objects, kind))

    return change


def remove_all(kind: str) -> Change:
    def change(objects: list[Object]) -> None:
        for thing in of_kind(objects, kind):
            objects.remove(thing)

    return change


def annotation(name: str, value: str) -> Change:
    def change(objects: list[Object]) -> None:
        _one(objects, "Ingress")["metadata"]["annotations"][f"nginx.ingress.kubernetes.io/{name}"] = value

    return change


def of_second_ingress(path: str, value: object) -> Change:
    def change(objects: list[Object]) -> None:
        at("Ingress", path, value)(of_kind(objects, "Ingress")[1:])

    return change


def policy_port(port: str) -> Change:
    def change(objects: list[Object]) -> None:
        for policy in of_kind(objects, "NetworkPolicy"):
            for way in policy["spec"].get("ingress", []):
                way["ports"][0]["port"] = port

    return change


def policy_peer(selector: str, value: Object) -> Change:
    """Of whom is let in last."""

    def change(objects: list[Object]) -> None:
        *_, way = of_kind(objects, "NetworkPolicy")[-1]["spec"]["ingress"]
        way["from"][-1][selector] = value

    return change


def controller_keeps(seconds: object) -> Change:
    return at("ConfigMap", "data.upstream-keepalive-timeout", seconds)


def open_policy(objects: list[Object]) -> None:
    for policy in of_kind(objects, "NetworkPolicy"):
        for way in policy["spec"].get("ingress", []):
            del way["from"]


def policy_of_every_pod(objects: list[Object]) -> None:
    of_kind(objects, "NetworkPolicy")[-1]["spec"]["podSelector"] = {}


def policy_for_prometheus_alone(objects: list[Object]) -> None:
    requests, metrics = of_kind(objects, "NetworkPolicy")[-1]["spec"]["ingress"]
    requests["from"] = metrics["from"]


def without_settings(objects: list[Object]) -> None:
    """What is left is the image's own environment."""
    _one(objects, "ConfigMap")["data"].clear()


def variable(name: str, value: str) -> Change:
    """Of KServe's runtime."""

    def change(objects: list[Object]) -> None:
        (entry,) = [
            one for one in _one(objects, "ServingRuntime")["spec"]["containers"][0]["env"] if one["name"] == name
        ]
        entry["value"] = value

    return change


def add(thing: Object) -> Change:
    return lambda objects: objects.append(thing)


def scaled_at(pictures: str) -> Change:
    return at("HorizontalPodAutoscaler", "spec.metrics.0.pods.target.averageValue", pictures)


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
LOOSE = {"name": "loose", "emptyDir": {}}
HOST = {"name": "host", "hostPath": {"path": "/"}}
KEYS = {"name": "keys", "secret": {"secretName": "equipoise-api-keys"}}
SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"keys": "abc"}}
BY_SUB_PATH = {"name": "keys", "mountPath": "/etc/keys", "subPath": "keys", "readOnly": True}
FROM_SECRET = {"name": "EQUIPOISE_LOG_LEVEL", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "keys"}}}


def mount_by_sub_path(objects: list[Object]) -> None:
    _pod(objects).setdefault("volumes", []).append(KEYS)
    _container(objects)["volumeMounts"].append(BY_SUB_PATH)


BROKEN: list[tuple[str, str, Change]] = [
    ("probes_are_answered", "cpu", at("container", "livenessProbe.httpGet.path", "/alive")),
    ("probes_are_answered", "cpu", at("container", "readinessProbe.httpGet.port", 9000)),
    ("probes_are_answered", "kserve", at("ServingRuntime", "spec.containers.0.readinessProbe.httpGet.port", 8000)),
    ("probes_are_answered_whatever_the_load", "cpu", at("container", "livenessProbe.httpGet.port", "http")),
    (
        "probes_are_answered_whatever_the_load",
        "kserve",
        at("ServingRuntime", "spec.containers.0.livenessProbe.httpGet.port", "http"),
    ),
    ("probes_mean_different_things", "cpu", at("container", "livenessProbe.httpGet.path", "/readyz")),
    ("probes_mean_different_things", "cpu", at("container", "startupProbe", ...)),
    ("probes_mean_different_things", "cpu", at("container", "startupProbe.httpGet.path", "/readyz")),
    ("probes_mean_different_things", "cpu", at("container", "startupProbe.httpGet.path", "/healthz")),
    ("probes_mean_different_things", "cpu", at("container", "readinessProbe.httpGet.path", "/startupz")),
    ("probes_mean_different_things", "cpu", at("container", "livenessProbe.httpGet.path", "/startupz")),
    (
        "probes_mean_different_things",
        "kserve",
        at("ServingRuntime", "spec.containers.0.startupProbe.httpGet.path", "/v2/health/ready"),
    ),
    ("probes_mean_different_things", "cpu", at("container", "livenessProbe.failureThreshold", 1)),
    ("probes_mean_different_things", "cpu", at("container", "startupProbe.failureThreshold", 60)),
    ("container_ports_are_listened_on", "cpu", at("container", "ports.0.containerPort", 8080)),
    ("container_ports_are_listened_on", "kserve", at("ServingRuntime", "spec.containers.0.env.1.value", "8000")),
    ("environment_names_are_settings", "cpu", at("ConfigMap", "data.EQUIPOISE_QUEUE_IMAGE", "10")),
    ("environment_names_are_settings", "training-cpu", at("container", "env.0.name", "EQUIPOISE_TRAINING_DATAS")),
    ("settings_can_be_used", "cpu", at("ConfigMap", "data.EQUIPOISE_QUEUE_BYTES", "1048576")),
    ("settings_can_be_used", "cpu", at("ConfigMap", "data.EQUIPOISE_API_KEYS", ...)),
    ("settings_can_be_used", "gpu", without_settings),
    ("settings_can_be_used", "kserve", variable("EQUIPOISE_ALLOW_ANONYMOUS", "false")),
    ("names_refer_to_objects", "cpu", at("pod", "serviceAccountName", "default-account")),
    ("names_refer_to_objects", "cpu", remove("ConfigMap")),
    ("names_refer_to_objects", "cpu-pvc", remove("PersistentVolumeClaim")),
    *(
        ("names_refer_to_objects", "training-cpu", at("pod", f"volumes.{index}.persistentVolumeClaim.claimName", "run"))
        for index in (0, 1)
    ),
    ("names_refer_to_objects", "cpu", at("HorizontalPodAutoscaler", "spec.scaleTargetRef.name", "equipoise-cpu")),
    ("names_refer_to_objects", "cpu", remove("Service")),
    ("names_refer_to_objects", "kserve", remove("ServingRuntime")),
    ("names_refer_to_objects", "kserve", remove("PersistentVolumeClaim")),
    ("everything_is_in_the_namespace", "cpu-pvc", at("PersistentVolumeClaim", "metadata.namespace", ...)),
    ("an_empty_claim_is_waited_for", "cpu-pvc", at("container", "env", ...)),
    ("an_empty_claim_is_waited_for", "cpu-pvc", at("PersistentVolumeClaim", "spec.accessModes", ["ReadWriteOnce"])),
    ("an_empty_claim_is_waited_for", "kserve", variable("EQUIPOISE_WAIT_FOR_MODELS", "false")),
    ("a_wrong_configuration_fails_the_job", "training-gpu", at("pod", "initContainers.0", ...)),
    (
        "a_wrong_configuration_fails_the_job",
        "training-cpu",
        at("Job", "spec.podFailurePolicy.rules.1.onExitCodes.values", [1]),
    ),
    ("cuda_is_asked_for_with_a_gpu", "training-cpu", at("pod", "initContainers.0.env", [])),
    ("cuda_is_asked_for_with_a_gpu", "gpu-init", at("pod", "initContainers.1.args", ["check"])),
    ("cuda_is_asked_for_with_a_gpu", "gpu", at("container", "resources.limits", {"cpu": "4", "memory": "4Gi"})),
    ("labels_match", "cpu", at("Service", "spec.selector", {"app": "equipoise"})),
    ("labels_match", "cpu", at("PodDisruptionBudget", "spec.selector.matchLabels", {"app": "equipoise"})),
    ("labels_match", "cpu", at("Deployment", "spec.selector.matchLabels", {"app": "equipoise"})),
    ("labels_match", "cpu", at("pod", "topologySpreadConstraints.0.labelSelector.matchLabels", {"app": "equipoise"})),
    ("labels_match", "cpu", at("Service", "spec.selector", {})),
    ("labels_match", "cpu", at("PodDisruptionBudget", "spec.selector.matchLabels", {})),
    ("labels_match", "kserve", policy_of_every_pod),
    ("service_ports_exist", "cpu", at("Service", "spec.ports.0.targetPort", "web")),
    ("service_ports_exist", "cpu", at("Ingress", "spec.rules.0.http.paths.0.backend.service.port.name", "web")),
    ("grace_covers_the_drain", "cpu", at("pod", "terminationGracePeriodSeconds", 15)),
    ("grace_covers_the_drain", "cpu", at("container", "lifecycle", ...)),
    ("grace_covers_the_drain", "cpu", at("ConfigMap", "data.EQUIPOISE_DRAIN_SECONDS", "30")),
    ("grace_covers_the_drain", "kserve", at("ServingRuntime", "spec.containers.0.lifecycle", ...)),
    ("grace_covers_the_drain", "kserve", at("InferenceService", "spec.predictor.terminationGracePeriodSeconds", 30)),
    ("rollouts_lose_nothing", "cpu", at("Deployment", "spec.strategy.rollingUpdate.maxSurge", 0)),
    ("rollouts_lose_nothing", "cpu", at("Deployment", "spec.strategy.rollingUpdate.maxUnavailable", 2)),
    ("rollouts_lose_nothing", "cpu", at("Deployment", "spec.replicas", 2)),
    ("rollouts_lose_nothing", "gpu-no-spare-node", at("HorizontalPodAutoscaler", "spec.minReplicas", 1)),
    ("rollouts_lose_nothing", "cpu", at("PodDisruptionBudget", "spec.maxUnavailable", 0)),
    ("images_are_pinned", "cpu", at("container", "image", "registry.example.com/equipoise:latest")),
    ("images_are_pinned", "cpu", at("container", "image", "registry.example.com/equipoise")),
    ("images_are_pinned", "gpu-init", at("pod", "initContainers.1.image", "equipoise")),
    ("images_are_pinned", "cpu-image-volume", at("pod", "volumes.0.image.reference", "registry.example.com/models")),
    ("resources_are_bounded", "cpu", at("container", "resources.limits.cpu", ...)),
    ("resources_are_bounded", "cpu", at("pod", "volumes.1", LOOSE)),
    ("memory_holds_the_queue", "cpu", at("container", "resources.limits.memory", "2Gi")),
    ("memory_holds_the_queue", "cpu", at("ConfigMap", "data.EQUIPOISE_MAX_CONNECTIONS", "8192")),
    ("threads_come_from_the_limit", "cpu", at("ConfigMap", "data.EQUIPOISE_INFERENCE_THREADS", "8")),
    ("decoders_fit_the_limit", "cpu", at("ConfigMap", "data.EQUIPOISE_DECODE_THREADS", "2")),
    ("decoders_fit_the_limit", "gpu", at("container", "env.0.value", "1")),
    ("decoders_fit_the_limit", "gpu", at("container", "resources.limits.cpu", "3")),
    (
        "scaling_metrics_exist",
        "cpu",
        at("HorizontalPodAutoscaler", "spec.metrics.0.pods.metric.name", "equipoise_load"),
    ),
    ("pods_are_added_before_they_refuse", "gpu", scaled_at("256")),
    ("pods_are_added_before_they_refuse", "gpu", at("HorizontalPodAutoscaler", "spec.metrics.0", ...)),
    ("what_settings_name_is_mounted", "cpu", at("ConfigMap", "data.EQUIPOISE_API_KEYS", "/etc/keys")),
    ("what_settings_name_is_mounted", "cpu", at("ConfigMap", "data.EQUIPOISE_API_KEYS", "/etc/equipoise/key")),
    ("what_settings_name_is_mounted", "cpu", at("container", "volumeMounts.1", ...)),
    ("what_settings_name_is_mounted", "cpu", at("container", "volumeMounts.0", ...)),
    ("what_settings_name_is_mounted", "cpu-pvc", at("ConfigMap", "data.EQUIPOISE_MODEL_STORE", "/store")),
    ("what_settings_name_is_mounted", "cpu-init", at("pod", "initContainers.1.volumeMounts.1.mountPath", "/store")),
    ("what_settings_name_is_mounted", "kserve", variable("EQUIPOISE_MODEL_STORE", "/models")),
    ("what_settings_name_is_mounted", "kserve", at("ServingRuntime", "spec.containers.0.volumeMounts", [])),
    ("failures_are_in_the_log", "cpu", at("ConfigMap", "data.EQUIPOISE_ACCESS_LOG_EVERY", ...)),
    ("failures_are_in_the_log", "kserve", variable("EQUIPOISE_ACCESS_LOG_EVERY", "0")),
    ("volumes_are_of_the_user", "cpu", at("pod", "securityContext.fsGroup", ...)),
    ("volumes_are_of_the_user", "training-cpu", at("pod", "securityContext.fsGroup", ...)),
    ("volumes_are_of_the_user", "training-files", at("Pod", "spec.securityContext.fsGroup", ...)),
    (
        "an_image_of_models_fits_both_ways",
        "cpu-image-volume",
        at("pod", "initContainers.0.volumeMounts.1.subPath", ...),
    ),
    ("an_image_of_models_fits_both_ways", "cpu-init", at("pod", "initContainers.0.command.2", "/.")),
    ("delivered_models_are_checked", "cpu-image-volume", at("pod", "initContainers", ...)),
    ("delivered_models_are_checked", "gpu-init", at("pod", "initContainers.1", ...)),
    ("a_job_survives_eviction", "training-cpu", at("pod", "initContainers.0.args.4", ...)),
    ("a_job_survives_eviction", "training-gpu", at("pod", "initContainers.1.args.4", ...)),
    ("a_job_survives_eviction", "training-cpu", at("pod", "restartPolicy", "Always")),
    ("a_job_survives_eviction", "training-cpu", at("Job", "spec.podFailurePolicy.rules.0", ...)),
    ("a_job_survives_eviction", "training-cpu", at("container", "volumeMounts.1.mountPath", "/store")),
    ("a_job_survives_eviction", "training-cpu", at("pod", "volumes.0", {"name": "runs", "emptyDir": {}})),
    ("a_job_is_of_one_run", "training-cpu", at("container", "args.1", "/runs/equivae-digits-2")),
    ("a_job_is_of_one_run", "training-gpu", at("pod", "initContainers.0.args.1", "/configs/equivae-mnist.yaml")),
    ("kserve_serves_what_the_job_trains", "kserve", at("InferenceService", "metadata.name", "equivae-mnist")),
    ("a_process_for_every_gpu", "training-gpu", at("pod", "initContainers.1.resources.limits.nvidia~com/gpu", 4)),
    ("a_process_for_every_gpu", "training-gpu", at("pod", "initContainers.1.command.2", "--nproc-per-node=1")),
    ("gpu_nodes_are_found", "gpu", at("pod", "tolerations", ...)),
    ("gpu_nodes_are_found", "gpu", at("pod", "affinity", ...)),
    ("gpu_nodes_are_found", "gpu", at("pod", "tolerations.0.operator", ...)),
    ("gpu_nodes_are_found", "gpu", at("pod", f"affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms", [])),
    *(
        ("kserve_finds_the_runtime", "kserve", at("ServingRuntime", path, value))
        for path, value in (
            ("spec.containers.0.name", "server"),
            ("spec.containers.0.ports", ...),
            ("spec.supportedModelFormats", []),
            ("spec.protocolVersions", ["v1"]),
        )
    ),
    ("kserve_finds_the_runtime", "kserve", at("InferenceService", "spec.predictor.model.storageUri", ...)),
    ("kserve_finds_the_runtime", "kserve", at("InferenceService", "metadata.annotations", {})),
    ("gpu_nodes_are_found", "training-gpu", at("pod", "tolerations", ...)),
    *(("what_belongs_to_a_deployment_is_there", "cpu", remove_all(kind)) for kind in BESIDE_A_DEPLOYMENT),
    ("what_belongs_to_a_deployment_is_there", "cpu", at("pod", "topologySpreadConstraints.0", ...)),
    ("what_belongs_to_a_deployment_is_there", "cpu", at("Ingress", "spec.tls", ...)),
    *(("what_belongs_to_a_deployment_is_there", "kserve", remove(kind)) for kind in BESIDE_KSERVE),
    ("network_policies_fit", "cpu", policy_port("metrics")),
    ("network_policies_fit", "cpu", open_policy),
    ("network_policies_fit", "cpu", policy_peer("podSelector", {})),
    ("network_policies_fit", "cpu", policy_peer("namespaceSelector", {})),
    ("network_policies_fit", "kserve", policy_peer("podSelector", {})),
    ("network_policies_fit", "cpu", remove("NetworkPolicy")),
    ("network_policies_fit", "kserve", remove("NetworkPolicy")),
    ("network_policies_fit", "kserve", policy_for_prometheus_alone),
    ("network_policies_fit", "kserve", policy_port("http")),
    ("network_policies_fit", "kserve", at("InferenceService", "metadata.name", "equivae-mnist")),
    ("changes_of_one_pod_are_refused", "cpu", of_second_ingress("spec.rules.0.http.paths.0.path", "/v2/models")),
    ("changes_of_one_pod_are_refused", "cpu", of_second_ingress("spec.rules.0.http.paths.0.pathType", "Exact")),
    ("changes_of_one_pod_are_refused", "cpu", of_second_ingress("spec.rules.0.host", "other.example.com")),
    ("changes_of_one_pod_are_refused", "cpu", of_second_ingress("metadata.annotations", {})),
    ("ingress_fits_the_service", "cpu", of_second_ingress("spec.ingressClassName", ...)),
    ("ingress_fits_the_service", "cpu", annotation("proxy-body-size", "1m")),
    ("ingress_fits_the_service", "cpu", annotation("proxy-next-upstream", "error timeout http_429 non_idempotent")),
    ("ingress_fits_the_service", "cpu", at("ConfigMap", "data.EQUIPOISE_REQUEST_TIMEOUT_SECONDS", "120")),
    ("ingress_fits_the_service", "cpu", annotation("proxy-request-buffering", "off")),
    ("ingress_fits_the_service", "cpu", at("Ingress", "spec.ingressClassName", ...)),
    ("ingress_fits_the_service", "cpu", at("Ingress", "spec.rules.0.http.paths.0.path", "/v2")),
    ("ingress_fits_the_service", "cpu", annotation("proxy-send-timeout", "5")),
    ("the_controller_closes_idle_connections_first", "cpu", at("ConfigMap", "data.EQUIPOISE_KEEP_ALIVE_SECONDS", "60")),
    ("the_controller_closes_idle_connections_first", "ingress-nginx", controller_keeps("75")),
    ("the_controller_closes_idle_connections_first", "ingress-nginx", controller_keeps(...)),
    ("no_secret_is_in_a_file", "cpu", add(SECRET)),
    ("no_secret_is_in_a_file", "cpu", mount_by_sub_path),
    ("no_secret_is_in_a_file", "cpu", at("container", "env", [FROM_SECRET])),
    (
        "alerts_use_metrics_that_exist",
        "observability",
        at("PrometheusRule", "spec.groups.0.rules.0.expr", "equipoise_x > 0"),
    ),
    ("monitors_find_the_service", "observability", at("ServiceMonitor", "spec.endpoints.0.port", "http-metrics")),
    ("monitors_find_the_service", "observability", at("ServiceMonitor", "spec.endpoints.0.path", "/metric")),
    (
        "monitors_find_the_service",
        "observability",
        at("ServiceMonitor", "spec.selector.matchLabels", {"app": "equipoise"}),
    ),
    (
        "monitors_find_the_pods_of_kserve",
        "observability",
        at("PrometheusRule", "spec.groups.0.rules.0.expr", 'up{job=~"equipoise"} == 0'),
    ),
    ("monitors_find_the_pods_of_kserve", "observability", at("PodMonitor", "spec.selector.matchLabels", {"a": "b"})),
    ("monitors_find_the_pods_of_kserve", "observability", at("PodMonitor", "spec.podMetricsEndpoints.0.port", "web")),
    ("monitors_find_the_pods_of_kserve", "observability", at("PodMonitor", "spec.podMetricsEndpoints.0.path", "/m")),
    *(
        ("monitors_keep_labels_and_leave_pods_time", "observability", at(kind, f"spec.{endpoints}.0.{field}", ...))
        for kind, endpoints in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints"))
        for field in ("honorLabels", "relabelings")
    ),
    ("namespace_enforces_restricted", "cpu", at("Namespace", "metadata.labels", {})),
    ("host_namespaces_are_not_shared", "cpu", at("pod", "hostNetwork", True)),
    ("host_namespaces_are_not_shared", "cpu", at("pod", "hostPID", True)),
    ("host_namespaces_are_not_shared", "cpu", at("pod", "hostIPC", True)),
    ("containers_are_not_privileged", "cpu", at("container", "securityContext.privileged", True)),
    ("capabilities_are_dropped", "cpu", at("container", "securityContext.capabilities.drop", [])),
    ("capabilities_are_dropped", "cpu", at("container", "securityContext.capabilities.add", ["SYS_ADMIN"])),
    ("volumes_are_of_allowed_kinds", "cpu", at("pod", "volumes.1", HOST)),
    ("host_ports_are_not_used", "cpu", at("container", "ports.0.hostPort", 8000)),
    ("privileges_cannot_grow", "cpu", at("container", "securityContext.allowPrivilegeEscalation", ...)),
    ("users_are_not_root", "cpu", at("pod", "securityContext.runAsNonRoot", ...)),
    ("users_are_not_root", "cpu", at("container", "securityContext.runAsUser", 0)),
    ("seccomp_is_on", "cpu", at("pod", "securityContext.seccompProfile", ...)),
    ("seccomp_is_on", "cpu", at("container", "securityContext.seccompProfile", {"type": "Unconfined"})),
    ("kernel_settings_are_left_alone", "cpu", at("container", "securityContext.procMount", "Unmasked")),
    (
        "kernel_settings_are_left_alone",
        "cpu",
        at("pod", "securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ),
    ("root_file_systems_are_read_only", "cpu", at("container", "securityContext.readOnlyRootFilesystem", False)),
    ("no_token_and_no_service_links", "cpu", at("pod", "automountServiceAccountToken", ...)),
    ("no_token_and_no_service_links", "cpu", at("pod", "enableServiceLinks", ...)),
    ("no_token_and_no_service_links", "cpu", at("ServiceAccount", "automountServiceAccountToken", ...)),
]
