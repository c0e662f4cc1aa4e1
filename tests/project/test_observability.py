"""Alerts and dashboard: held to Prometheus' own tools, and to the metrics that a service really exposes."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.catalogue import CAPABILITIES
from service.errors import problem_types
from service.middleware import PROBE_PATHS
from service.settings import Settings
from tests.server import running_server
from tests.service import tiny

FOLDER = Path(__file__).parents[2] / "observability"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [rule["expr"] for rule in RULES] + QUERIES

METRIC = re.compile(r"\b(?P<name>(?:equipoise|process)_\w+)(?:\{(?P<labels>[^}]*)\})?")


def promtool(*arguments: str, given: str | None = None) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([tool, *arguments], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The metrics of a service that has had a few requests."""
    store = tmp_path_factory.mktemp("store")
    tiny.write(store)
    with running_server(Settings(model_store=store)) as url, httpx.Client(base_url=url, trust_env=False) as client:
        for capability in CAPABILITIES:
            client.post(f"/{capability}", content=tiny.png())
        client.post("/classify", content=b"?")
        client.post("/v2/models/tiny/infer", content=bytes(256), headers={"Inference-Header-Content-Length": "0"})
        for path in PROBE_PATHS:
            client.get(path)
        return client.get("/metrics").text


@pytest.fixture(scope="module")
def families(exposed: str) -> dict[str, set[str]]:
    """Sample name -> its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposed):
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(family.type, ("",))
        for suffix in suffixes:
            found[family.name + suffix] = set()
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_that_is_asked_for_is_exposed(families: dict[str, set[str]], expression: str) -> None:
    asked = list(METRIC.finditer(expression))
    names = {match["name"] for match in asked}
    assert names <= set(families) or "up{" in expression, names - set(families)
    for match in asked:
        labels = set(re.findall(r"(\w+)\s*[=!]=?~?\s*\"", match["labels"] or ""))
        known = families[match["name"]] | {"instance", "job"}
        if families[match["name"]]:  # a distribution that no tiny model has shows none
            assert labels <= known, (match["name"], labels - known)


def test_labels_that_alerts_choose_by_are_real(exposed: str) -> None:
    slugs = {kind.slug for kind in problem_types()}
    for rule in RULES:
        for slug in re.findall(r'type="([^"]+)"', rule["expr"]):
            assert slug in slugs
        for endpoints in re.findall(r'endpoint[=!]~"([^"]+)"', rule["expr"]):
            for endpoint in endpoints.split("|"):
                assert f'endpoint="{endpoint}"' in exposed
        for bound in re.findall(r'le="([^"]+)"', rule["expr"]):
            assert f'le="{bound}"' in exposed
    assert 'provider="CPUExecutionProvider"' in exposed


def test_the_exposition_passes_prometheus_lint(exposed: str) -> None:
    promtool("check", "metrics", given=exposed)


def test_the_alerts_are_valid_and_complete() -> None:
    promtool("check", "rules", str(FOLDER / "alerts.yaml"))
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_the_dashboards_queries_are_valid(tmp_path: Path) -> None:
    filled = [
        query.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$model", ".*") for query in QUERIES
    ]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(filled)]
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))


def test_the_dashboard_is_what_its_script_writes() -> None:
    assert runpy.run_path(str(FOLDER / "make_dashboard.py"))["dashboard"]() == DASHBOARD
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)


def test_a_heat_map_is_of_one_histogram() -> None:
    """Of several Grafana draws the last."""
    maps = [panel for panel in DASHBOARD["panels"] if panel["type"] == "heatmap"]
    assert maps
    for panel in maps:
        (target,) = panel["targets"]
        assert target["expr"].startswith("sum by (le) (") and 'model=~"$model"' in target["expr"]
    assert "model" in {variable["name"] for variable in DASHBOARD["templating"]["list"]}


FIRING: list[tuple[str, dict[str, str], bool]] = [
    ("EquipoiseDown", {'up{job="equipoise",instance="a"}': "0x60"}, True),
    ("EquipoiseDown", {'up{job="equipoise",instance="a"}': "1x60"}, False),
    ("EquipoiseNoModel", {'equipoise_requests_in_flight{instance="a"}': "1x60"}, True),
    (
        "EquipoiseNoModel",
        {
            'equipoise_requests_in_flight{instance="a"}': "1x60",
            'equipoise_model_info{instance="a",model="m",version="1"}': "1x60",
        },
        False,
    ),
    (
        "EquipoiseFailing",
        {
            'equipoise_requests_total{instance="a",endpoint="classify",status="200"}': "0+600x60",
            'equipoise_requests_total{instance="a",endpoint="classify",status="500"}': "0+60x60",
        },
        True,
    ),
    (
        "EquipoiseFailing",
        {'equipoise_requests_total{instance="a",endpoint="classify",status="429"}': "0+600x60"},
        False,
    ),
    (
        "EquipoiseFailing",  # waits for its first model
        {
            'equipoise_requests_total{instance="a",endpoint="readyz",status="503"}': "0+30x60",
            'equipoise_requests_total{instance="a",endpoint="healthz",status="200"}': "0+6x60",
        },
        False,
    ),
    (
        "EquipoiseFailing",  # nobody but one client asks, and every time in vain
        {
            'equipoise_requests_total{instance="a",endpoint="readyz",status="200"}': "0+300x60",
            'equipoise_requests_total{instance="a",endpoint="classify",status="504"}': "0+1x60",
        },
        True,
    ),
    ("EquipoiseRefusing", {'equipoise_problems_total{instance="a",type="queue-full"}': "0+600x60"}, True),
    ("EquipoiseRefusing", {'equipoise_problems_total{instance="a",type="not-found"}': "0+600x60"}, False),
    (
        "EquipoiseSlow",
        {
            'equipoise_request_duration_seconds_bucket{instance="a",endpoint="classify",le="0.8192"}': "0+60x60",
            'equipoise_request_duration_seconds_bucket{instance="a",endpoint="classify",le="3.2768"}': "0+120x60",
            'equipoise_request_duration_seconds_bucket{instance="a",endpoint="classify",le="+Inf"}': "0+120x60",
        },
        True,
    ),
    (
        "EquipoiseNodesOnCpu",
        {
            'equipoise_graph_nodes{instance="a",model="m",capability="c",provider="CPUExecutionProvider"}': "2x60",
            'equipoise_graph_nodes{instance="a",model="m",capability="c",provider="CUDAExecutionProvider"}': "30x60",
        },
        True,
    ),
    (
        "EquipoiseNodesOnCpu",
        {'equipoise_graph_nodes{instance="a",model="m",capability="c",provider="CPUExecutionProvider"}': "2x60"},
        False,
    ),
    ("EquipoiseNoGpu", {'equipoise_device_fallback{instance="a"}': "1x60"}, True),
    ("EquipoiseNoGpu", {'equipoise_device_fallback{instance="a"}': "0x60"}, False),
    (
        "EquipoiseNovel",
        {
            'equipoise_novelty_score_bucket{instance="a",model="m",version="1",le="0.99"}': "0+50x60",
            'equipoise_novelty_score_count{instance="a",model="m",version="1"}': "0+100x60",
        },
        True,
    ),
]


@pytest.mark.parametrize(("alert", "series", "fires"), FIRING)
def test_alerts_fire_when_they_should(tmp_path: Path, alert: str, series: dict[str, str], fires: bool) -> None:
    rule = next(rule for rule in RULES if rule["alert"] == alert)
    group = {"name": "one", "rules": [{"alert": alert, "expr": f"vector(1) and on () ({rule['expr']})"}]}
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [group]}))
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": "55m", "alertname": alert, "exp_alerts": [{"exp_labels": {}}] if fires else []}
        ],
    }
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "tests.yaml").write_text(json.dumps(tests))
    promtool("test", "rules", str(tmp_path / "tests.yaml"))
