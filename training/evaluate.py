"""The table of a run: every figure with its split, seed and sample count, printed and as JSON.

The validation split is measured unless the test split is asked for by name: the figure of the test split is read once,
at the end.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from training import measures, probes
from training.checkpoint import make_folder, write_atomically
from training.datasets import LabelledImages, Splits
from training.errors import DataError, RunError
from training.held_out import held_out_class
from training.models.equivae_few import FewLabelEquiVAE
from training.pages import PAGES, read_from_pages
from training.run import MODEL_FILE, LoadedRun, load_run, read_metrics
from training.scores import percent

__all__ = ["EVALUATION_FILE", "Figure", "Options", "Report", "evaluate"]

EVALUATION_FILE = "evaluation-{split}.json"
PROBE_IMAGES = 10_000
WIDE = 120  # columns of a terminal from which on the table says how every figure was measured; the JSON always does
PAGE_IMAGES = {"page": 1000, "photograph": 100}

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Options:
    """What is measured.

    seed: of the classifiers trained here, of the draws of v and of the drawn negatives; the run's own is in the report.
    samples: prior samples, and negatives of each kind. benchmark_epochs: 0 leaves the benchmark CNN out.
    held_out: classes for each of which a model without it is trained, for held_out_epochs or as long as the run itself.
    """

    split: Split = "validation"
    seed: int = 0
    samples: int = 1000
    benchmark_epochs: int = 20
    held_out: tuple[str, ...] = ()
    held_out_epochs: int | None = None


@dataclass(frozen=True)
class Figure:
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
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> float:
        return next(figure.value for figure in self.figures if figure.name == name)

    def as_dict(self) -> dict[str, Any]:
        return {"model": self.model, "figures": [asdict(figure) for figure in self.figures], "details": self.details}


def evaluate(
    run: Path, output: Path | None = None, options: Options | None = None, console: Console | None = None
) -> Report:
    """Measure a finished run, print the table and write it as JSON.

    Args:
        output: the JSON file; by default evaluation-SPLIT.json in the run's folder.

    Raises:
        TrainingError: the run is not finished, its data is not there or has changed, there is no such split, or
            `output` cannot be written; all but a full disk is said before anything is measured.
    """
    options = options or Options()
    console = console or Console()
    loaded = load_run(run)
    splits = loaded.splits()
    if options.split not in splits.parts:
        raise DataError(f"{splits.name} has no {options.split} split")
    target = output or run / EVALUATION_FILE.format(split=options.split)
    make_folder(target.parent)
    if target.is_dir():
        raise RunError(f"{target} is a folder: expected the name of a JSON file")
    report = _Evaluation(loaded, splits, options, console).run()
    _print(report, console)
    write_atomically(target, (json.dumps(report.as_dict(), indent=2) + "\n").encode())
    console.print(f"written to {target}", highlight=False, soft_wrap=True)
    return report


class _Evaluation:
    """One evaluation in progress: the model on its device, the split, and the figures so far."""

    def __init__(self, run: LoadedRun, splits: Splits, options: Options, console: Console) -> None:
        self.loaded, self.splits, self.options, self.console = run, splits, options, console
        self.data: LabelledImages = splits.parts[options.split]
        self.labels = self.data.labels
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = run.equivae().to(device)
        self.report = Report(_describe(run))

    def run(self) -> Report:
        steps = [
            ("distances", self.distances),
            ("ELBO", self.elbo),
            ("independent CNN", self.generation),
            ("probes", self.probes),
            ("novelty", self.novelty),
            ("pages", self.pages),
            ("benchmark CNN", self.benchmark),
        ]
        for name, step in steps:
            with self.console.status(name):
                step()
        self.held_out()  # the loop has a progress bar of its own
        return self.report

    @cached_property
    def encoded(self) -> measures.Encoded:
        return measures.encode(self.model, self.data.images)

    def add(self, name: str, value: float, unit: str, how: str, n: int | None = None, split: str | None = None) -> None:
        count, where = n or len(self.data), split or self.options.split
        self.report.figures.append(Figure(name, float(value), unit, where, count, self.options.seed, how))

    def distances(self) -> None:
        scores = measures.class_scores(self.model, self.data)
        self.add("error_distance", scores["error"], "%", "nearest class mean of the training split, f_inv with m = 1")
        other = measures.hidden_mean_error(self.model, self.splits.train, self.data)
        self.add("error_distance_hidden_mean", other, "%", "the same, class means of the hidden units through the head")
        self.add("ece", scores["ece"], "", "served probabilities, 15 bins; temperature from the validation split")
        self.add("nll", scores["nll"], "nats", "served probabilities")
        if isinstance(self.model, FewLabelEquiVAE):
            wrong = measures.classifier_error(self.model, self.data)
            self.add("error_classifier", wrong, "%", "argmax of q(y|x)")

    def elbo(self) -> None:
        seed = self.options.seed
        reconstruction, kl = measures.elbo_terms(self.model, self.data, seed)
        terms = {"reconstruction": reconstruction, "kl": sum(kl), "elbo": -reconstruction - sum(kl)}
        for name, value in terms.items():
            self.add(name, value, "nats", "r of the training class mean, one draw of v")
        active = sum(value > 0.1 for value in kl)
        self.add("active_dimensions", active, f"of {len(kl)}", "dimensions of v with a mean KL above 0.1 nat")
        self.report.details["kl_per_dimension"] = kl
        self.report.details["curves"] = elbo_curves(self.loaded.folder)
        shares = torch.bincount(self.splits.train.labels, minlength=self.model.num_classes) / len(self.splits.train)
        wrong = measures.elbo_predictions(self.model, self.data, shares, seed) != self.labels.numpy()
        self.add("error_elbo", percent(wrong), "%", "argmax over y of the ELBO, one draw of v")

    def generation(self) -> None:
        seed = self.options.seed
        judge = probes.independent_cnn(self.loaded.folder, self.splits, seed)
        self.add(
            "judge_error",
            judge.validation_error,
            "%",
            "the independent CNN on real images",
            n=len(self.splits.validation),
            split="validation",
        )
        means = self.model.class_means(self.splits.validation)
        share = measures.intended_prior_samples(self.model, means, judge, self.options.samples, seed)
        how = "prior samples of v, r of the validation class mean, that the independent CNN gives the class"
        self.add("intended_prior_samples", share, "%", how, n=self.options.samples, split="validation")
        share = measures.intended_swaps(self.model, self.encoded, self.labels, judge, seed)
        self.add("intended_swaps", share, "%", "swaps that the independent CNN gives the class of the content")

    def probes(self) -> None:
        seed, train = self.options.seed, self.splits.train
        seen = measures.encode(self.model, train.images)
        head = probes.neural_head(seen.r, train.labels, self.model.num_classes, seed)
        wrong = probes.predict(head, self.encoded.r) != self.labels
        self.add("error_neural_head", percent(wrong.numpy()), "%", "dropout dense 128, 64 on frozen f_inv")
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:PROBE_IMAGES]
        for name in ("r", "v"):
            fitted, measured = getattr(seen, name)[chosen], getattr(self.encoded, name)
            accuracy = probes.linear_probe_accuracy(fitted, train.labels[chosen], measured, self.labels)
            how = f"logistic regression on {name}, fitted on {len(chosen):,} training images"
            self.add(f"probe_accuracy_{name}", accuracy, "%", how)

    def novelty(self) -> None:
        found = measures.novelty(self.model, self.data, self.options.samples, self.options.seed)
        self.add("false_alarms", found["known"]["false_alarms"], "%", "images of the split with novelty > 0.99")
        how = "novelty, the split against photograph patches, textures and noise"
        self.add("novelty_auroc", found["all"]["auroc"], "", how, n=len(self.data) + 3 * self.options.samples)
        self.report.details["novelty"] = found
        for kind in ("blanks", "rings", "checkerboards"):
            self.add(f"novel_{kind}", found[kind]["caught"], "%", "drawn, with novelty > 0.99", n=self.options.samples)

    def pages(self) -> None:
        preprocessing = self.loaded.preprocessing
        if preprocessing.polarity != "light" or preprocessing.fit == "image" or self.loaded.input.channels != 1:
            return  # these are no light strokes on a dark ground that could be drawn as ink
        for name, kind in PAGES.items():
            part = self.data.subset(torch.arange(min(PAGE_IMAGES[name], len(self.data))))
            images = read_from_pages(part.images, kind, self.loaded.input, preprocessing, self.options.seed)
            wrong = measures.serve(self.model, images).distances.argmin(1) != part.labels.numpy()
            plain = measures.class_scores(self.model, part)["error"]
            error = percent(wrong)
            self.report.details.setdefault("pages", {})[name] = {"error": error, "plain": plain, "n": len(part)}
            how = f"{kind.how}, {kind.width} x {kind.height}; the same images plain: {plain:.2f} %"
            self.add(f"error_{name}", error, "%", how, n=len(part))

    def benchmark(self) -> None:
        epochs = self.options.benchmark_epochs
        if not epochs:
            return
        network = probes.benchmark_cnn(self.model, self.splits.train, self.options.seed, epochs)
        wrong = probes.predict(network, self.data.images) != self.labels
        how = f"f_inv's body and dropout dense 128, 64, trained on the label alone, {epochs} epochs"
        self.add("error_benchmark_cnn", percent(wrong.numpy()), "%", how)

    def held_out(self) -> None:
        epochs = self.options.held_out_epochs
        length = "as long as this one" if epochs is None else f"for {epochs} epochs"
        found = {
            name: held_out_class(self.loaded, name, self.options.split, epochs, self.console)
            for name in self.options.held_out
        }
        for name, result in found.items():
            how = f"novelty, class {name} against the others, model trained without it {length}"
            self.add(f"novelty_auroc_without_{name}", result["auroc"], "", how)
        if found:
            mean = sum(result["auroc"] for result in found.values()) / len(found)
            self.add("novelty_auroc_held_out", mean, "", f"mean over the held-out classes {', '.join(found)}")
            self.report.details["held_out"] = found


def elbo_curves(run: Path) -> dict[str, dict[str, list[float]]]:
    """The ELBO's terms over the run, in nats: {train, validation} -> {step, epoch, reconstruction, minus_kl}."""
    curves = {}
    for split in ("train", "validation"):
        rows = [row for row in read_metrics(run) if row["split"] == split]
        curves[split] = {
            "step": [row["step"] for row in rows],
            "epoch": [row["epoch"] for row in rows],
            "reconstruction": [-row["reconstruction"] for row in rows],
            "minus_kl": [-row["kl"] for row in rows],
        }
    return curves


def _describe(run: LoadedRun) -> dict[str, Any]:
    return {
        "run": run.folder.name,
        "sha256": hashlib.sha256((run.folder / MODEL_FILE).read_bytes()).hexdigest(),
        "name": run.config.name,
        "recipe": run.config.recipe,
        "seed": run.config.fit.seed,
        "step": run.step,
        "minutes": run.minutes,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "distance_weight": run.equivae().config.distance_weight,
        "data": run.data,
    }


def _print(report: Report, console: Console) -> None:
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
