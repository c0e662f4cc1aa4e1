"""Rules of who asks the pods and how: network policies, the Ingress and its controller, Prometheus."""

import re
from collections.abc import Iterator
from typing import Any

from tests.deploy.manifests import Object, load, of_kind, pods, selects
from tests.deploy.rules import CONTROLLER, Service, rule, settings_of

PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
ONE_POD = "/v2/repository/models"  # below it a POST changes the pod that is asked
EVERYBODY = "0.0.0.0/0,::/0"


@rule
def network_policies_fit(objects: list[Object], service: Service) -> Iterator[str]:
    """Everything is denied; what is allowed is a port of the pods it is for; every port is allowed to somebody, that of
    requests not to Prometheus alone.
    """
    policies = of_kind(objects, "NetworkPolicy")
    servers = [pod for pod in pods(objects) if pod.servers()]
    if servers and not any(
        policy["spec"]["podSelector"] == {}
        and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and "ingress" not in policy["spec"]
        and "egress" not in policy["spec"]
        for policy in policies
    ):
        yield "no policy denies everything"
    for pod in servers:
        named = {port.get("name", port["containerPort"]) for container in pod.servers() for port in container["ports"]}
        allowed = set()
        for policy in policies:
            if selects(policy["spec"]["podSelector"].get("matchLabels", {}), pod.labels):
                for way in policy["spec"].get("ingress", []):
                    if not way.get("from") or not way.get("ports"):
                        yield f"{policy['metadata']['name']}: open to everybody or on every port"
                    for peer in way.get("from", []):
                        if not all(peer.get(by, {}).get("matchLabels") for by in ("namespaceSelector", "podSelector")):
                            yield f"{policy['metadata']['name']}: lets in all of {peer}"
                    allowed |= {port["port"] for port in way.get("ports", [])}
        if allowed != named:
            yield f"{pod.name}: ports {named}, allowed {allowed}"
        if not set(_let_in(objects, pod.labels, PROMETHEUS, others=True)):
            yield f"{pod.name}: nobody may ask it"


def _notes(ingress: Object) -> dict[str, str]:
    found = ingress["metadata"].get("annotations", {})
    return {name.removeprefix("nginx.ingress.kubernetes.io/"): value for name, value in found.items()}


def _paths(ingress: Object) -> list[tuple[str, str, str]]:
    rules = [(each["host"], path) for each in ingress["spec"]["rules"] for path in each["http"]["paths"]]
    return [(host, path.get("path"), path["pathType"]) for host, path in rules]


@rule
def changes_of_one_pod_are_refused(objects: list[Object], service: Service) -> Iterator[str]:
    """Loading and unloading, of which a balancer would ask any pod, and after a time-out a second one."""
    ways = of_kind(objects, "Ingress")
    shut = [path for way in ways if _notes(way).get("denylist-source-range") == EVERYBODY for path in _paths(way)]
    for way in ways:
        for host, path, _ in _paths(way):
            if path == "/" and (host, ONE_POD, "Prefix") not in shut:
                yield f"{host}: {ONE_POD} goes to any pod"


@rule
def ingress_fits_the_service(objects: list[Object], service: Service) -> Iterator[str]:
    for ingress in of_kind(objects, "Ingress"):
        if ingress["spec"].get("ingressClassName") != "nginx":
            yield "only a controller that is the cluster's default takes it up, and the annotations are nginx's"
        notes = _notes(ingress)
        if notes.get("denylist-source-range") == EVERYBODY:
            continue
        for pod in pods(objects):
            for container in pod.servers():
                settings = settings_of(objects, container)
                if int(notes["proxy-body-size"].removesuffix("m")) * 2**20 != settings.max_body_bytes:
                    yield f"{notes['proxy-body-size']} let through, the service takes {settings.max_body_bytes} bytes"
                for way in ("send", "read"):
                    if int(notes[f"proxy-{way}-timeout"]) <= settings.request_timeout_seconds:
                        yield f"the proxy gives up before the service's own deadline: proxy-{way}-timeout"
        if [path[1:] for path in _paths(ingress)] != [("/", "Prefix")]:
            yield f"not every path of the service: {_paths(ingress)}"
        retried = set(notes["proxy-next-upstream"].split())
        if not {"error", "timeout", "http_503", "non_idempotent"} <= retried or "http_429" in retried:
            yield f"proxy-next-upstream: {retried}"
        if notes["proxy-request-buffering"] != "on":
            yield "a request that is not buffered cannot be sent to another pod"


@rule
def the_controller_closes_idle_connections_first(objects: list[Object], service: Service) -> Iterator[str]:
    """A request on a connection that the service is just closing would be lost."""
    own = [item for item in of_kind(objects, "ConfigMap") if item["metadata"]["name"] == CONTROLLER]
    (configuration,) = own or of_kind(load("ingress-nginx"), "ConfigMap")
    kept = int(configuration["data"].get("upstream-keepalive-timeout", 0))
    behind = objects if of_kind(objects, "Ingress") else load("cpu")
    for pod in pods(behind):
        for container in pod.servers():
            seconds = settings_of(behind, container).keep_alive_seconds
            if not 0 < kept < seconds:
                yield f"{pod.name}: keeps idle connections for {seconds} s, the controller for {kept}"


@rule
def alerts_use_metrics_that_exist(objects: list[Object], service: Service) -> Iterator[str]:
    for each in _alerts(objects):
        for name in re.findall(r"\bequipoise_\w+", each["expr"]):
            if name not in service.metrics and re.sub("_(bucket|count|sum|total)$", "", name) not in service.metrics:
                yield f"{each['alert']}: no metric {name}"


def _alerts(objects: list[Object]) -> Iterator[dict[str, Any]]:
    for item in of_kind(objects, "PrometheusRule"):
        for group in item["spec"]["groups"]:
            yield from group["rules"]


@rule
def monitors_find_the_service(objects: list[Object], service: Service) -> Iterator[str]:
    for monitor in of_kind(objects, "ServiceMonitor"):
        for target in of_kind(load("cpu"), "Service"):
            if not selects(monitor["spec"]["selector"]["matchLabels"], target["metadata"]["labels"]):
                yield "selects no Service"
            for endpoint in monitor["spec"]["endpoints"]:
                if endpoint["port"] not in {port["name"] for port in target["spec"]["ports"]}:
                    yield f"Service/{target['metadata']['name']} has no port {endpoint['port']}"
                if service.status(endpoint["path"]) != 200:
                    yield f"{endpoint['path']} is not answered"


@rule
def monitors_find_the_pods_of_kserve(objects: list[Object], service: Service) -> Iterator[str]:
    behind = load("kserve")
    for monitor in of_kind(objects, "PodMonitor"):
        # what Prometheus's operator makes of it; EquipoiseDown looks for it
        job = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
        downs = [each["expr"] for each in _alerts(objects) if each["alert"] == "EquipoiseDown"]
        if not all(re.fullmatch(found, job) for expr in downs for found in re.findall(r'job=~"([^"]+)"', expr)):
            yield f"EquipoiseDown does not see job {job}"
        for pod in pods(behind):
            if not selects(monitor["spec"]["selector"]["matchLabels"], pod.labels):
                yield "selects no pod"
            ports = {port["name"] for container in pod.servers() for port in container["ports"]}
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                if endpoint["port"] not in ports:
                    yield f"{pod.name} has no port {endpoint['port']}"
                if service.status(endpoint["path"]) != 200:
                    yield f"{endpoint['path']} is not answered"
                if endpoint["port"] not in set(_let_in(behind, pod.labels, PROMETHEUS)):
                    yield f"{pod.name}: no policy lets Prometheus in at port {endpoint['port']}"


@rule
def monitors_keep_labels_and_leave_pods_time(objects: list[Object], service: Service) -> Iterator[str]:
    """The operator gives targets a label `endpoint`, over which the service's own has to win. A pod that is still made
    is not down.
    """
    for monitor in of_kind(objects, "ServiceMonitor", "PodMonitor"):
        spec = monitor["spec"]
        for endpoint in spec.get("endpoints", []) + spec.get("podMetricsEndpoints", []):
            if endpoint.get("honorLabels") is not True:
                yield f"{monitor['kind']}: the service's label `endpoint` is stored as `exported_endpoint`"
            dropped = [each.get("regex") for each in endpoint.get("relabelings", []) if each["action"] == "drop"]
            if dropped != ["Pending"]:
                yield f"{monitor['kind']}: EquipoiseDown fires while init containers run"


def _let_in(
    objects: list[Object], labels: dict[str, str], who: dict[str, str], *, others: bool = False
) -> Iterator[int | str]:
    """The ports at which policies let in pods of these labels; others: all but these."""
    for policy in of_kind(objects, "NetworkPolicy"):
        if selects(policy["spec"]["podSelector"].get("matchLabels", {}), labels):
            for way in policy["spec"].get("ingress", []):
                peers = [peer.get("podSelector", {}).get("matchLabels") for peer in way.get("from", [])]
                if any((peer == who) != others for peer in peers):
                    yield from (port["port"] for port in way["ports"])
