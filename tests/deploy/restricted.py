"""The Pod Security Standard `restricted`, rule by rule, and what we ask beyond it.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from collections.abc import Iterator
from typing import Any

from tests.deploy.manifests import Object, Pod, of_kind, pods
from tests.deploy.rules import Service, rule

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
    "image",  # since Kubernetes 1.33 (kubernetes/kubernetes#130394), though the standard's page does not name it
}  # fmt: skip


def _effective(pod: Pod, container: dict[str, Any], name: str) -> Any:
    return container.get("securityContext", {}).get(name, pod.spec.get("securityContext", {}).get(name))


def _containers(objects: list[Object]) -> Iterator[tuple[Pod, dict[str, Any], dict[str, Any]]]:
    for pod in pods(objects):
        for container in pod.containers():
            yield pod, container, container.get("securityContext", {})


@rule
def namespace_enforces_restricted(objects: list[Object], service: Service) -> Iterator[str]:
    for namespace in of_kind(objects, "Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"Namespace/{namespace['metadata']['name']}"


@rule
def host_namespaces_are_not_shared(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        yield from (f"{pod.name}: {name}" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(name))


@rule
def containers_are_not_privileged(objects: list[Object], service: Service) -> Iterator[str]:
    yield from (
        f"{pod.name}/{container['name']}" for pod, container, own in _containers(objects) if own.get("privileged")
    )


@rule
def capabilities_are_dropped(objects: list[Object], service: Service) -> Iterator[str]:
    for pod, container, own in _containers(objects):
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{pod.name}/{container['name']}: {capabilities}"


@rule
def volumes_are_of_allowed_kinds(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        for volume in pod.spec.get("volumes", []):
            if not (volume.keys() - {"name"}) <= _VOLUMES:
                yield f"{pod.name}: {volume}"


@rule
def host_ports_are_not_used(objects: list[Object], service: Service) -> Iterator[str]:
    for pod, container, _ in _containers(objects):
        yield from (f"{pod.name}: {port}" for port in container.get("ports", []) if port.get("hostPort"))


@rule
def privileges_cannot_grow(objects: list[Object], service: Service) -> Iterator[str]:
    for pod, container, own in _containers(objects):
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{pod.name}/{container['name']}"


@rule
def users_are_not_root(objects: list[Object], service: Service) -> Iterator[str]:
    for pod, container, _ in _containers(objects):
        if _effective(pod, container, "runAsNonRoot") is not True or not _effective(pod, container, "runAsUser"):
            yield f"{pod.name}/{container['name']}"


@rule
def seccomp_is_on(objects: list[Object], service: Service) -> Iterator[str]:
    for pod, container, _ in _containers(objects):
        if (_effective(pod, container, "seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{pod.name}/{container['name']}"


@rule
def kernel_settings_are_left_alone(objects: list[Object], service: Service) -> Iterator[str]:
    """sysctls, /proc masks, AppArmor and SELinux: none is changed here at all."""
    for pod, container, own in _containers(objects):
        shared = pod.spec.get("securityContext", {})
        changed = [name for name in ("procMount", "appArmorProfile", "seLinuxOptions") if name in own or name in shared]
        if changed or "sysctls" in shared:
            yield f"{pod.name}/{container['name']}: {changed}"


@rule
def root_file_systems_are_read_only(objects: list[Object], service: Service) -> Iterator[str]:
    for pod, container, own in _containers(objects):
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{pod.name}/{container['name']}"


@rule
def no_token_and_no_service_links(objects: list[Object], service: Service) -> Iterator[str]:
    for pod in pods(objects):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.name}: a service account's token"
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.name}: EQUIPOISE_PORT=tcp://... of a Service"
    for account in of_kind(objects, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount/{account['metadata']['name']}: a token for whoever asks"
