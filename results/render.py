"""Make RESULTS.md and the pages of docs/ that have figures from committed JSON: `python results/render.py`; `--check`
only says what is out of date.

A page is made of its template, the file of the same name in results/templates: text that is written by hand, and
Jinja's expressions where a figure stands. Whoever changes the page changes the template. It can use

    model(NAME)      model_store/NAME/manifest.json: .training, .validation (of the training's end), and as
                     .test and .on_validation the figures of `evaluate`, each a plain number
    rows(NAME)       results/NAME.jsonl, one row a finished seed, of the last one's configuration; no file: none
    lines(NAME)      every row of it, those of earlier configurations too
    figures(NAME)    results/NAME.json
    evaluated(NAME)  the same, where `evaluate --output results/NAME.json` wrote it: the figures, each a plain number
    printed(WORDS)   what `python -m WORDS` prints, a command that reads committed JSON
    | places(2)      a number with thousands separated
    | over_seeds("test.error")   mean +- std / sqrt(n - 1) over rows, and their number; "not run" where there are none
"""

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).parents[1]
TEMPLATES = Path(__file__).parent / "templates"
PAGES = ("RESULTS.md", "docs/sizing.md", "docs/bulk.md")


def _model(name: str) -> dict[str, Any]:
    manifest = json.loads((ROOT / "model_store" / name / "manifest.json").read_text())
    evaluations = {"test": "evaluation-test", "on_validation": "evaluation-validation"}
    metrics = {
        key: {figure: value["value"] for figure, value in manifest["metrics"].get(source, {}).items()}
        for key, source in evaluations.items()
    }
    return metrics | {"training": manifest["training"], "validation": manifest["metrics"]["validation"]}


def _lines(name: str) -> list[dict[str, Any]]:
    path = ROOT / "results" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _rows(name: str) -> list[dict[str, Any]]:
    rows = _lines(name)
    return [row for row in rows if row["config"] == rows[-1]["config"]]


def _figures(name: str) -> Any:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def _evaluated(name: str) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in _figures(name)["figures"]}


def _printed(words: str) -> str:
    command = [sys.executable, "-m", *shlex.split(words)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def places(value: float, count: int) -> str:
    return f"{value:,.{count}f}"


def over_seeds(rows: Sequence[dict[str, Any]], path: str, count: int = 2) -> str:
    """The papers' error bar, std / sqrt(n - 1) with the population's std: the standard error of the mean.

    Rows without the figure do not count.
    """
    found: list[Any] = list(rows)
    for key in path.split("."):
        found = [value[key] for value in found if value is not None and key in value]
    values = [float(value) for value in found if value is not None]
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{places(values[0], count)} (one seed)"
    error = statistics.pstdev(values) / (len(values) - 1) ** 0.5
    return f"{places(statistics.fmean(values), count)} ± {places(error, count)} ({len(values)} seeds)"


def rendered(template: str) -> str:
    """A template with every figure filled in.

    Raises:
        jinja2.TemplateError: it is wrong, or asks for a figure that is not there.
    """
    environment = jinja2.Environment(  # noqa: S701 - Markdown, and nothing in it is anybody's input
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals.update(
        model=_model, rows=_rows, lines=_lines, figures=_figures, evaluated=_evaluated, printed=_printed
    )
    environment.filters.update(places=places, over_seeds=over_seeds)
    return environment.from_string(template).render()


def page_of(name: str) -> str:
    """What the page, one of PAGES, has to say."""
    template = TEMPLATES / Path(name).name
    note = f"<!-- Made by results/render.py from {template.relative_to(ROOT)}: change that. -->\n"
    return note + rendered(template.read_text(encoding="utf-8"))


def main(arguments: Sequence[str]) -> int:
    pages = {name: page_of(name) for name in PAGES}
    stale = [name for name, text in pages.items() if (ROOT / name).read_text(encoding="utf-8") != text]
    if "--check" not in arguments:
        for name in stale:
            (ROOT / name).write_text(pages[name], encoding="utf-8")
    elif stale:
        print(f"{', '.join(stale)}: not what the committed JSON says: run python results/render.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
