"""The Dockerfile and what is sent to its build; that it builds and runs is `make image`."""

import ast
import json
import os
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.deploy.manifests import DOCKERFILE, IMAGE_ENVIRONMENT
from tests.server import part_of_store, running_server
from tests.service import tiny

ROOT = Path(__file__).parents[2]
HEALTH_CHECK: list[str] = json.loads(re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])


def stages() -> dict[str, tuple[str, str]]:
    """Stage -> (what it is from, its lines)."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return {name: (base, lines) for base, name, lines in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def lineage(target: str) -> str:
    """All lines that make a stage, its bases' first."""
    base, lines = stages()[target]
    return (lineage(base) if base in stages() else "") + lines


@pytest.mark.parametrize("target", ["cpu", "gpu", "training"])
def test_every_target_says_how_it_runs(target: str) -> None:
    lines = lineage(target)
    assert re.search(r"^USER (\d{5,}):(\d{5,})$", lines, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["/', lines, re.MULTILINE)
    assert "STOPSIGNAL SIGTERM" in lines
    assert "org.opencontainers.image.licenses" in lines
    assert "pip install" not in lines and "apt-get install -y --no-install-recommends python3 \\" in lines


def test_the_base_is_pinned_by_digest() -> None:
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)


def test_the_gpu_image_asks_for_the_driver_and_does_without_no_gpu() -> None:
    lines = lineage("gpu")
    assert "NVIDIA_VISIBLE_DEVICES=all" in lines and "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in lines
    assert "EQUIPOISE_DEVICE=cuda" in lines


def test_what_is_copied_is_in_the_build_context() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for arguments in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in arguments.removeprefix("--chmod=755 ").split()[:-1]:
            assert any(source == entry or source.startswith(f"{entry}/") for entry in kept), source


SHIPPED = {
    "cpu": ["cpu-dependencies", "model_store", "code"],
    "gpu": ["gpu-dependencies", "model_store", "code"],
    "training": ["training-dependencies", "code", "training/configs"],
}


@pytest.mark.parametrize("target", SHIPPED)
def test_a_change_of_code_ships_the_code_alone(target: str) -> None:
    """Dependencies are copied first, from where no code has been, and what every build says anew comes last: each is a
    layer, and with one all that are above it are made anew.
    """
    lines = stages()[target][1]
    copied = [
        from_ or source for from_, source in re.findall(r"^COPY (?:--from=(\S+)|--\S+ (\S+))", lines, re.MULTILINE)
    ]
    assert copied == SHIPPED[target] and "RUN " not in lines
    above, _, below = lines.rpartition("COPY ")
    assert "VERSION" not in above and "REVISION" not in above and "VERSION" in below and "REVISION" in below
    assert "ARG " not in "".join(text for name, (_, text) in stages().items() if name not in SHIPPED)
    dependencies = lineage(f"{target}-dependencies")
    assert re.findall(r"^COPY (.+) \./$", dependencies, re.MULTILINE) == [
        "docker/prune.sh constraints.txt",
        f"--from=requirements /requirements/{target}.txt",
    ]
    assert dependencies.count("COPY ") == 2


def test_the_code_is_all_of_its_layer_and_its_build_downloads_nothing() -> None:
    code = stages()["code"][1]
    _, _, after_the_code = code.rpartition("COPY ")
    assert "pip install --no-index --no-deps --no-build-isolation --root /code ." in after_the_code
    for target in SHIPPED:
        assert "COPY --from=code /code/opt/equipoise /opt/equipoise" in stages()[target][1]


@pytest.mark.parametrize("stage", ["cpu", "gpu", "training"])
def test_what_is_served_may_be_read_whatever_the_umask_of_the_checkout(stage: str) -> None:
    copied = re.findall(r"^COPY (?!--from)(.+)$", stages()[stage][1], re.MULTILINE)
    assert copied and all(arguments.startswith("--chmod=755 ") for arguments in copied)


def test_by_itself_an_image_does_not_serve_without_keys(here: Callable[..., Any]) -> None:
    """A deployment that loses EQUIPOISE_API_KEYS ends with an error; being open to everybody has to be asked for."""
    assert IMAGE_ENVIRONMENT["EQUIPOISE_HOST"] == "0.0.0.0"
    refused = here(**IMAGE_ENVIRONMENT)
    assert refused.returncode == 2 and "EQUIPOISE_ALLOW_ANONYMOUS=true" in refused.stderr, refused


def test_nothing_of_this_machine_is_in_the_dockerfile() -> None:
    assert not re.search(r"https?://(?!127\.0\.0\.1)", DOCKERFILE)


def test_requirements_are_those_of_the_extras() -> None:
    run = subprocess.run(
        [sys.executable, "docker/requirements.py", "cpu"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert any(line.startswith("onnxruntime>=") for line in lines) and any(line.startswith("fastapi") for line in lines)
    assert not any(line.startswith("torch") for line in lines)


@pytest.mark.parametrize(
    ("installed", "loose"),
    [
        (["numpy-2.0.dist-info", "opencv_python_headless-5.0.dist-info", "torch-2.13.0+cpu.dist-info"], []),
        (["equipoise-0.1.0.dist-info", "numpy-1.9.dist-info"], []),
        (["numpy-2.1.dist-info", "nvidia_cudnn_cu13-9.20.dist-info"], ["numpy==2.1", "nvidia-cudnn-cu13==9.20"]),
    ],
)
def test_what_is_not_locked_is_not_in_an_image(tmp_path: Path, installed: list[str], loose: list[str]) -> None:
    lock = "numpy==1.9 ; python_version < '3.12'\nnumpy==2.0\nopencv-python-headless==5.0\ntorch==2.13.0\n"
    for name in installed:
        (tmp_path / name).mkdir()
    assert runpy.run_path(str(ROOT / "docker" / "check_image.py"))["not_locked"](tmp_path, lock) == loose


def test_every_endpoint_is_asked_in_a_built_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # its pictures
    check = runpy.run_path("docker/check_image.py")
    store = part_of_store(ROOT / "model_store", ["equivae-mnist", "mcevae-mnist-se2", "symmetry-mnist"], tmp_path)
    with running_server(Settings(model_store=store)) as url:
        assert check["check_endpoints"](url) == "7"
        check["check_warps"](url)


@pytest.mark.parametrize("probe_port", [False, True])
def test_the_health_check_passes_by_proxies_and_by_the_limit_on_connections(tmp_path: Path, probe_port: bool) -> None:
    tiny.write(tmp_path)
    there = os.environ | {"http_proxy": "http://127.0.0.1:9"}
    for name in ("no_proxy", "NO_PROXY"):
        there.pop(name, None)
    limits = {}
    if probe_port:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            limits = {"probe_port": probe.getsockname()[1], "max_connections": 1}
        there["EQUIPOISE_PROBE_PORT"] = str(limits["probe_port"])
    with running_server(Settings(model_store=tmp_path, **limits)) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)):
            run = [sys.executable, *HEALTH_CHECK[1:]]
            asked = subprocess.run(run, env=there | {"EQUIPOISE_PORT": str(port)}, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr


def test_a_health_check_fails_where_nobody_answers() -> None:
    run = [sys.executable, *HEALTH_CHECK[1:]]
    assert subprocess.run(run, env=os.environ | {"EQUIPOISE_PORT": "9"}, capture_output=True).returncode != 0


def test_opencv_is_asked_for_nothing_that_its_stand_ins_lack() -> None:
    """docker/prune.sh puts empty libraries in the place of OpenCV's, for the functions that use none of them."""
    called = set()
    for path in [*(ROOT / "service").rglob("*.py"), *(ROOT / "contract").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cv2"), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cv2":
                called.add(node.attr)
    functions = {name for name in called if not re.fullmatch(r"[A-Z0-9_]+", name)}  # constants are no calls
    drawing = {"fillConvexPoly", "line", "setNumThreads", "warpAffine"}
    regions = {"approxPolyDP", "arcLength", "connectedComponentsWithStats", "contourArea", "convexHull", "findContours"}
    assert functions == drawing | regions
