"""The evaluation of a small finished run, and each measure against a naive re-implementation."""

import dataclasses
import io
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from training import evaluate as module
from training.datasets import Splits
from training.distances import ClassMeans
from training.errors import DataError, RunError
from training.evaluate import evaluate
from training.evaluation import equivae, negatives, probes
from training.evaluation import equivae_measures as measures
from training.evaluation.classification import listed, mistakes, serve, serve_embeddings
from training.evaluation.held_out import held_out_class
from training.evaluation.options import Options
from training.evaluation.report import Report, print_report
from training.models.equivae import EquiVAE
from training.run import LoadedRun, load_run

QUICK = Options(samples=40, benchmark_epochs=1, photographs=2)


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(finished_run, copy)
    return copy


@pytest.fixture(scope="module")
def model(run: Path) -> EquiVAE:
    return load_run(run).model


@pytest.fixture(scope="module")
def splits(run: Path) -> Splits:
    return load_run(run).splits()


@pytest.fixture(scope="module")
def reported(run: Path) -> tuple[Report, str]:
    """The report and what was printed; pages, the judge and the neural head are made small."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equivae, "PAGES_READ", 10)
        patch.setattr(probes.independent_cnn, "__defaults__", (0, 20))
        patch.setattr(probes.neural_head, "__defaults__", (100,))
        report = evaluate(run, options=QUICK, console=Console(file=said, width=200))
    return report, said.getvalue()


def test_every_figure_has_its_split_seed_and_count(reported: tuple[Report, str], splits: Splits) -> None:
    report, said = reported
    names = [figure.name for figure in report.figures]
    assert len(set(names)) == len(names)
    assert {
        "error_distance",
        "error_neural_head",
        "error_benchmark_cnn",
        "error_elbo",
        "reconstruction",
        "kl",
        "active_dimensions",
        "probe_accuracy_v",
        "probe_accuracy_r",
        "intended_prior_samples",
        "intended_swaps",
        "judge_error",
        "novelty_auroc",
        "false_alarms",
        "ece",
        "error_page",
        "error_photograph",
    } <= set(names)
    for figure in report.figures:
        assert figure.split == "validation" and figure.n > 0 and figure.how and np.isfinite(figure.value)
        assert figure.name in said
    assert next(figure.n for figure in report.figures if figure.name == "ece") == len(splits.validation)
    for name in ("ece", "nll", "false_alarms"):
        assert next(figure.how for figure in report.figures if figure.name == name).endswith("fitted on these images")
    kl = "  ".join(f"{value:.2f}" for value in report.details["kl_per_dimension"])
    assert f"KL of every dimension of v, nats: {kl}\n" in said


def test_json_says_the_same_as_the_report(reported: tuple[Report, str], run: Path) -> None:
    report, _ = reported
    stored = json.loads((run / "evaluation-validation.json").read_text())
    assert stored == report.as_dict()
    assert len(stored["details"]["kl_per_dimension"]) == 3
    assert sum(stored["details"]["kl_per_dimension"]) == pytest.approx(report.value("kl"))
    assert stored["model"]["parameters"] > 0 and stored["model"]["data"]["digest"]


def test_every_mistake_is_listed_the_surest_first(reported: tuple[Report, str], splits: Splits, model: EquiVAE) -> None:
    report, said = reported
    found = report.details["mistakes"]
    served, labels = serve(model, splits.validation.images), splits.validation.labels
    assert 100 * len(found) / len(labels) == pytest.approx(report.value("error_distance")) and found
    assert [mistake["probability"] for mistake in found] == sorted((m["probability"] for m in found), reverse=True)
    for mistake in found:
        row = mistake["picture"]
        assert int(mistake["class"]) == int(labels[row]) != int(mistake["read_as"])
        assert int(mistake["read_as"]) == served.distances[row].argmin()
        assert mistake["probability"] == pytest.approx(served.probabilities[row, int(mistake["read_as"])], abs=1e-4)
    (class_, read_as), count = Counter((mistake["class"], mistake["read_as"]) for mistake in found).most_common(1)[0]
    assert f"read wrongly most often: {class_} as {read_as} ({count})" in said
    named = dataclasses.replace(splits.validation, files=tuple(f"{row}.png" for row in range(len(labels))))
    assert listed(mistakes(served, labels.numpy()), named)[0]["picture"] == f"{found[0]['picture']}.png"


def test_a_narrow_table_says_below_how_figures_are_measured(reported: tuple[Report, str]) -> None:
    said = io.StringIO()
    print_report(reported[0], Console(file=said, width=80))
    for figure in reported[0].figures:
        assert f"\n{figure.name}: {figure.how}\n" in said.getvalue()


def test_error_is_the_loops_own(reported: tuple[Report, str], run: Path) -> None:
    assert reported[0].value("error_distance") == pytest.approx(load_run(run).metrics["error"])


def test_curves_hold_the_terms_apart(reported: tuple[Report, str]) -> None:
    curves = reported[0].details["curves"]
    assert curves["train"]["step"][-1] == curves["validation"]["step"][-1] == 150
    for curve in curves.values():
        assert max(curve["reconstruction"]) < 0 and max(curve["minus_kl"]) <= 0
    # Training made the pictures likelier.
    assert curves["train"]["reconstruction"][-1] > curves["train"]["reconstruction"][0]


def test_test_split_is_read_only_when_asked_for(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("elbo", "generation", "probes", "novelty", "pages", "benchmark"):
        monkeypatch.setattr(equivae.EquiVAEEvaluation, name, lambda self: None)
    target = tmp_path / "deep" / "report.json"
    report = evaluate(run, target, Options(split="test"), Console(file=io.StringIO()))
    assert {figure.split for figure in report.figures} == {"test"}
    assert {figure.how for figure in report.figures if figure.name == "nll"} == {
        "served probabilities; temperature fitted on the validation split"
    }
    assert json.loads(target.read_text())["figures"][0]["n"] == len(load_run(run).splits().test.labels)
    assert not (run / "evaluation-test.json").exists()


def test_missing_split_and_missing_run_are_explained(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="does not exist"):
        evaluate(tmp_path / "nothing")
    without_test = dataclasses.replace(load_run(run).splits(), test=None)
    monkeypatch.setattr(LoadedRun, "splits", lambda self: without_test)
    with pytest.raises(DataError, match="no test split"):
        evaluate(run, options=Options(split="test"))


def test_every_picture_goes_through_the_net_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "independent_cnn", lambda *_: probes.Judge(Bright(), 0.0))
    monkeypatch.setattr(probes.neural_head, "__defaults__", (1,))
    loaded = load_run(run)
    splits, model, rows = loaded.splits(), loaded.model, []
    model.body.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    evaluation = equivae.EquiVAEEvaluation(loaded, splits, splits.validation, QUICK, Console(file=io.StringIO()))
    evaluation.distances()
    evaluation.generation()
    evaluation.probes()
    assert sum(rows) == len(splits.train) + len(splits.validation)


# --- measures against the naive way ---


def test_elbo_terms_by_hand(model: EquiVAE, splits: Splits) -> None:
    part = splits.validation.subset(torch.arange(7))
    reconstruction, kl = measures.elbo_terms(model, part, seed=5)
    images = part.images.float() / 255
    noise = torch.randn((7, 3), generator=torch.Generator().manual_seed(5))
    nats, divergence = 0.0, torch.zeros(3)
    with torch.no_grad():
        for index, label in enumerate(part.labels):
            r, image = model.classes.prototypes[label][None], images[index][None]
            mean, log_variance = model.posterior(r, image)
            posterior = torch.distributions.Normal(mean, torch.exp(log_variance / 2))
            prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
            divergence += torch.distributions.kl_divergence(posterior, prior)[0]
            pixels = model.decode(r, mean + posterior.scale * noise[index])
            nats += float(torch.nn.functional.binary_cross_entropy(pixels, image, reduction="sum"))
    assert reconstruction == pytest.approx(nats / 7, rel=1e-4)
    assert kl == pytest.approx((divergence / 7).tolist(), rel=1e-4)


def test_elbo_classifier_takes_the_class_of_the_highest_bound(model: EquiVAE, splits: Splits) -> None:
    part = splits.validation.subset(torch.arange(5))
    shares = torch.full((10,), 0.1)
    passes: list[int] = []
    hook = model.posterior.body.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    chosen = measures.elbo_predictions(model, part, shares, seed=2)
    hook.remove()
    assert passes == [5]
    noise = torch.randn((5, 3), generator=torch.Generator().manual_seed(2))
    bounds = torch.empty(5, 10)
    with torch.no_grad():
        for label in range(10):
            r, images = model.classes.prototypes[label].repeat(5, 1), part.images.float() / 255
            mean, log_variance = model.posterior(r, images)
            kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
            bounds[:, label] = -model.reconstruction(images, r, mean + (log_variance / 2).exp() * noise) - kl
    assert chosen.tolist() == bounds.argmax(1).tolist()
    # A class that never occurs is never chosen.
    shares[int(chosen[0])] = 0.0
    assert measures.elbo_predictions(model, part, shares, seed=2)[0] != chosen[0]


class Bright(torch.nn.Module):
    """Logits [N,10] that name the class by the brightness of the picture: 0.05 is class 0, 0.95 class 9."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = (torch.arange(10) + 0.5) / 10
        return -(images.mean((1, 2, 3))[:, None] - levels).abs() + self.anchor


class Painter:
    """Stands in for a model: r [N,1] is the brightness of the picture, v is ignored or decides, as told."""

    num_classes = 10
    classes = ClassMeans(10, 1)

    def __init__(self, of: str) -> None:
        self.of = of
        self.config = type("Config", (), {"v_dim": 1})

    def decode(self, r: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (r if self.of == "r" else v).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def test_intended_share_tells_class_in_r_from_class_in_v() -> None:
    judge = probes.Judge(Bright(), 0.0)
    labels = torch.arange(200) % 10
    level = ((labels + 0.5) / 10)[:, None]
    encoded = measures.Encoded(level, level, level)
    assert measures.intended_swaps(Painter("r"), encoded, labels, judge, seed=0) == 100
    assert measures.intended_swaps(Painter("v"), encoded, labels, judge, seed=0) < 25
    means = ((torch.arange(10) + 0.5) / 10)[:, None]
    assert measures.intended_prior_samples(Painter("r"), means, judge, 50, seed=0) == 100
    assert measures.intended_prior_samples(Painter("v"), means, judge, 50, seed=0) < 40


def test_swaps_never_pair_an_image_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = measures.Encoded(*3 * [torch.arange(9.0)[:, None]])
    pairs = []
    monkeypatch.setattr(
        measures, "recombine_images", lambda model, r, v: pairs.append((r, v)) or torch.zeros(len(r), 1, 8, 8)
    )
    for seed in range(5):
        measures.intended_swaps(Painter("r"), encoded, torch.zeros(9).long(), probes.Judge(Bright(), 0.0), seed)
    for r, v in pairs:
        assert not bool((r == v).any()) and sorted(v.flatten().tolist()) == list(range(9))


def test_novelty_table_against_scores_by_hand(model: EquiVAE, splits: Splits) -> None:
    encoded = measures.encode(model, splits.validation.images)
    served = serve_embeddings(model, encoded.r)
    found = measures.novelty(model, served, None, 30, seed=0)
    known = serve(model, splits.validation.images).novelty
    assert found["known"]["false_alarms"] == pytest.approx(100 * np.mean(known > 0.99))
    noise = serve(model, negatives.draw("noise", model.input, 30, 0)).novelty
    wins = (noise[:, None] > known).mean() + 0.5 * (noise[:, None] == known).mean()
    assert found["noise"]["auroc"] == pytest.approx(wins)
    assert set(found) == {"known", "all", *negatives.KINDS}
    own = (255 * negatives.draw("noise", model.input, 30, 0)).round().byte()
    found = measures.novelty(model, served, own, 30, seed=0)
    assert found["outliers"]["caught"] == pytest.approx(100 * np.mean(serve(model, own.float() / 255).novelty > 0.99))


def test_the_data_s_own_outliers_have_a_figure(run: Path, splits: Splits) -> None:
    with_own = dataclasses.replace(splits.validation, outliers=torch.zeros((7, 1, 8, 8), dtype=torch.uint8))
    for data, counts in ((splits.validation, []), (with_own, [7])):
        console, options = Console(file=io.StringIO()), Options(samples=2)
        evaluation = equivae.EquiVAEEvaluation(load_run(run), splits, data, options, console)
        evaluation.novelty()
        assert [figure.n for figure in evaluation.report.figures if figure.name == "novel_outliers"] == counts


def test_photographs_that_training_pictures_lie_over_are_said_to_be_those(run: Path, splits: Splits) -> None:
    loaded = load_run(run)
    for seed in (None, 0):
        data = loaded.config.data.model_copy(update={"photograph_seed": seed})
        over = dataclasses.replace(loaded, config=loaded.config.model_copy(update={"data": data}))
        console, options = Console(file=io.StringIO()), Options(samples=2)
        evaluation = equivae.EquiVAEEvaluation(over, splits, splits.validation, options, console)
        evaluation.novelty()
        how = next(figure.how for figure in evaluation.report.figures if figure.name == "novelty_auroc")
        assert how.endswith("training pictures lie over the same photographs") == (seed is not None)


def test_held_out_class_trains_without_it_and_keeps_the_model(run: Path) -> None:
    loaded = load_run(run)
    began = loaded.config.model_copy(update={"fit": loaded.config.fit.model_copy(update={"initial": run})})
    loaded = dataclasses.replace(loaded, config=began)
    splits, quiet = loaded.splits(), Console(file=io.StringIO())
    result = held_out_class(loaded, "4", splits.validation, console=quiet)
    inner = load_run(run / "without-class-4")
    assert inner.config.fit.initial is None  # whose weights have seen the class
    assert inner.class_names == ("0", "1", "2", "3", "5", "6", "7", "8", "9")
    assert inner.config.fit.batch == 36
    assert result["n"] == int((splits.validation.labels == 4).sum())
    assert 0 <= result["auroc"] <= 1
    stamp = (run / "without-class-4" / "model.pt").stat().st_mtime_ns
    assert held_out_class(loaded, "4", splits.validation, console=quiet) == result
    assert (run / "without-class-4" / "model.pt").stat().st_mtime_ns == stamp
    # A quick look at a few images takes the whole split for this, and says so.
    options, few = Options(held_out=("4",), held_out_epochs=2), splits.validation.subset(torch.arange(20))
    evaluation = equivae.EquiVAEEvaluation(loaded, splits, few, options, quiet)
    evaluation.held_out()
    assert load_run(run / "without-class-4-2-epochs").step == 2 * (len(inner.splits().train) // 36)
    assert [figure.n for figure in evaluation.report.figures] == 2 * [len(splits.validation)]
    assert evaluation.report.details["held_out"]["4"]["n"] == result["n"]
    with pytest.raises(DataError, match="no class 'x'"):
        held_out_class(loaded, "x", splits.validation)


@pytest.mark.parametrize(("held_out", "words"), [("x", "no class 'x'"), ("4", "labels are not equally many")])
def test_a_class_that_cannot_be_held_out_is_told_before_anything_is_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch, held_out: str, words: str
) -> None:
    monkeypatch.setattr(equivae.EquiVAEEvaluation, "distances", lambda self: pytest.fail("measured first"))
    loaded = load_run(run)
    whole = loaded.splits()
    if held_out == "4":  # 20 labels divide among ten classes, not among nine
        few = loaded.config.model_copy(update={"data": loaded.config.data.model_copy(update={"labels": 20})})
        monkeypatch.setattr(module, "load_run", lambda folder: dataclasses.replace(loaded, config=few))
        monkeypatch.setattr(LoadedRun, "splits", lambda self: whole)
    with pytest.raises(DataError, match=words):
        evaluate(run, options=Options(held_out=("3", held_out)), console=Console(file=io.StringIO()))


@pytest.mark.parametrize(("held_out", "lacking"), [("5", "it"), ("3", "another class")])
def test_a_class_whose_novelty_the_split_cannot_tell_is_refused_before_anything_is_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch, held_out: str, lacking: str
) -> None:
    monkeypatch.setattr(equivae.EquiVAEEvaluation, "distances", lambda self: pytest.fail("measured first"))
    whole = load_run(run).splits()
    threes = dataclasses.replace(whole, validation=whole.validation.subset(whole.validation.by_class[3]))
    monkeypatch.setattr(LoadedRun, "splits", lambda self: threes)
    words = f"class '{held_out}' cannot be held out: the split to be measured has no picture of {lacking}"
    with pytest.raises(DataError, match=words):
        evaluate(run, options=Options(held_out=(held_out,)), console=Console(file=io.StringIO()))


def test_a_number_that_is_not_finite_is_null_in_the_report(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(self: equivae.EquiVAEEvaluation) -> Report:
        self.add("undefined", math.nan, "", "of nothing")
        self.report.details["curves"] = {"kl": [1.0, math.inf]}
        return self.report

    monkeypatch.setattr(equivae.EquiVAEEvaluation, "run", measured)
    evaluate(run, tmp_path / "report.json", console=Console(file=io.StringIO()))
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["figures"][0]["value"] is None and stored["details"]["curves"]["kl"] == [1.0, None]


def test_a_reader_of_the_table_who_has_left_does_not_cost_the_report(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(equivae.EquiVAEEvaluation, "run", lambda self: self.report)
    monkeypatch.setattr(module, "print_report", closed)
    with pytest.raises(BrokenPipeError):
        evaluate(run, tmp_path / "report.json", console=Console(file=io.StringIO()))
    assert "figures" in json.loads((tmp_path / "report.json").read_text())


def test_one_picture_has_nothing_to_swap_with(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run(run)
    one = loaded.splits().validation.subset(torch.arange(1))
    monkeypatch.setattr(probes, "independent_cnn", lambda *_: probes.Judge(Bright(), 0.0))
    evaluation = equivae.EquiVAEEvaluation(loaded, loaded.splits(), one, QUICK, Console(file=io.StringIO()))
    evaluation.generation()
    assert [figure.name for figure in evaluation.report.figures] == ["judge_error", "intended_prior_samples"]
