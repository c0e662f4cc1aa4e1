"""Write `dashboard.json`, Grafana's import format, from the panels below: `python observability/make_dashboard.py`."""

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboard.json"
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_CHOSEN = '{instance=~"$instance"}'
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3


def _quantile(share: float, metric: str, by: str) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{_CHOSEN}[$__rate_interval])))"


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{_CHOSEN}[$__rate_interval]))"


def _buckets(metric: str) -> str:
    """For a heat map, which draws one histogram: of several, such as one a model, Grafana takes the last and leaves out
    the others.
    """
    return f'sum by (le) (increase({metric}_bucket{{instance=~"$instance",model=~"$model"}}[$__rate_interval]))'


# title, unit, kind, (query, legend) ...
PANELS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    (
        "Requests",
        "reqps",
        "timeseries",
        [(_rate("equipoise_requests_total", "endpoint, status"), "{{endpoint}} {{status}}")],
    ),
    ("Problems by type", "reqps", "timeseries", [(_rate("equipoise_problems_total", "type") + " > 0", "{{type}}")]),
    (
        "Latency",
        "s",
        "timeseries",
        [
            (_quantile(0.5, "equipoise_request_duration_seconds", "endpoint"), "{{endpoint}} p50"),
            (_quantile(0.99, "equipoise_request_duration_seconds", "endpoint"), "{{endpoint}} p99"),
        ],
    ),
    (
        "Stages, p99",
        "s",
        "timeseries",
        [(_quantile(0.99, "equipoise_stage_duration_seconds", "stage"), "{{stage}}")],
    ),
    (
        "Time spent by stage",
        "percentunit",
        "timeseries",
        [(_rate("equipoise_stage_duration_seconds_sum", "stage"), "{{stage}}")],
    ),
    (
        "Pictures",
        "short",
        "timeseries",
        [(_rate("equipoise_images_total", "model, capability"), "{{model}}.{{capability}}")],
    ),
    (
        "Pictures in a run, mean",
        "short",
        "timeseries",
        [
            (
                _rate("equipoise_batch_images_sum", "model, capability")
                + " / "
                + _rate("equipoise_batch_images_count", "model, capability"),
                "{{model}}.{{capability}}",
            )
        ],
    ),
    (
        "Run of a graph, p99",
        "s",
        "timeseries",
        [(_quantile(0.99, "equipoise_batch_duration_seconds", "model, capability"), "{{model}}.{{capability}}")],
    ),
    (
        "Waiting for a run",
        "short",
        "timeseries",
        [(f"sum by (model, capability) (equipoise_queue_depth_images{_CHOSEN})", "{{model}}.{{capability}}")],
    ),
    (
        "Accepted, not yet answered",
        "short",
        "timeseries",
        [
            (f"equipoise_accepted_images{_CHOSEN}", "{{instance}} pictures"),
            (f"equipoise_requests_in_flight{_CHOSEN}", "{{instance}} requests"),
        ],
    ),
    (
        "Dropped while waiting",
        "short",
        "timeseries",
        [(_rate("equipoise_dropped_images_total", "reason"), "{{reason}}")],
    ),
    (
        "Connections",
        "short",
        "timeseries",
        [
            (f"equipoise_connections_open{_CHOSEN}", "{{instance}} open"),
            (_rate("equipoise_connections_refused_total", "instance"), "{{instance}} refused a second"),
        ],
    ),
    (
        "Memory",
        "bytes",
        "timeseries",
        [
            (f"process_resident_memory_bytes{_CHOSEN}", "{{instance}} resident"),
            (f"equipoise_accepted_bytes{_CHOSEN}", "{{instance}} accepted"),
        ],
    ),
    ("CPU", "short", "timeseries", [(_rate("process_cpu_seconds_total", "instance"), "{{instance}}")]),
    ("Open files", "short", "timeseries", [(f"process_open_fds{_CHOSEN}", "{{instance}}")]),
    ("Novelty of $model", "short", "heatmap", [(_buckets("equipoise_novelty_score"), "{{le}}")]),
    ("Rotation by $model, degrees", "short", "heatmap", [(_buckets("equipoise_rotation_degrees"), "{{le}}")]),
    (
        "Models",
        "short",
        "table",
        [
            (f"equipoise_model_info{_CHOSEN}", ""),
            (f"equipoise_models_refused{_CHOSEN}", ""),
            (f"equipoise_graph_nodes{_CHOSEN}", ""),
        ],
    ),
]


def _panel(number: int, title: str, unit: str, kind: str, queries: list[tuple[str, str]]) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    targets = [
        {
            "refId": chr(ord("A") + place),
            "expr": expression,
            "legendFormat": legend,
            "datasource": _SOURCE,
            **({"format": "heatmap"} if kind == "heatmap" else {}),
            **({"format": "table", "instant": True} if kind == "table" else {}),
        }
        for place, (expression, legend) in enumerate(queries)
    ]
    return {
        "id": number + 1,
        "title": title,
        "type": kind,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def _choice(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": query,
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    choices = [
        _choice("instance", "label_values(equipoise_requests_in_flight, instance)"),
        _choice("model", "label_values(equipoise_model_info, model)"),
    ]
    return {
        "title": "Equipoise",
        "uid": "equipoise",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *choices]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=2) + "\n")
