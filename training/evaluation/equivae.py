"""The figures of an EquiVAE: every measure on one split, with the classifiers that it is held against."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console

from training.datasets import LabelledImages, Splits
from training.distances import prototypes_of
from training.errors import ConfigError
from training.evaluation import equivae_measures as measures
from training.evaluation import probes
from training.evaluation.classification import Served, class_scores, listed, mistakes, serve, serve_embeddings
from training.evaluation.held_out import held_out_class, without_class
from training.evaluation.options import Options
from training.evaluation.pages import PAGES, read_from_pages
from training.evaluation.report import Measurement, Report, describe
from training.evaluation.scores import percent
from training.latent import ACTIVE_NATS
from training.models.equivae_few import FewLabelEquiVAE
from training.preparation import prepare
from training.run import LoadedRun, read_metrics

__all__ = ["EquiVAEEvaluation", "elbo_curves"]

PROBE_IMAGES = 10_000
PAGES_READ = 1000


class EquiVAEEvaluation:
    """One evaluation in progress: the model on its device, the split, and the figures so far.

    Raises:
        ConfigError: an option was given that does not apply.
    """

    def __init__(
        self, run: LoadedRun, splits: Splits, data: LabelledImages, options: Options, console: Console
    ) -> None:
        options.refuse(run.config.model.kind, "classifier")
        if "held_out_epochs" in options.given and not options.held_out:
            raise ConfigError("evaluate: --held-out-epochs needs --held-out")
        self.loaded, self.splits, self.options, self.console = run, splits, options, console
        self.data = data
        self.labels = self.data.labels
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = run.equivae().to(device)
        self.report = Report(describe(run) | {"distance_weight": self.model.config.distance_weight})

    def run(self) -> Report:
        whole = self.splits.parts[self.options.split]
        for name in self.options.held_out:  # what cannot be left out is said now, and not after all is measured
            prepare(without_class(self.loaded, name, whole, self.options.held_out_epochs))
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

    @cached_property
    def encoded_train(self) -> measures.Encoded:
        return measures.encode(self.model, self.splits.train.images)

    @cached_property
    def served(self) -> Served:
        return serve_embeddings(self.model, self.encoded.r)

    def add(self, name: str, value: float, unit: str, how: str, n: int | None = None, split: str | None = None) -> None:
        count, where = n or len(self.data), split or self.options.split
        self.report.figures.append(Measurement(name, float(value), unit, where, count, self.options.seed, how))

    def distances(self) -> None:
        scores = class_scores(self.served, self.labels.numpy())
        self.report.details["mistakes"] = listed(mistakes(self.served, self.labels.numpy()), self.data)
        self.add("error_distance", scores["error"], "%", "nearest class mean of the training split, f_inv with m = 1")
        seen, train_labels = self.encoded_train, self.splits.train.labels
        other = measures.hidden_mean_error(self.model, seen, train_labels, self.encoded, self.labels)
        self.add("error_distance_hidden_mean", other, "%", "the same, class means of the hidden units through the head")
        temperature = f"temperature {self.options.fitted}"
        self.add("ece", scores["ece"], "", f"served probabilities, 15 bins; {temperature}")
        self.add("nll", scores["nll"], "nats", f"served probabilities; {temperature}")
        if isinstance(self.model, FewLabelEquiVAE):
            wrong = measures.classifier_error(self.model, self.data)
            self.add("error_classifier", wrong, "%", "argmax of q(y|x)")

    def elbo(self) -> None:
        seed = self.options.seed
        reconstruction, kl = measures.elbo_terms(self.model, self.data, seed)
        terms = {"reconstruction": reconstruction, "kl": sum(kl), "elbo": -reconstruction - sum(kl)}
        for name, value in terms.items():
            self.add(name, value, "nats", "r of the training class mean, one draw of v")
        active = sum(value > ACTIVE_NATS for value in kl)
        how = f"dimensions of v with a mean KL above {ACTIVE_NATS} nat"
        self.add("active_dimensions", active, f"of {len(kl)}", how)
        self.report.details["kl_per_dimension"] = kl
        self.report.details["curves"] = elbo_curves(self.loaded.folder)
        shares = torch.bincount(self.splits.train.labels, minlength=self.model.num_classes) / len(self.splits.train)
        wrong = measures.elbo_predictions(self.model, self.data, shares, seed) != self.labels.numpy()
        self.add("error_elbo", percent(wrong), "%", "argmax over y of the ELBO, one draw of v")

    def generation(self) -> None:
        seed, validation = self.options.seed, self.splits.validation
        judge = probes.independent_cnn(self.loaded.folder, self.splits, seed)
        self.add(
            "judge_error",
            judge.validation_error,
            "%",
            "the independent CNN on real images",
            n=len(validation),
            split="validation",
        )
        if self.data is validation:
            means = prototypes_of(self.encoded.r, self.labels, self.model.num_classes)
        else:
            means = self.model.class_means(validation)
        share = measures.intended_prior_samples(self.model, means, judge, self.options.samples, seed)
        how = "prior samples of v, r of the validation class mean, that the independent CNN gives the class"
        self.add("intended_prior_samples", share, "%", how, n=self.options.samples, split="validation")
        if len(self.data) > 1:
            share = measures.intended_swaps(self.model, self.encoded, self.labels, judge, seed)
            self.add("intended_swaps", share, "%", "swaps that the independent CNN gives the class of the content")

    def probes(self) -> None:
        seed, train, seen = self.options.seed, self.splits.train, self.encoded_train
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
        outliers, samples = self.data.outliers, self.options.samples
        found = measures.novelty(self.model, self.served, outliers, samples, self.options.seed)
        how = f"images of the split with novelty > 0.99; its quantiles {self.options.fitted}"
        self.add("false_alarms", found["known"]["false_alarms"], "%", how)
        how = "novelty, the split against photograph patches, textures and noise"
        if self.loaded.config.data.photograph_seed is not None:
            how += "; training pictures lie over the same photographs"
        self.add("novelty_auroc", found["all"]["auroc"], "", how, n=len(self.data) + 3 * samples)
        self.report.details["novelty"] = found
        for kind in ("blanks", "rings", "checkerboards"):
            self.add(f"novel_{kind}", found[kind]["caught"], "%", "drawn, with novelty > 0.99", n=samples)
        if outliers is not None:
            how = f"the data's own, with novelty > 0.99; AUROC {found['outliers']['auroc']:.4f}"
            self.add("novel_outliers", found["outliers"]["caught"], "%", how, n=len(outliers))

    def pages(self) -> None:
        preprocessing = self.loaded.preprocessing
        if preprocessing.polarity != "light" or preprocessing.fit == "image" or self.loaded.input.channels != 1:
            return  # these are no light strokes on a dark ground that could be drawn as ink
        counts = {"page": PAGES_READ, "photograph": self.options.photographs}
        for name, kind in PAGES.items():
            part = self.data.subset(torch.arange(min(counts[name], len(self.data))))
            if not len(part):
                continue
            images = read_from_pages(part.images, kind, self.loaded.input, preprocessing, self.options.seed)
            error, plain = (
                percent(served.distances[: len(part)].argmin(1) != part.labels.numpy())
                for served in (serve(self.model, images), self.served)
            )
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
        whole = self.splits.parts[self.options.split]
        found = {name: held_out_class(self.loaded, name, whole, epochs, self.console) for name in self.options.held_out}
        for name, result in found.items():
            how = f"novelty, class {name} against the others, model trained without it {length}"
            self.add(f"novelty_auroc_without_{name}", result["auroc"], "", how, n=len(whole))
        if found:
            mean = sum(result["auroc"] for result in found.values()) / len(found)
            how = f"mean over the held-out classes {', '.join(found)}"
            self.add("novelty_auroc_held_out", mean, "", how, n=len(whole))
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
