"""The alert rules and the autoscaler's queries on made-up series, judged by Prometheus's own promtool."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.admission import PROTOCOL_ENDPOINT
from service.catalogue import CAPABILITIES

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "observability" / "alerts.yaml"

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)

Series = dict[str, str]


def promtool(folder: Path, series: Series, **expected: Any) -> "subprocess.CompletedProcess[str]":
    """Scrapes every 15 s; `expected`: alert_rule_test or promql_expr_test."""
    content = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                **expected,
            }
        ],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump(content))
    return subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60)


def fires(folder: Path, alert: str, series: Series, at: str) -> bool:
    """Whether an alert fires; promtool is asked whether none does, and says so where one does."""
    silent = promtool(folder, series, alert_rule_test=[{"eval_time": at, "alertname": alert, "exp_alerts": []}])
    assert silent.returncode == 0 or "got:" in silent.stdout + silent.stderr, silent
    return silent.returncode != 0


KSERVE = "equipoise/equipoise-kserve"
UP = 'up{job="equipoise",instance="a"}'
FLIGHT = 'equipoise_requests_in_flight{namespace="x",instance="a"}'


def served(namespace: str, instance: str, version: int, job: str = "equipoise") -> str:
    labels = f'namespace="{namespace}",job="{job}",instance="{instance}",model="m",version="{version}"'
    return f"equipoise_model_info{{{labels}}}"


def slow(endpoint: str) -> Series:
    """Every answer takes between 0.8 and 1.6 s."""
    name = f'equipoise_request_duration_seconds_bucket{{instance="a",endpoint="{endpoint}",le='
    return {f'{name}"0.8192"}}': "0x90", f'{name}"1.6384"}}': "0+60x90", f'{name}"+Inf"}}': "0+60x90"}


def novel(pictures: str) -> Series:
    labels = 'instance="a",model="m",version="1"'
    return {
        f'equipoise_novelty_score_bucket{{{labels},le="0.99"}}': "5x250",
        f"equipoise_novelty_score_count{{{labels}}}": pictures,
    }


@pytest.mark.parametrize(
    ("alert", "series", "at", "expected"),
    [
        ("EquipoiseDown", {UP: "1x20"}, "4m", False),
        ("EquipoiseDown", {UP: "0x20"}, "4m", True),
        ("EquipoiseDown", {'up{job="node"}': "1x20"}, "4m", True),  # no replica is known at all
        ("EquipoiseNoModel", {FLIGHT: "0x20"}, "2m", True),
        ("EquipoiseNoModel", {FLIGHT: "0x20"}, "45s", False),  # still loading
        ("EquipoiseNoModel", {FLIGHT: "0x20", served("x", "a", 1): "1x20"}, "4m", False),
        ("EquipoiseVersionsDiffer", {served("x", "a", 1): "1x90", served("x", "b", 2): "1x90"}, "20m", True),
        ("EquipoiseVersionsDiffer", {served("x", "a", 1): "1x90", served("y", "b", 2): "1x90"}, "20m", False),
        ("EquipoiseVersionsDiffer", {served("x", "a", 1): "1x90", served("x", "b", 2, KSERVE): "1x90"}, "20m", False),
        *(("EquipoiseSlow", slow(endpoint), "20m", True) for endpoint in (*CAPABILITIES, PROTOCOL_ENDPOINT)),
        ("EquipoiseSlow", slow("metrics"), "20m", False),
        ("EquipoiseNovel", novel("5x20 6x230"), "50m", False),  # one picture in an hour, and it is novel
        ("EquipoiseNovel", novel("5x20 6+1x230"), "50m", True),
    ],
)
def test_an_alert_fires_when_it_should(tmp_path: Path, alert: str, series: Series, at: str, expected: bool) -> None:
    assert fires(tmp_path, alert, series, at) == expected


def test_every_alert_keeps_the_namespace() -> None:
    """In a cluster they are routed by it."""
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            for labels in re.findall(r"\bby \(([^)]*)\)", rule["expr"]):
                assert "namespace" in labels.split(", "), rule["alert"]


def scaling_queries() -> list[str]:
    (adapter,) = yaml.safe_load((ROOT / "k8s" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    (trigger,) = yaml.safe_load(block)["spec"]["triggers"]
    filled = adapter["metricsQuery"].replace("<<.Series>>", "equipoise_accepted_images")
    filled = filled.replace("<<.LabelMatchers>>", 'namespace="equipoise",pod=~"p"').replace("<<.GroupBy>>", "namespace")
    return [filled, trigger["metadata"]["query"]]


@pytest.mark.parametrize("query", scaling_queries())
@pytest.mark.parametrize(("scrapes", "seen"), [("0x7 1024 0x10", 0), ("64x20", 64)])
def test_one_batch_starts_no_replicas_and_load_that_stays_does(
    tmp_path: Path, query: str, scrapes: str, seen: int
) -> None:
    labels = '{namespace="equipoise"}' if "by (namespace)" in query else "{}"
    expected = [{"expr": query, "eval_time": "2m15s", "exp_samples": [{"labels": labels, "value": seen}]}]
    series = {
        'equipoise_accepted_images{namespace="equipoise",job="equipoise",pod="p"}': scrapes,
        # not of the Deployment that is scaled; the adapter is asked for the pods that are
        f'equipoise_accepted_images{{namespace="equipoise",job="{KSERVE}",pod="q"}}': "640x20",
    }
    asked = promtool(tmp_path, series, promql_expr_test=expected)
    assert asked.returncode == 0, asked.stdout + asked.stderr
