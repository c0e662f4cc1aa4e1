"""docker/compose.yaml: valid by the Compose specification, and every file and target that it names is there."""

import copy
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from service.settings import ENV_PREFIX, Settings, SettingsError, load_settings
from tests.deploy.manifests import IMAGE_ENVIRONMENT, load, of_kind, quantity
from tests.deploy.rules import decoders_beside, memory_needed

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVERS = ("cpu", "gpu")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    file = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_it_is_valid(schema: dict[str, Any]) -> None:
    jsonschema.validate(COMPOSE, schema)


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [("cpu", "read_onyl", True), ("nginx", "ports", "8080"), ("gpu", "deploy", {"replica": 1})],
)
def test_a_wrong_one_is_refused(schema: dict[str, Any], service: str, key: str, value: object) -> None:
    wrong = copy.deepcopy(COMPOSE)
    wrong["services"][service][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_what_it_mounts_is_there() -> None:
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DOCKER / source).exists(), (name, source)


REPLICAS = (DOCKER / "nginx" / "replicas.conf").read_text()


def test_nginx_looks_for_the_replicas_where_they_are() -> None:
    (host, port), *more = re.findall(r"^server (\w+):(\d+) resolve ", REPLICAS, re.MULTILINE)
    assert not more
    image = (DOCKER / "Dockerfile").read_text()
    assert f"EQUIPOISE_PORT={port} " in image
    for name in SERVERS:
        assert host in COMPOSE["services"][name]["networks"]["default"]["aliases"]
    version = re.match(r"nginx:(\d+)\.(\d+)", COMPOSE["services"]["nginx"]["image"])
    assert version and tuple(map(int, version.groups())) >= (1, 28)  # `resolve` without a licence: 1.27.3


NGINX = dict(re.findall(r"^ *(\w+) ([^;{]+);$", (DOCKER / "nginx" / "equipoise.conf").read_text(), re.MULTILINE))
SAME = {"proxy_body_size": "client_max_body_size", "upstream_keepalive_timeout": "keepalive_timeout"}


def test_nginx_promises_what_the_ingress_does() -> None:
    ingress, one_pod = of_kind(load("cpu"), "Ingress")
    (controller,) = of_kind(load("ingress-nginx"), "ConfigMap")
    promised = {**ingress["metadata"]["annotations"], **controller["data"]}
    assert len(promised) == 9
    for name, value in promised.items():
        directive = name.rpartition("/")[2].replace("-", "_")
        found = NGINX[SAME.get(directive, directive)]
        assert found.removesuffix("s") == value, directive
    (refused,) = [path["path"] for path in one_pod["spec"]["rules"][0]["http"]["paths"]]
    assert f"location {refused}/ {{" in (DOCKER / "nginx" / "equipoise.conf").read_text()


def settings_of(name: str, *, without: str = "") -> Settings:
    """Of a server: its image's, and what the file sets over them."""
    given = IMAGE_ENVIRONMENT | COMPOSE["services"][name]["environment"]
    return load_settings(
        {key.removeprefix(ENV_PREFIX).lower(): value for key, value in given.items() if key != without}
    )


def memory_of(name: str) -> float:
    """The limit, bytes: Docker's M is Kubernetes' Mi."""
    return quantity(COMPOSE["services"][name]["deploy"]["resources"]["limits"]["memory"] + "i")


def test_the_head_of_the_file_says_what_replicas_may_take() -> None:
    said = re.findall(r"^# .* of ([\d.]+) GiB of memory each", (DOCKER / "compose.yaml").read_text())
    assert [float(number) * 2**30 for number in said] == [memory_of("cpu")]


@pytest.mark.parametrize("name", SERVERS)
def test_that_nobody_shows_a_key_is_said_in_this_file(name: str) -> None:
    assert settings_of(name).allow_anonymous
    with pytest.raises(SettingsError, match="EQUIPOISE_API_KEYS"):
        settings_of(name, without="EQUIPOISE_ALLOW_ANONYMOUS")


@pytest.mark.parametrize("name", SERVERS)
def test_time_outs_and_memory_fit(name: str) -> None:
    """As for pods: the service's deadline is before nginx's, nginx closes idle connections first, Docker kills last."""
    service = COMPOSE["services"][name]
    settings = settings_of(name)
    seconds = {key: int(value.removesuffix("s")) for key, value in NGINX.items() if key.endswith("_timeout")}
    assert settings.request_timeout_seconds < min(seconds["proxy_read_timeout"], seconds["proxy_send_timeout"])
    assert seconds["keepalive_timeout"] < settings.keep_alive_seconds
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.drain_seconds + settings.request_timeout_seconds + 5
    assert memory_of(name) >= memory_needed(settings)
    assert NGINX["client_max_body_size"] == f"{settings.max_body_bytes // 2**20}m"


@pytest.mark.parametrize("name", SERVERS)
def test_decoders_fit_the_limit(name: str) -> None:
    cpus = float(COMPOSE["services"][name]["deploy"]["resources"]["limits"]["cpus"])
    assert settings_of(name).decode_threads == decoders_beside(cpus, gpu=name == "gpu")


def test_what_it_builds_is_a_target_of_the_dockerfile() -> None:
    stages = [line.split()[-1] for line in (DOCKER / "Dockerfile").read_text().splitlines() if line.startswith("FROM ")]
    for name in SERVERS:
        assert COMPOSE["services"][name]["build"]["target"] in stages


def test_images_are_pinned_and_ports_stay_on_this_host() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["image"].partition(":")[2] not in ("", "latest"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


@pytest.mark.parametrize("name", SERVERS)
def test_servers_have_no_privileges(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "ports" not in service  # nginx alone is in front


@pytest.mark.parametrize("name", SERVERS)
def test_servers_hear_of_their_end_from_the_start(name: str) -> None:
    assert COMPOSE["services"][name]["init"] is True


def test_only_a_profile_asks_for_a_gpu() -> None:
    for name, service in COMPOSE["services"].items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert bool(devices) == (name == "gpu")
    assert COMPOSE["services"]["gpu"]["profiles"] == ["gpu"]
