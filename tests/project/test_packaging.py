"""The distribution: what pyproject asks for is locked, the wheel carries the code, the service runs without torch."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ASKED = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]


def pins() -> dict[str, str]:
    """Package name -> version that constraints.txt pins for this interpreter."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            (only,) = requirement.specifier
            assert only.operator == "==", line
            assert requirement.name not in found, f"{requirement.name} is pinned twice"
            found[requirement.name] = only.version
    return found


def test_no_folder_of_tests_is_left_out() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    first, *others = PYPROJECT["tool"]["pytest"]["ini_options"]["testpaths"]
    assert (ROOT / first).is_file()
    assert folders == set(others)


@pytest.mark.parametrize("line", ASKED)
def test_every_dependency_is_locked_at_a_version_it_accepts(line: str) -> None:
    asked = Requirement(line)
    if asked.marker is not None and not asked.marker.evaluate(default_environment()):
        pytest.skip(f"not asked for on this machine: {line}")
    assert asked.specifier.contains(pins()[asked.name]), f"{line} is locked at {pins()[asked.name]}"


def test_what_comes_with_cuda_is_locked_too() -> None:
    """By version alone, so that any build of torch fits; no image leaves a version to the day of its build."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines
    locked = {Requirement(line).name for line in lines}
    asked = {"nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cufft"}
    assert asked | {"nvidia-curand", "nvidia-nvjitlink", "nvidia-nccl-cu13", "triton"} <= locked


def test_the_extras_are_the_documented_ones() -> None:
    assert set(EXTRAS) == {"cpu", "gpu", "training", "figures", "otel", "test"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_carries_the_code_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"contract/manifest.py", "service/app.py", "training/configs/equivae-digits.yaml"} <= set(names)
    assert {name.split("/")[0] for name in names} == {
        "contract",
        "service",
        "training",
        f"equipoise-{PROJECT['version']}.dist-info",
    }
    assert not [name for name in names if name.endswith((".onnx", ".npz", ".pt", ".pyc"))]


def test_the_installed_wheel_starts_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel)]
    subprocess.run(install, check=True)
    done = subprocess.run(
        [sys.executable, "-c", "import service, sys; print(service.__file__); import service.__main__"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "service" / "__init__.py")


def test_the_service_imports_neither_torch_nor_training() -> None:
    program = (
        "import sys, service.app, service.__main__;"
        "print('fastapi' in sys.modules);"  # which is imported while models are read
        "import service.api;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'training', 'sklearn', 'scipy'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "[]"]


@pytest.mark.parametrize(("larger", "smaller"), [("test", "train"), ("test", "serve"), ("train", "serve")])
def test_an_environment_is_not_installed_twice(tmp_path: Path, larger: str, smaller: str) -> None:
    """What `make test` has installed is enough for `make serve` and `make train`."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho installed >&2\n")
    python.chmod(0o755)
    for target, told in ((larger, "installed\n"), (smaller, "")):
        make = ["make", "--silent", f"VENV={tmp_path}", f"{tmp_path}/.{target}"]
        done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stderr == told, target


def test_an_environment_that_was_half_made_is_made_again(tmp_path: Path) -> None:
    """As on a Debian without python3-venv, and after it has been installed."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho made >&2\nmkdir -p "$3/bin"\ntouch "$3/bin/python"\nexit 1\n')
    python.chmod(0o755)
    venv = tmp_path / "venv"
    for _ in range(2):
        make = ["make", "--silent", f"PYTHON={python}", f"VENV={venv}", f"{venv}/.serve"]
        done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode != 0 and done.stderr.startswith("made\n"), done.stderr
