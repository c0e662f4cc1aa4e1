"""The report of an evaluation: figures with their split, seed and sample count, as a table and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from training.run import LoadedRun

__all__ = ["Measurement", "Report", "describe", "print_report"]

WIDE = 120  # columns of a terminal from which on how a figure was measured stands beside it, and not below
MISTAKES_SHOWN = 5  # pairs of classes


@dataclass(frozen=True)
class Measurement:
    """One number. n: images it is a mean over; how: the protocol in a few words."""

    name: str
    value: float
    unit: str
    split: str
    n: int
    seed: int
    how: str


@dataclass
class Report:
    """All figures of one run; `details` holds what is longer than a number."""

    model: dict[str, Any]
    figures: list[Measurement] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> float:
        """The figure of that name, which there must be."""
        return next(figure.value for figure in self.figures if figure.name == name)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold: None for a number that is not finite, as in a manifest."""
        figures = [asdict(figure) for figure in self.figures]
        return _finite({"model": self.model, "figures": figures, "details": self.details})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(run: LoadedRun) -> dict[str, Any]:
    """The run that a report is of; an export takes only the figures whose sha256 is that of its own weights."""
    return {
        "run": run.folder.name,
        "sha256": run.sha256(),
        "name": run.config.name,
        "recipe": run.config.recipe,
        "seed": run.config.fit.seed,
        "step": run.step,
        "minutes": run.minutes,
        "parameters": run.parameters,
        "data": run.data,
    }


def print_report(report: Report, console: Console) -> None:
    model = report.model
    title = (
        f"{model['name']}, recipe {model['recipe']}, seed {model['seed']}, {model['parameters']:,} parameters; "
        f"evaluation seed {report.figures[0].seed}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value", "split", "n"):
        table.add_column(column, no_wrap=True)
    wide = console.width >= WIDE
    if wide:
        table.add_column("how")
    for figure in report.figures:
        value = f"{figure.value:.4g} {figure.unit}".strip()
        cells = [figure.name, value, figure.split, f"{figure.n:,}"]
        table.add_row(*cells, *([figure.how] if wide else []))
    console.print(table)
    lines = [] if wide else [f"{figure.name}: {figure.how}" for figure in report.figures]
    if kl := report.details.get("kl_per_dimension"):
        lines.append("KL of every dimension of v, nats: " + "  ".join(f"{value:.2f}" for value in kl))
    if wrong := report.details.get("mistakes"):
        pairs = Counter((mistake["class"], mistake["read_as"]) for mistake in wrong).most_common(MISTAKES_SHOWN)
        often = ", ".join(f"{true} as {read_as} ({count})" for (true, read_as), count in pairs)
        lines.append(f"read wrongly most often: {often}; every such picture is in the JSON file, under details")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
