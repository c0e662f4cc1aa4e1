"""Hold a built image to its promises: `python3 docker/check_image.py ROOT IMAGE.json --target cpu --beyond-base-mb N`.

ROOT is the image's unpacked root, IMAGE.json what `buildah inspect --type image` says of it. The service is started as
the image says (entry point, environment, numeric user), without capabilities, on a root mounted read-only with only
/tmp writable, as process 1 of a process namespace; it is called over HTTP, sent the image's stop signal, and must end
with 0. Standard library only: it runs with the machine's own Python.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

MOST_MB_BEYOND_BASE = {"cpu": 350}
NOT_IN_AN_IMAGE = ("pip", "pip3", "gcc", "cc", "ld", "make", "curl", "git")
PACKAGES_NOT_SERVED = ("torch", "pip", "setuptools", "sklearn")
PICTURE = Path("examples/digit-7.png")
READY_SECONDS = 60
STOP_SECONDS = 30


def check_configuration(config: dict) -> None:
    user, _, group = config["User"].partition(":")
    assert user.isdigit() and int(user) >= 10_000 and group.isdigit(), f"not a numeric, unprivileged user: {user}"
    assert isinstance(config["Entrypoint"], list) and config["Entrypoint"][0].startswith("/"), (
        "entry point not in exec form"
    )
    assert config["StopSignal"] in ("SIGTERM", "15"), config["StopSignal"]
    assert config["Labels"]["org.opencontainers.image.title"] == "equipoise"
    assert not any(line.startswith(("PIP_", "SSL_", "http_proxy")) for line in config["Env"]), config["Env"]


def check_contents(root: Path, target: str) -> None:
    for folder in ("usr/local/bin", "usr/bin", "bin", "opt/equipoise/bin"):
        for name in NOT_IN_AN_IMAGE:
            assert not os.path.lexists(root / folder / name), f"{folder}/{name} is in the image"
    site_packages = next((root / "opt/equipoise/lib").glob("python3*/site-packages"))
    unwanted = [] if target == "training" else [name for name in PACKAGES_NOT_SERVED if (site_packages / name).exists()]
    assert not unwanted, f"{unwanted} in the image"
    for secret in ("run/secrets/ca.pem", "etc/apt/apt.conf.d/90build", "etc/pip.conf"):
        left = root / secret
        assert not left.exists() or left.stat().st_size == 0, f"{secret} of the build is in the image"


def in_root(root: Path, config: dict, command: list[str], *, isolated: bool) -> list[str]:
    """A command that runs `command` inside the root as the image's user; isolated: in namespaces of its own, on a
    read-only root.
    """
    user, _, group = config["User"].partition(":")
    path = shlex.quote(str(root))
    inside = shlex.join(
        ["setpriv", "--no-new-privs", "chroot", f"--userspec={user}:{group}", f"--groups={group}", str(root)]
        + ["env", "--ignore-environment", *config["Env"], *command]
    )
    if not isolated:
        return ["sh", "-c", f"exec {inside}"]
    mounts = (
        f"mount --bind {path} {path} && mount -o remount,bind,ro {path} && mount -t tmpfs tmpfs {path}/tmp"
        f" && mount -t proc proc {path}/proc && mount -t tmpfs tmpfs {path}/dev"
        f" && touch {path}/dev/null {path}/dev/urandom"
        f" && mount --bind /dev/null {path}/dev/null && mount --bind /dev/urandom {path}/dev/urandom"
    )
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", f"{mounts} && exec {inside}"]


def can_isolate() -> bool:
    probe = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(probe, capture_output=True).returncode == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def get(url: str, body: bytes | None = None) -> dict:
    headers = {} if body is None else {"Content-Type": "image/png"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        return json.load(answer)


def wait_ready(url: str, process: subprocess.Popen) -> float:
    start = time.monotonic()
    while time.monotonic() - start < READY_SECONDS:
        assert process.poll() is None, f"the service ended with {process.returncode} before it was ready"
        with contextlib.suppress(OSError):
            get(f"{url}/readyz")
            return time.monotonic() - start
        time.sleep(0.1)
    raise AssertionError(f"not ready after {READY_SECONDS} s")


def innermost(pid: int) -> int:
    """The process at the end of a chain of single children: the service below unshare."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def check_process(pid: int, user: str, *, isolated: bool) -> None:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert set(status["Uid"].split()) == {user}, f"runs as {status['Uid']}"
    assert int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1", "has privileges"
    if isolated:
        mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        writable = sorted(fields[4] for fields in mounts if "ro" not in fields[5].split(","))
        assert set(writable) <= {"/tmp", "/proc", "/dev", "/dev/null", "/dev/urandom"}, f"writable: {writable}"


def check_service(root: Path, config: dict, *, isolated: bool) -> None:
    port = free_port()
    config = config | {
        "Env": [*config["Env"], f"EQUIPOISE_PORT={port}", "EQUIPOISE_HOST=127.0.0.1", "EQUIPOISE_DEVICE=auto"]
    }
    url = f"http://127.0.0.1:{port}"
    checked = subprocess.run(in_root(root, config, [*config["Entrypoint"], "check"], isolated=isolated))
    assert checked.returncode == 0, "`check` refuses the image's own models"
    with running(in_root(root, config, config["Entrypoint"], isolated=isolated)) as process:
        seconds = wait_ready(url, process)
        pid = innermost(process.pid)
        check_process(pid, config["User"].partition(":")[0], isolated=isolated)
        answer = get(f"{url}/classify", PICTURE.read_bytes())
        assert answer["label"] == "7", answer
        health = config["Healthcheck"]["Test"]
        assert health[0] == "CMD", "health check not in exec form"
        assert subprocess.run(in_root(root, config, health[1:], isolated=False)).returncode == 0, "health check fails"
        os.kill(pid, signal.Signals[config["StopSignal"]] if config["StopSignal"].startswith("SIG") else signal.SIGTERM)
        status = process.wait(STOP_SECONDS)
    assert status == 0, f"SIGTERM: exit status {status}"
    print(f"ran: ready after {seconds:.1f} s, /classify said {answer['label']}, SIGTERM ended it with 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--target", required=True, choices=["cpu", "gpu", "training"])
    parser.add_argument("--beyond-base-mb", required=True, type=int)
    options = parser.parse_args()
    image = json.loads(options.image.read_text())
    config = image["Docker"]["config"]
    check_configuration(config)
    check_contents(options.root, options.target)
    most = MOST_MB_BEYOND_BASE.get(options.target)
    assert most is None or options.beyond_base_mb <= most, (
        f"{options.beyond_base_mb} MB beyond the base, at most {most}"
    )
    isolated = can_isolate()
    if not isolated:
        print("########  this machine allows no mounts: the image runs on a writable root  ########", file=sys.stderr)
    if options.target == "training":
        helped = in_root(options.root, config, [*config["Entrypoint"], "--help"], isolated=isolated)
        assert subprocess.run(helped, stdout=subprocess.DEVNULL).returncode == 0
    else:
        check_service(options.root, config, isolated=isolated)


if __name__ == "__main__":
    main()
