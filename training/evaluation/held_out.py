"""Novelty of a class that the model has never seen: one model a left-out class, by the run's own recipe."""

from __future__ import annotations

from rich.console import Console

from training.config import Config
from training.datasets import LabelledImages
from training.errors import DataError
from training.evaluation.classification import NOVEL, serve
from training.evaluation.scores import auroc, percent
from training.fit import train
from training.run import LoadedRun, load_run

__all__ = ["held_out_class", "without_class"]


def held_out_class(
    run: LoadedRun, name: str, data: LabelledImages, epochs: int | None = None, console: Console | None = None
) -> dict[str, float]:
    """Train without the class (or take the model that an earlier call left in the run's folder) and measure.

    Args:
        data: of all the run's classes; what is measured.
        epochs: of that training; by default as long as the run's own. A cosine falls to 0 within them, a batch that
            doubles does so after the epochs that it always does, if there are so many.
    Returns:
        auroc of the served novelty, the class's images against those of the known classes; caught (%), the
        share of its images that are called novel; error (%) and false_alarms (%) of the model without it; n, the images
        of the class.

    Raises:
        TrainingError: no such class, nothing to measure of it, or the training fails.
    """
    config, label = without_class(run, name, data, epochs), run.class_names.index(name)
    folder = run.folder / (f"without-class-{label}" + (f"-{epochs}-epochs" if epochs else ""))
    train(config, folder, resume=folder.exists(), console=console)
    model = load_run(folder).equivae()
    novel = data.images[data.labels == label]
    known = data.without((name,))
    known_served, novel_scores = serve(model, known.images), serve(model, novel).novelty
    return {
        "auroc": auroc(known_served.novelty, novel_scores),
        "caught": percent(novel_scores > NOVEL),
        "error": percent(known_served.distances.argmin(1) != known.labels.numpy()),
        "false_alarms": percent(known_served.novelty > NOVEL),
        "n": len(novel),
    }


def without_class(run: LoadedRun, name: str, data: LabelledImages, epochs: int | None = None) -> Config:
    """The run's configuration for its other classes; a balanced batch keeps its images a class. It begins with no
    other run's weights: those have seen the class.

    Raises:
        DataError: no such class, or what is to be measured, `data`, has no picture of it or of no other.
    """
    if name not in run.class_names:
        raise DataError(f"{run.data['name']}: no class {name!r}; there are {', '.join(run.class_names)}")
    novel = data.labels == run.class_names.index(name)
    if not novel.any() or novel.all():
        lacking = "no picture of another class" if novel.any() else "no picture of it"
        raise DataError(
            f"{run.data['name']}: class {name!r} cannot be held out: the split to be measured has {lacking}"
        )
    kept = run.config.data.model_copy(update={"exclude": (*run.config.data.exclude, name)})
    fit, classes = run.config.fit.model_copy(update={"initial": None}), len(run.class_names)
    if fit.order == "balanced":
        fit = fit.model_copy(update={"batch": fit.batch // classes * (classes - 1)})
    if epochs is not None:
        fit = fit.model_copy(update={"epochs": epochs, "steps": None})
    return run.config.model_copy(update={"data": kept, "fit": fit})
