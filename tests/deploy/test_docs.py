"""The pages for operators name what exists, and their commands that need no cluster are run."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from service.settings import ENV_PREFIX, Settings, load_settings
from tests.deploy.manifests import IMAGE_ENVIRONMENT, load, of_kind, pods
from tests.deploy.rules import Service
from tests.service import tiny

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("deploy", "sizing", "oncall", "bulk")}
EVERYTHING = "\n".join(PAGES.values())


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", PAGES[page], re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def kubectl_lines(page: str) -> list[str]:
    """In blocks and in sentences; of a pipeline the first command, whose output the second reads."""
    written = [*commands(page), *re.findall(r"`(kubectl[^`\n]+)`", PAGES[page])]
    return [line.partition(" | ")[0] for line in written if line.startswith("kubectl ")]


needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="NOT RUN: kubectl is not installed")


def test_every_alert_has_its_section() -> None:
    written = yaml.safe_load((ROOT / "observability" / "alerts.yaml").read_text())
    alerts = {each["alert"] for group in written["groups"] for each in group["rules"]}
    assert set(re.findall(r"^## (\w+)$", PAGES["oncall"], re.MULTILINE)) == alerts


def test_every_path_exists() -> None:
    for path in set(re.findall(r"\b(?:k8s|docker|observability|results|examples|benchmarks)/[\w./-]*\w", EVERYTHING)):
        assert (ROOT / path).exists(), path


def test_every_variable_is_a_setting() -> None:
    for name in set(re.findall(r"EQUIPOISE_[A-Z_]+", EVERYTHING)):
        assert name.removeprefix(ENV_PREFIX).lower() in Settings.model_fields, name


def test_every_metric_is_exposed(service: Service) -> None:
    for name in set(re.findall(r"\bequipoise_[a-z_]+", EVERYTHING)):
        assert {name, re.sub("_(bucket|count|sum|total)$", "", name)} & service.metrics, name


def test_the_adapter_and_keda_ask_for_a_metric_that_is_exposed(service: Service) -> None:
    adapter = yaml.safe_load((ROOT / "k8s" / "prometheus-adapter.yaml").read_text())
    (each,) = adapter["rules"]["custom"]
    assert each["seriesQuery"].partition("{")[0] in service.metrics
    assert each["name"]["matches"] in service.metrics
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGES["deploy"], re.DOTALL)
    (trigger,) = yaml.safe_load(block)["spec"]["triggers"]
    assert set(re.findall(r"equipoise_\w+", trigger["metadata"]["query"])) <= service.metrics
    asked = adapter["prometheus"]
    assert trigger["metadata"]["serverAddress"] == f"{asked['url']}:{asked['port']}"


def test_the_charts_are_put_where_the_policies_let_in() -> None:
    installed = set(re.findall(r"^helm upgrade .* --namespace (\S+)", "\n".join(commands("deploy")), re.MULTILINE))
    peers = [
        peer
        for policy in of_kind(load("cpu"), "NetworkPolicy")
        for way in policy["spec"].get("ingress", [])
        for peer in way["from"]
    ]
    names = {peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in peers}
    assert names and names <= installed


def test_the_request_goes_to_the_host_of_the_ingress() -> None:
    hosts = {each["host"] for ingress in of_kind(load("cpu"), "Ingress") for each in ingress["spec"]["rules"]}
    asked = re.findall(r"^curl https://([^/]+)/", "\n".join(commands("deploy")), re.MULTILINE)
    assert {*asked} == hosts


def test_charts_are_pinned_and_waited_for() -> None:
    """The next line needs what the one before it installs."""
    charts = [line for page in PAGES for line in commands(page) if line.startswith("helm ")]
    assert charts
    for line in charts:
        assert re.search(r" --version v?\d+\.\d+\.\d+ ", line) and " --wait " in line, line


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_a_shell_command(page: str) -> None:
    for line in commands(page):
        done = subprocess.run(["bash", "-n"], input=line, text=True, capture_output=True)
        assert done.returncode == 0, (line, done.stderr)


@needs_kubectl
@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in kubectl_lines(page)}))
def test_kubectl_understands_every_command(line: str, tmp_path: Path) -> None:
    """Without a cluster: it reads the command and its files, and then finds nobody to send them to."""
    for name in ("keys.txt", "tls.crt", "tls.key"):
        (tmp_path / name).write_text("")
    (tmp_path / "my-model.yaml").write_text("")
    for folder in ("data", "model_store/my-model/1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "k8s").symlink_to(ROOT / "k8s")
    if "secret tls" in line:
        certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=equipoise.example.com"]
        subprocess.run(
            [*certificate, "-keyout", "tls.key", "-out", "tls.crt"], cwd=tmp_path, check=True, capture_output=True
        )
    nobody = ["kubectl", "--server=http://127.0.0.1:9", *shlex.split(line)[1:]]
    done = subprocess.run(nobody, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    if "--dry-run=client" in line:
        made = yaml.safe_load(done.stdout)
        assert (made["kind"], made["metadata"]["name"], [*made["data"]]) == ("Secret", "equipoise-api-keys", ["keys"])
    else:
        assert done.returncode != 0 and "refused" in done.stderr, done.stderr


def test_files_come_to_where_the_pod_has_a_claim() -> None:
    (pod,) = pods(load("training-files"))
    mounted = {mount["mountPath"] for mount in pod.spec["containers"][0]["volumeMounts"]}
    lines = [line for line in kubectl_lines("deploy") if " cp " in line or " exec " in line]
    paths = [PurePosixPath(path) for line in lines for path in re.findall(r"(?<=[ :])/\S+", line)]
    assert {f"/{path.parts[1]}" for path in paths} == mounted


def test_the_targets_that_are_built_are_the_dockerfiles() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE))
    assert set(re.findall(r"--target (\S+)", EVERYTHING)) <= targets


def test_the_docker_commands_name_what_the_files_have() -> None:
    """Without an engine: profiles are compose.yaml's, images are those that the overlays run."""
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"].values()
    profiles = {profile for service in compose for profile in service.get("profiles", [])}
    asked = set(re.findall(r"--profile (\w+)", EVERYTHING))
    assert asked and asked <= profiles
    rendered = "".join(path.read_text() for path in (ROOT / "k8s" / "rendered").glob("*.yaml"))
    tags = re.findall(r"^docker build .* -t (\S+) \.$", "\n".join(commands("deploy")), re.MULTILINE)
    assert len(tags) == 3 and all(f"image: {tag}\n" in rendered for tag in tags)
    run = re.findall(r"^docker run --rm (?:--\w+ \S+ )*(\S+)", "\n".join(commands("deploy")), re.MULTILINE)
    assert run and set(run) <= {*tags}


def test_the_services_own_commands_run(tmp_path: Path, here: Callable[..., Any]) -> None:
    tiny.write(tmp_path)
    written = "\n".join(line for page in PAGES for line in commands(page))
    # the image's entry point is the service
    own = re.findall(r"^docker run --rm (?:--volume \./model_store:/models:ro )?[^-]\S+ (.+)$", written, re.MULTILINE)
    assert sorted(line.partition(" ")[0] for line in own) == ["check", "key"]
    for line in own:
        done = here(*shlex.split(line), **IMAGE_ENVIRONMENT | {"EQUIPOISE_MODEL_STORE": str(tmp_path)})
        assert done.returncode == 0, (line, done.stderr)


def test_an_image_is_run_with_settings_that_serve() -> None:
    """The variables that the commands give, over those of the image."""
    lines = [line for line in commands("deploy") if line.startswith("docker run ") and " --publish " in line]
    assert len(lines) == 2
    for line in lines:
        given = dict(re.findall(r"--env (EQUIPOISE_\w+)=(\S+)", line))
        fields = {name.removeprefix(ENV_PREFIX).lower(): value for name, value in (IMAGE_ENVIRONMENT | given).items()}
        settings = load_settings(fields)
        (inside,) = re.findall(r"--publish \S*?(\d+) ", line)
        assert settings.port == int(inside)
        if settings.api_keys:
            assert f":{settings.api_keys}:ro " in line
