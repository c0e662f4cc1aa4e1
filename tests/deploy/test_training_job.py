"""The training jobs' own commands: a process is evicted in the middle, the next goes on and exports, and a running
service takes the new version up without losing a request.
"""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from service.settings import Settings
from tests.deploy.manifests import environment, load, pods
from tests.forked import ForkedProcess
from tests.server import running_server
from tests.service.process import environment as clean_environment
from tests.training import process as training_process
from training.__main__ import INTERRUPTED, app

ROOT = Path(__file__).parents[2]
MODEL = "equivae-digits"
CHECKPOINT_STEPS = 5
SMALLER = (
    "fit.steps=70",
    f"fit.checkpoint_steps={CHECKPOINT_STEPS}",
    "model.encoder.filters=[8,8,8]",
    "model.encoder.hidden=16",
    "model.posterior.widths=[16]",
    "model.decoder.widths=[16]",
)
WAIT_SECONDS = 120
PICTURE = (ROOT / "examples" / "digit-7.png").read_bytes()

pytestmark = pytest.mark.timeout(400)

Container = dict[str, Any]
Process = subprocess.Popen[bytes] | ForkedProcess


class Job:
    """The containers of a rendered job; volumes and the image's own folders lie under `folder`."""

    def __init__(self, overlay: str, folder: Path, **extra: str) -> None:
        self._objects = load(overlay)
        self._paths = {
            "/runs": folder / "runs",
            "/models": folder / "models",
            "/configs": ROOT / "training" / "configs",
        }
        self._programs = {"/opt/equipoise/bin/torchrun": [sys.executable, "-m", "torch.distributed.run"]}
        self._extra = extra
        (pod,) = pods(self._objects)
        self.containers: list[Container] = pod.containers()

    def command(self, container: Container) -> tuple[list[str], dict[str, str]]:
        """Its words and its variables, with this machine's paths."""
        # the entry point of the image's target `training`
        entry = container.get("command", [sys.executable, "-m", "training"])
        words = [word for part in entry for word in self._programs.get(part, [part])]
        given = {name: self._here(value) for name, value in environment(self._objects, container).items()}
        return words + [self._here(word) for word in container["args"]], given

    @contextmanager
    def running(self, container: Container, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        words, given = self.command(container)
        with log.open("wb") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=file, cwd=log.parent, env=clean_environment(**given, **self._extra)
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def forked(self, container: Container) -> tuple[list[str], dict[str, str]]:
        """The arguments of `python -m training` and its environment, for tests/training/process.py."""
        words, given = self.command(container)
        return words[words.index("training") + 1 :], clean_environment(**given, **self._extra)

    def run_here(self, container: Container) -> Result:
        """The same in this process, which has PyTorch imported; of a container with the image's entry point."""
        words, given = self.command(container)
        return CliRunner().invoke(app, words[3:], env=given | self._extra, catch_exceptions=False)

    def _here(self, word: str) -> str:
        for there, here in self._paths.items():
            if word == there or word.startswith(f"{there}/"):
                return str(here) + word.removeprefix(there)
        return word


def eventually(holds: Callable[[], Any], process: Process | None = None) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, f"ended with {process.poll()}"
        time.sleep(0.02)


def evict(process: Process, run: Path) -> int | None:
    """As a kubelet does, once the run has a checkpoint beyond its first; the status that it ends with in time."""
    eventually(lambda: any(int(path.name.split("-")[1]) > CHECKPOINT_STEPS for path in checkpoints(run)), process)
    process.send_signal(signal.SIGTERM)
    status = process.wait(60)
    assert checkpoints(run) and not (run / "model.pt").exists()
    return status


def checkpoints(run: Path) -> list[Path]:
    return list(run.glob("checkpoint-*.pt"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[httpx.Client]:
    """A service on the volume that the job exports to; it serves version 1."""
    store = tmp_path / "models"
    shutil.copytree(ROOT / "model_store" / MODEL / "1", store / MODEL / "1")
    with (
        running_server(Settings(model_store=store, model_poll_seconds=0.2)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        yield client


def test_an_evicted_job_goes_on_and_a_running_service_takes_its_model_up(tmp_path: Path, service: httpx.Client) -> None:
    job = Job("training-cpu", tmp_path, EQUIPOISE_TRAINING_SET=" ".join(SMALLER))
    train, evaluate, export = job.containers
    assert evaluate["args"] == ["evaluate", *export["args"][1:2]]  # a minute of measuring, which has tests of its own
    arguments, variables = job.forked(train)
    with training_process.started(arguments, variables, tmp_path / "evicted.log") as process:
        # not -SIGTERM: of a container's first process the kernel keeps a signal that nobody handles
        assert evict(process, tmp_path / "runs" / MODEL) == INTERRUPTED
    assert "go on with --resume" in (tmp_path / "evicted.log").read_text()

    versions: list[int] = []
    with asking(service, versions):
        resumed, exported = job.run_here(train), job.run_here(export)
    assert resumed.exit_code == 0 and "resumed at step" in resumed.output, resumed.output
    assert exported.exit_code == 0, exported.output
    deadline = time.monotonic() + WAIT_SECONDS
    while versions[-1] == 1 and time.monotonic() < deadline:
        versions.append(classified(service))
    assert versions == sorted(versions) and {*versions} == {1, 2}
    assert f"{MODEL}/2" in service.get("/readyz").json()["models"]


@contextmanager
def asking(service: httpx.Client, versions: list[int]) -> Iterator[None]:
    """Ask on and on meanwhile, and note the versions that answer; an answer that is not good is raised in the end."""
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            versions.append(classified(service))

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            yield
        finally:
            enough.set()
        asked.result()


def classified(service: httpx.Client) -> int:
    """The version that answered; every answer must be good."""
    time.sleep(0.2)
    answer = service.post("/classify", content=PICTURE, headers={"Content-Type": "image/png"}).raise_for_status()
    return int(answer.json()["version"])


def test_a_job_on_two_devices_goes_on_too(tmp_path: Path) -> None:
    """The GPU job's torchrun command and its two processes; only the accelerator is this machine's. The second time the
    processes are started without torchrun.
    """
    job = Job("training-gpu", tmp_path)
    train = job.containers[1]
    assert train["resources"]["limits"]["nvidia.com/gpu"] == 2
    settings = set_by(train)
    assert "fit.accelerator=cuda" in settings["value"] and "fit.devices=2" in settings["value"]
    settings["value"] = " ".join([settings["value"].replace("accelerator=cuda", "accelerator=cpu"), *SMALLER])
    run = tmp_path / "runs" / MODEL
    with job.running(train, tmp_path / "evicted.log") as process:
        assert evict(process, run) != 0
    log = tmp_path / "train.log"
    assert training_process.run_ranks(2, *job.forked(train), log, WAIT_SECONDS) == [0, 0], log.read_text()
    assert "resumed at step" in log.read_text()
    assert (run / "model.pt").exists()


def test_a_wrong_configuration_ends_the_job_on_two_devices_before_torchrun(tmp_path: Path) -> None:
    job = Job("training-gpu", tmp_path)
    first, train = job.containers[:2]
    assert first["env"][-1] == set_by(train) and first["args"][:2] == train["args"][2:4]
    set_by(first)["value"] += " fit.batch=15"
    ended = job.run_here(first)
    assert ended.exit_code == 2, ended.output
    assert "balanced order needs a batch" in ended.output


def set_by(container: Container) -> dict[str, str]:
    """The variable of a container with its changes of the configuration."""
    (entry,) = [each for each in container["env"] if each["name"] == "EQUIPOISE_TRAINING_SET"]
    found: dict[str, str] = entry
    return found
