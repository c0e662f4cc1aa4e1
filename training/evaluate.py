"""The table of a run: every figure with its split, seed and sample count, printed and as JSON.

The validation split is measured unless the test split is asked for by name: the figure of the test split is read once,
at the end.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from training.datasets.images import first_of_each_class
from training.errors import DataError, RunError
from training.evaluation.equivae import EquiVAEEvaluation
from training.evaluation.options import Options
from training.evaluation.pose import PoseEvaluation
from training.evaluation.report import Report, print_report
from training.files import make_folder, write_atomically
from training.models.registry import KINDS
from training.run import load_run

__all__ = ["EVALUATION_FILE", "QUICK_FILE", "evaluate"]

EVALUATION_FILE = "evaluation-{split}.json"
QUICK_FILE = "quick-{split}.json"  # of a part of the split: no figure for a model folder


def evaluate(
    run: Path, output: Path | None = None, options: Options | None = None, console: Console | None = None
) -> Report:
    """Measure a finished run, write the table as JSON and print it.

    Args:
        output: the JSON file; by default evaluation-SPLIT.json in the run's folder, which an export copies into the
            manifest, or quick-SPLIT.json where `options.limit` leaves out a part of the split.

    Raises:
        TrainingError: the run is not finished, its data is not there or has changed, there is no such split, an option
            that was given does not apply to the model, a class cannot be held out, or `output` cannot be written; all
            but a full disk is said before anything is measured.
    """
    options = options or Options()
    console = console or Console()
    loaded = load_run(run)
    splits = loaded.splits()
    if options.split not in splits.parts:
        hint = (
            ": put pictures into test/ beside train/, and train anew" if loaded.config.data.source == "folder" else ""
        )
        raise DataError(f"{splits.name} has no {options.split} split{hint}")
    name = EVALUATION_FILE if options.limit is None else QUICK_FILE
    target = output or run / name.format(split=options.split)
    make_folder(target.parent)
    if target.is_dir():
        raise RunError(f"{target} is a folder: expected the name of a JSON file")
    data = splits.parts[options.split]
    if options.limit is not None:
        data = first_of_each_class(data, options.limit)
    if KINDS[loaded.config.model.kind].family == "equivae":
        report = EquiVAEEvaluation(loaded, splits, data, options, console).run()
    else:
        report = PoseEvaluation(loaded, splits, data, options, console).run()
    # Printing comes second: it fails where whoever reads the table has left.
    write_atomically(target, (json.dumps(report.as_dict(), indent=2, allow_nan=False) + "\n").encode())
    print_report(report, console)
    console.print(f"written to {target}", highlight=False, soft_wrap=True)
    return report
