"""What is committed under k8s/rendered/ is what the overlays give."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

RENDER = Path(__file__).parents[2] / "k8s" / "render.py"


@pytest.fixture(scope="module")
def render() -> ModuleType:
    specification = importlib.util.spec_from_file_location("render", RENDER)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="NOT COMPARED: kubectl is not installed, so k8s/rendered may be out of date"
)


@needs_kubectl
def test_the_rendered_objects_are_fresh(render: ModuleType) -> None:
    assert render.stale() == [], "run: make manifests"


def test_what_is_out_of_date_is_said(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {folder: (render.RENDERED / f"{name}.yaml").read_text() for name, folder in render.overlays().items()}
    monkeypatch.setattr(render, "render", given.get)  # as above, without kubectl
    shutil.copytree(render.RENDERED, tmp_path / "rendered")
    monkeypatch.setattr(render, "RENDERED", tmp_path / "rendered")
    (tmp_path / "rendered" / "cpu.yaml").write_text("kind: List\n")
    (tmp_path / "rendered" / "old.yaml").write_text("")
    monkeypatch.setattr(sys, "argv", ["render.py", "--check"])
    assert render.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "out of date: cpu.yaml",
        "out of date: old.yaml",
    ]


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_without_kubectl_it_says_so_and_leaves_what_is_there(
    options: list[str],
    render: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cpu.yaml").write_text("kind: List\n")
    monkeypatch.setattr(render, "RENDERED", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["render.py", *options])
    assert render.main() == 1
    assert "kubectl is not installed" in capsys.readouterr().err
    assert (tmp_path / "cpu.yaml").read_text() == "kind: List\n"
