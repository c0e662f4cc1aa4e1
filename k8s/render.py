"""Render every overlay into k8s/rendered/: `python k8s/render.py`, or with `--check` only say what is out of date.

What is committed there is what the tests read and what `kubectl apply -f` takes. The alert rules and the dashboard are
taken from observability/, in the form that the overlay needs. Needs kubectl (kustomize is built in).
"""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
RENDERED = HERE / "rendered"
OBSERVABILITY = HERE.parent / "observability"
RULE_HEAD = """\
# Written by k8s/render.py from observability/alerts.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: equipoise
spec:
"""


class Missing(Exception):
    """No kubectl on this machine."""


def derived() -> dict[Path, str]:
    """Files of the overlays that are made from others."""
    overlay = HERE / "overlays" / "observability"
    return {
        overlay / "prometheus-rule.yaml": RULE_HEAD
        + textwrap.indent((OBSERVABILITY / "alerts.yaml").read_text(), "  ", lambda line: bool(line.strip())),
        overlay / "dashboard.json": (OBSERVABILITY / "dashboard.json").read_text(),
    }


def overlays() -> dict[str, Path]:
    """Name of the rendered file -> folder with its kustomization."""
    named = {path.parent.name: path.parent for path in sorted((HERE / "overlays").glob("*/kustomization.yaml"))}
    for variant in ("cpu", "gpu", "files"):
        named[f"training-{variant}"] = HERE / "training" / variant
    return named


def render(folder: Path) -> str:
    """
    Raises:
        Missing: kubectl is not installed.
        subprocess.CalledProcessError: the kustomization is wrong; kubectl has said why on standard error.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise Missing("kubectl is not installed: nothing was rendered or compared")
    return subprocess.run([kubectl, "kustomize", str(folder)], check=True, stdout=subprocess.PIPE, text=True).stdout


def stale() -> list[str]:
    """The files that are not what their overlay gives, that no overlay gives any more, or that are missing."""
    copies = [path.name for path, text in derived().items() if not path.exists() or path.read_text() != text]
    if copies:
        return copies
    wanted = {f"{name}.yaml": render(folder) for name, folder in overlays().items()}
    present = {path.name: path.read_text() for path in RENDERED.glob("*.yaml")}
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def main() -> int:
    try:
        if sys.argv[1:] == ["--check"]:
            out_of_date = stale()
            print(*(f"out of date: {name}" for name in out_of_date), sep="\n")
            return 1 if out_of_date else 0
        for path, text in derived().items():
            path.write_text(text)
        # All of them before one is touched: what cannot be rendered leaves what was there.
        rendered = {f"{name}.yaml": render(folder) for name, folder in overlays().items()}
        RENDERED.mkdir(exist_ok=True)
        for path in RENDERED.glob("*.yaml"):
            path.unlink()
        for name, text in rendered.items():
            (RENDERED / name).write_text(text)
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
