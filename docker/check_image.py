"""Hold a built image to its promises: `python3 docker/check_image.py ROOT IMAGE.json --target cpu --beyond-base-mb N`.

ROOT is the image's unpacked root, IMAGE.json what `buildah inspect --type image` says of it. The service is started as
the image says (entry point, environment, numeric user), without capabilities, on a root mounted read-only with only
/tmp writable, as process 1 of a process namespace; every endpoint of its OpenAPI document is called over HTTP, and
every kind of warp, which would end a process whose OpenCV lacks something; it is sent the image's stop signal, and must
end with 0. Standard library only: it runs with the machine's own Python.
"""

import argparse
import base64
import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

MOST_MB_BEYOND_BASE = {"cpu": 350}
NOT_IN_AN_IMAGE = ("pip", "pip3", "gcc", "cc", "ld", "make", "curl", "git")
PACKAGES_NOT_SERVED = ("torch", "pip", "setuptools", "sklearn")
CONSTRAINTS = Path("constraints.txt")
PICTURE = Path("examples/digit-7.png")
STYLE = Path("examples/digit-4.png")
RESAMPLE = ("nearest", "bilinear", "bicubic", "lanczos")
FILL = ("auto", "transparent", "204060")
# PNG's numbers of colour types: grey, colours, grey and colours with transparency; bits a value
KINDS = ((0, 8), (0, 16), (2, 8), (4, 8), (6, 8))
SIDE = 40
LARGE_SIDE = 1100  # beyond a tile of the warp, 1,024 pixels
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
    loose = not_locked(site_packages, CONSTRAINTS.read_text())
    assert not loose, f"not as constraints.txt has it: {loose}"
    for secret in ("run/secrets/ca.pem", "etc/apt/apt.conf.d/90build", "etc/pip.conf"):
        left = root / secret
        assert not left.exists() or left.stat().st_size == 0, f"{secret} of the build is in the image"


def not_locked(site_packages: Path, constraints: str) -> list[str]:
    """The installed packages, but for our own, that are not of a version that the lock names for some machine."""
    locked = set(re.findall(r"^([\w.-]+==[^\s;]+)", constraints, re.MULTILINE))
    found = []
    for folder in sorted(site_packages.glob("*.dist-info")):
        name, _, version = folder.name.removesuffix(".dist-info").partition("-")
        package = f"{re.sub('[-_.]+', '-', name).lower()}=={version.partition('+')[0]}"  # torch's +cpu is a build
        if package not in locked and name != "equipoise":
            found.append(package)
    return found


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


def png(colour_type: int, bits: int, side: int = SIDE) -> bytes:
    """A slanted stroke on a square."""
    values = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type] * bits // 8
    inked = [[abs(x - y // 2 - side // 4) < side // 10 for x in range(side)] for y in range(side)]
    rows = [b"".join((b"\xff" if ink else b"\x10") * values for ink in row) for row in inked]
    return png_of(rows, colour_type, bits)


def turned_page(side: int = 200) -> bytes:
    """A stroke on a page that a tool has turned by 45 degrees; the corners are black."""

    def level(x: int, y: int) -> int:
        if abs(x) + abs(y) >= side // 2:
            return 0
        return 40 if abs(x) < side // 20 and abs(y) < side // 5 else 230

    half = side // 2
    return png_of([bytes(level(x, y) for x in range(-half, half)) for y in range(-half, half)], *KINDS[0])


def png_of(rows: list[bytes], colour_type: int, bits: int) -> bytes:
    """A square picture of these rows."""
    side = len(rows)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", side, side, bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def ask(url: str, body: bytes | None = None, media_type: str = "image/png") -> bytes:
    headers = {} if body is None else {"Content-Type": media_type}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        return answer.read()


def get(url: str, body: bytes | None = None, media_type: str = "image/png") -> dict:
    return json.loads(ask(url, body, media_type))


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


def check_endpoints(url: str) -> str:
    """Every endpoint of /openapi.json answers, and loading and unloading are refused, as nobody has an admin key; the
    label that /classify gives.
    """
    body = PICTURE.read_bytes()
    said = get(f"{url}/classify", body)
    label = said["label"]
    assert label == "7", f"/classify said {label}"
    asked = {("/classify", "post")}

    def post(path: str, body: bytes, media_type: str = "image/png") -> dict:
        asked.add((path, "post"))
        return get(url + path.format_map(said), body, media_type)

    assert post("/embed", body)["embedding"]
    assert post("/transform", body)["matrix"]
    assert post("/canonicalize", body)["upright"]["data"]
    assert post("/augment", body)["variants"]
    content, style = (base64.b64encode(path.read_bytes()).decode() for path in (PICTURE, STYLE))
    pair = json.dumps({"content": {"data": content}, "style": {"data": style}}).encode()
    assert post("/recombine", pair, "application/json")["image"]["data"]
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [content]}
    message = json.dumps({"inputs": [tensor]}).encode()
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        assert post(path, message, "application/json")["outputs"], path
    assert post("/v2/repository/index", b"{}", "application/json")
    for path in ("/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload"):
        try:
            post(path, b"{}", "application/json")
        except urllib.error.HTTPError as error:
            assert error.code == 403, f"{path}: {error.code}"
        else:
            raise AssertionError(f"{path} is open to everybody")
    offered = {(path, method) for path, methods in get(f"{url}/openapi.json")["paths"].items() for method in methods}
    for path, method in offered:
        if method == "get":
            assert ask(url + path.format_map(said)), f"{path} said nothing"
            asked.add((path, method))
    assert asked == offered, f"not asked, or not offered: {sorted(asked ^ offered)}"
    return label


def check_warps(url: str) -> None:
    """Whatever the service asks OpenCV for."""
    assert get(f"{url}/canonicalize", turned_page())["upright"]["data"]
    for kind, resample, fill in itertools.product(KINDS, RESAMPLE, FILL):
        answer = get(f"{url}/canonicalize?resample={resample}&fill={fill}", png(*kind))
        assert answer["upright"]["width"] >= SIDE, (kind, resample, fill)
    for side in (SIDE, LARGE_SIDE):
        for undo in ("rotation", "all"):
            answer = get(f"{url}/canonicalize?undo={undo}", png(*KINDS[0], side))
            assert answer["upright"]["width"] and answer["upright"]["height"], (side, undo)


def check_who_may_ask(root: Path, config: dict, *, isolated: bool) -> None:
    """As it is, with no word on keys, the service ends at once, and says what to set."""
    asked = in_root(root, config, config["Entrypoint"], isolated=isolated)
    refused = subprocess.run(asked, capture_output=True, text=True, timeout=READY_SECONDS)
    assert refused.returncode == 2, refused
    assert "EQUIPOISE_API_KEYS" in refused.stderr and "EQUIPOISE_ALLOW_ANONYMOUS=true" in refused.stderr, refused
    print("without keys and without EQUIPOISE_ALLOW_ANONYMOUS: refused, and it is said why")


def check_refusal(root: Path, config: dict, *, isolated: bool) -> None:
    """The root has no driver, so a service that was told to take CUDA ends, and says what is missing."""
    asked = in_root(root, config, [*config["Entrypoint"], "check", "--device", "cuda"], isolated=isolated)
    refused = subprocess.run(asked, capture_output=True, text=True)
    assert refused.returncode != 0 and "NVIDIA's driver is not to be seen" in refused.stderr, refused
    print("--device cuda without a driver: refused, and it is said why")


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
        label = check_endpoints(url)
        check_warps(url)
        health = config["Healthcheck"]["Test"]
        assert health[0] == "CMD", "health check not in exec form"
        assert subprocess.run(in_root(root, config, health[1:], isolated=False)).returncode == 0, "health check fails"
        os.kill(pid, signal.Signals[config["StopSignal"]] if config["StopSignal"].startswith("SIG") else signal.SIGTERM)
        status = process.wait(STOP_SECONDS)
    assert status == 0, f"SIGTERM: exit status {status}"
    print(f"ran: ready after {seconds:.1f} s, every endpoint answers, /classify said {label}, SIGTERM ended it with 0")


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
        return
    check_who_may_ask(options.root, config, isolated=isolated)
    # as `docker run --env` gives it
    config = config | {"Env": [*config["Env"], "EQUIPOISE_ALLOW_ANONYMOUS=true"]}
    if options.target == "gpu":
        check_refusal(options.root, config, isolated=isolated)
    check_service(options.root, config, isolated=isolated)


if __name__ == "__main__":
    main()
